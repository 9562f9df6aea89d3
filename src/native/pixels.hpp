// The same small windows where channels lie innermost: the taps of one output are vectors of channels, read where they lie.
#pragma once
#include "fused_job.hpp"

namespace anypool {
namespace {

// At least as many channels as a vector has lanes; the last vector of them overlaps the one before. Columns that the next
// window sees again are kept, merged over their rows.
template <class T, class Op, int KD, int KH, int KW>
class Pixels {
  using A = typename Op::A;
  static constexpr int L = kLanes<A>, kRows = KD * KH;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;

 public:
  static bool run(const FusedJob& job) {
    const i64 shared = job.kept && job.dilation == 1 ? KW - job.stride : 0;
    if (KW > 1 && shared == KW - 1)
      rows<KW - 1>(job);
    else if (KW > 2 && shared == KW - 2)
      rows<KW - 2>(job);
    else
      rows<0>(job);
    return false;
  }

 private:
  // `Kept` columns of a window are those of the one before.
  template <int Kept>
  static void rows(const FusedJob& job) {
    constexpr int kNew = KW - Kept;
    const T* rows[kRows];
    for (int i = 0; i < kRows; ++i) rows[i] = reinterpret_cast<const T*>(job.rows[i]);
    const FusedDivisor by = job.by;
    const i64 vectors = (job.inner + L - 1) / L;
    char* y = job.y;
    for (i64 r = 0; r < job.count; ++r, y += job.y_step) {
      A* kept[Kept + 1];
      const T* taps[kNew * kRows];
      for (int w = 0; w < Kept; ++w) {
        kept[w] = reinterpret_cast<A*>(job.kept) + w * vectors * L;
        place(job, rows, job.start + w, taps);
        for (i64 j = 0; j < vectors; ++j) store(kept[w] + j * L, column(taps, lower(j * L, job.inner - L)));
      }
      for (i64 o = 0; o < job.n; ++o) {
        for (int w = 0; w < kNew; ++w)
          place(job, rows, job.start + o * job.stride + (Kept + w) * job.dilation, taps + w * kRows);
        T* out = reinterpret_cast<T*>(y) + o * job.y_pitch;
        const auto channels = [&](i64 k, i64 at) {  // L from k on, the columns of which are kept at `at`
          V v[KW];
          for (int w = 0; w < Kept; ++w) v[w] = load<V>(kept[w] + at);
          for (int w = 0; w < kNew; ++w) v[Kept + w] = column(taps + w * kRows, k);
          const V all = merged_taps<Op, 0, KW>([&](auto w) { return v[decltype(w)::value]; });
          Memory::store(out + k, finished<L, false>(all, by, o));
          for (int w = 0; w < kNew && w < Kept; ++w) store(kept[w] + at, v[(Kept > kNew ? Kept : kNew) + w]);
        };
        i64 k = 0;
        for (; k + L <= job.inner; k += L) channels(k, k);
        if (k < job.inner) channels(job.inner - L, k);
        for (int w = 0; w < kNew && kNew < Kept; ++w) {  // those kept longest have given way to the new ones
          A* const first = kept[0];
          for (int i = 0; i + 1 < Kept; ++i) kept[i] = kept[i + 1];
          kept[Kept - 1] = first;
        }
      }
      for (int i = 0; i < kRows; ++i)
        rows[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows[i]) + job.step[i]);
    }
  }
  // Where the rows' taps at column c lie.
  static ANYPOOL_INLINE void place(const FusedJob& job, const T* const* rows, i64 c, const T** taps) {
    const bool inside = c >= 0 && c < job.cols;
    const T* none = reinterpret_cast<const T*>(job.none);
    for (int i = 0; i < kRows; ++i) taps[i] = inside && rows[i] != none ? rows[i] + c * job.pitch : none;
  }
  static ANYPOOL_INLINE V column(const T* const* taps, i64 k) {
    return merged_taps<Op, 0, KH>([&](auto h) {
      return merged_taps<Op, 0, KD>(
          [&](auto d) { return Memory::load(taps[decltype(d)::value * KH + decltype(h)::value] + k); });
    });
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
