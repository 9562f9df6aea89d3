// The same small windows where channels lie innermost: the taps of one output are vectors of channels, read where they lie.
#pragma once
#include "fused_job.hpp"

namespace anypool {
namespace {

// What adjacent channels are merged as: a vector; or, of bfloat16, two, of the even channels and of the odd ones, which are
// halves of the same words, so that no lane has to move.
template <class T, class Op, bool Pairs>
struct Channels {
  using A = typename Op::A;
  static constexpr int L = kLanes<A>, kVectors = 1, kAll = L;
  using V = Vec<A, L>;
  static ANYPOOL_INLINE void load(const T* p, V* v) { v[0] = Lanes<T, A, L>::load(p); }
  static ANYPOOL_INLINE void store(T* p, const V* v) { Lanes<T, A, L>::store(p, v[0]); }
};
template <class Op>
struct Channels<bf16, Op, true> {
  static constexpr int L = kLanes<float>, kVectors = 2, kAll = 2 * L;
  using V = Vec<float, L>;
  static ANYPOOL_INLINE void load(const bf16* p, V* v) {
    const auto pairs = anypool::load<Vec<uint32_t, L>>(p);
    v[0] = every_second<0, L>(pairs), v[1] = every_second<1, L>(pairs);
  }
  static ANYPOOL_INLINE void store(bf16* p, const V* v) {
    using Word = Numbers<bf16, float, L>;
    anypool::store(p, joined<L>(Word::template word<Op::kSelects>(v[0]), Word::template word<Op::kSelects>(v[1])));
  }
};

// At least as many channels as are merged at once; the last of them overlap those before. Columns that the next window
// sees again are kept, merged over their rows.
template <class T, class Op, int KD, int KH, int KW, bool Pairs = false>
class Pixels {
  using A = typename Op::A;
  using Memory = Channels<T, Op, Pairs>;
  static constexpr int L = kLanes<A>, N = Memory::kVectors, kAll = Memory::kAll, kRows = KD * KH;
  using V = Vec<A, L>;

 public:
  static bool run(const FusedJob& job) {
    const i64 shared = job.kept && job.dilation == 1 ? KW - job.stride : 0;
    if (KW > 1 && shared == KW - 1)
      all_rows<KW - 1>(job);
    else if (KW > 2 && shared == KW - 2)
      all_rows<KW - 2>(job);
    else
      all_rows<0>(job);
    return false;
  }

 private:
  template <int Kept>
  static void all_rows(const FusedJob& job) {
    i64 r = 0;
    // Of two rows of outputs that are as far apart as the taps all but two rows of inputs are the same: loaded once, and
    // by maxima merged once.
    if constexpr (KD == 1 && KH > 1) {
      const i64 apart = job.rows[1] - job.rows[0], step = job.step[0];
      const i64 other = step != 0 && apart % step == 0 ? apart / step : 0;
      for (; other > 0 && r + 2 * other <= job.count; r += 2 * other)
        for (i64 i = r; i < r + other; ++i) some_rows<Kept, 2>(job, i, other);
    }
    for (; r < job.count; ++r) some_rows<Kept, 1>(job, r, 0);
  }
  // Row r of outputs or, if R is 2, that one and the other. `Kept` columns of a window are those of the one before.
  template <int Kept, int R>
  static void some_rows(const FusedJob& job, i64 r, i64 other) {
    constexpr int kNew = KW - Kept, kRead = kRows + R - 1;
    const T* rows[kRead];
    for (int i = 0; i < kRows; ++i) rows[i] = reinterpret_cast<const T*>(job.rows[i] + r * job.step[i]);
    if constexpr (R == 2) rows[kRows] = reinterpret_cast<const T*>(job.rows[kRows - 1] + (r + other) * job.step[0]);
    const FusedDivisor by = job.by;
    const bool far = job.far;
    const i64 groups = (job.inner + kAll - 1) / kAll, inner = job.inner, y_pitch = job.y_pitch;
    AroundCaches* const around = job.around;
    T* out[R];
    for (int q = 0; q < R; ++q) out[q] = reinterpret_cast<T*>(job.y + (r + q * other) * job.y_step);
    A* kept[Kept + 1];
    const T* taps[kNew * kRead];
    for (int w = 0; w < Kept; ++w) {
      kept[w] = reinterpret_cast<A*>(job.kept) + w * R * groups * kAll;
      place<kRead>(job, rows, job.start + w, taps);
      for (i64 j = 0; j < groups; ++j) {
        V v[R][N];
        column<R>(taps, lower(j * kAll, job.inner - kAll), v, false);
        for (int q = 0; q < R; ++q)
          for (int n = 0; n < N; ++n) store(kept[w] + (j * R + q) * kAll + n * L, v[q][n]);
      }
    }
    for (i64 o = 0; o < job.n; ++o) {
      T* pixel[R];
      for (int q = 0; q < R; ++q) {
        pixel[q] = out[q] + o * y_pitch;
        if (around) pixel[q] = reinterpret_cast<T*>(around[q].room(reinterpret_cast<char*>(pixel[q])));
      }
      for (int w = 0; w < kNew; ++w)
        place<kRead>(job, rows, job.start + o * job.stride + (Kept + w) * job.dilation, taps + w * kRead);
      const auto channels = [&](i64 k, i64 at) {  // kAll from k on, the columns of which are kept at `at`
        V c[KW][R][N];
        for (int w = 0; w < Kept; ++w)
          for (int q = 0; q < R; ++q)
            for (int n = 0; n < N; ++n) c[w][q][n] = load<V>(kept[w] + at * R + q * kAll + n * L);
        for (int w = 0; w < kNew; ++w) column<R>(taps + w * kRead, k, c[Kept + w], far);
        for (int q = 0; q < R; ++q) {
          V all[N];
          for (int n = 0; n < N; ++n) {
            all[n] = merged_taps<Op, 0, KW>([&](auto w) { return c[decltype(w)::value][q][n]; });
            all[n] = finished<L, false>(all[n], by, o);
          }
          Memory::store(pixel[q] + k, all);
          for (int w = 0; w < kNew && w < Kept; ++w)
            for (int n = 0; n < N; ++n)
              store(kept[w] + at * R + q * kAll + n * L, c[(Kept > kNew ? Kept : kNew) + w][q][n]);
        }
      };
      i64 k = 0;
      for (; k + kAll <= inner; k += kAll) channels(k, k);
      if (k < inner) channels(inner - kAll, k);
      for (int q = 0; around && q < R; ++q) around[q].wrote(inner * i64(sizeof(T)));
      for (int w = 0; w < kNew && kNew < Kept; ++w) {  // those kept longest have given way to the new ones
        A* const first = kept[0];
        for (int i = 0; i + 1 < Kept; ++i) kept[i] = kept[i + 1];
        kept[Kept - 1] = first;
      }
    }
  }
  // Where the rows' taps at column c lie.
  template <int Rows>
  static ANYPOOL_INLINE void place(const FusedJob& job, const T* const* rows, i64 c, const T** taps) {
    const bool inside = c >= 0 && c < job.cols;
    const T* none = reinterpret_cast<const T*>(job.none);
    for (int i = 0; i < Rows; ++i) taps[i] = inside && rows[i] != none ? rows[i] + c * job.pitch : none;
  }
  template <int R>
  static ANYPOOL_INLINE void column(const T* const* taps, i64 k, V (*to)[N], bool far) {
    constexpr int kRead = kRows + R - 1;
    V v[kRead][N];
    // What takes long to merge leaves the processor too little room to read on. Sums take longer with this, and so do rows
    // of outputs two at a time. (The first of three rows has been read for the row of outputs before.)
    if constexpr (R == 1 && Op::kSelects)
      if (far)
        for (int i = KD == 1 && KH > 2; i < kRead; ++i)
          __builtin_prefetch(reinterpret_cast<const char*>(taps[i] + k) + kPage);
    for (int i = 0; i < kRead; ++i) Memory::load(taps[i] + k, v[i]);
    for (int n = 0; n < N; ++n) {
      if constexpr (R == 2 && KH > 2 && Op::kSelects) {
        const V both = merged_taps<Op, 1, KH - 1>([&](auto h) { return v[decltype(h)::value][n]; });
        to[0][n] = Op::template merged<L>(v[0][n], both);
        to[1][n] = Op::template merged<L>(both, v[KH][n]);
      } else {
        for (int q = 0; q < R; ++q)
          to[q][n] = merged_taps<Op, 0, KH>([&](auto h) {
            return merged_taps<Op, 0, KD>(
                [&](auto d) { return v[decltype(d)::value * KH + decltype(h)::value + q][n]; });
          });
      }
    }
  }
};

// Lanes of two adjacent vectors whose elements come in groups of G: every other group, the first or the second of each
// two. L / G of them are whole, and the lanes behind those are worth nothing.
template <class T, int L, int G, int Second>
struct EveryOtherGroup {
  using V = Vec<T, L>;
  static constexpr int of(int lane) { return lane / G * 2 * G + lane % G + Second * G; }
  template <int... I>
  static ANYPOOL_INLINE V run(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (of(I) < 2 * L ? of(I) : 0)...);
  }
  static ANYPOOL_INLINE V run(V a, V b) { return run(a, b, typename MakeIndices<L>::type{}); }
};

// 2x2 windows side by side over the few channels of a picture. Columns are those of single elements here.
template <class T, class Op, int Channels>
class PixelPairs {
  using A = typename Op::A;
  static constexpr int L = kLanes<A>, kUsed = L / Channels * Channels;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;

 public:
  static bool run(const FusedJob& job) {
    const T* rows[2] = {reinterpret_cast<const T*>(job.rows[0]), reinterpret_cast<const T*>(job.rows[1])};
    T* y = reinterpret_cast<T*>(job.y);
    const FusedDivisor by = job.by;
    for (i64 r = 0; r < job.count; ++r) {
      i64 c = job.start;
      for (i64 o = 0; o < job.n; o += kUsed, c += 2 * kUsed) {
        V v[2];
        const bool whole = c >= 0 && c + 2 * L <= job.cols && o + L <= job.n;
        for (int s = 0; s < 2; ++s) {
          const i64 at = c + s * L;
          v[s] = whole ? Op::template merged<L>(Memory::load(rows[0] + at), Memory::load(rows[1] + at))
                       : Op::template merged<L>(part(rows[0], at, job), part(rows[1], at, job));
        }
        const V pair = Op::template merged<L>(EveryOtherGroup<A, L, Channels, 0>::run(v[0], v[1]),
                                              EveryOtherGroup<A, L, Channels, 1>::run(v[0], v[1]));
        const V out = finished<L>(pair, by, o);
        if (whole)
          Memory::store(y + o, out);
        else
          Memory::store_part(y + o, out, Part({0, lower(kUsed, job.n - o)}));
      }
      y = reinterpret_cast<T*>(reinterpret_cast<char*>(y) + job.y_step);
      for (int i = 0; i < 2; ++i)
        rows[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows[i]) + job.step[i]);
    }
    return false;
  }

 private:
  static ANYPOOL_INLINE V part(const T* row, i64 at, const FusedJob& job) {
    return Memory::load_part(row + at, Part(inside<L>(at, job.cols)), splat<V>(Op::identity().a));
  }
};

}  // namespace
}  // namespace anypool
