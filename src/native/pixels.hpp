// The same small windows where channels lie innermost: the taps of one output are vectors of channels, read where they lie.
#pragma once
#include "fused_job.hpp"

namespace anypool {
namespace {

// At least as many channels as a vector has lanes; the last vector of them overlaps the one before.
template <class T, class Op, int KD, int KH, int KW>
class Pixels {
  using A = typename Op::A;
  static constexpr int L = kLanes<A>, kRows = KD * KH;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;

 public:
  static bool run(const FusedJob& job) {
    const T* rows[kRows];
    for (int i = 0; i < kRows; ++i) rows[i] = reinterpret_cast<const T*>(job.rows[i]);
    const T* none = reinterpret_cast<const T*>(job.none);
    const FusedDivisor by = job.by;
    T* y = reinterpret_cast<T*>(job.y);
    for (i64 r = 0; r < job.count; ++r) {
      for (i64 o = 0; o < job.n; ++o) {
        const T* taps[kRows * KW];
        for (int w = 0; w < KW; ++w) {
          const i64 c = job.start + o * job.stride + w * job.dilation;
          const bool inside = c >= 0 && c < job.cols;
          for (int i = 0; i < kRows; ++i)
            taps[w * kRows + i] = inside && rows[i] != none ? rows[i] + c * job.pitch : none;
        }
        T* out = y + o * job.y_pitch;
        i64 k = 0;
        for (; k + L <= job.inner; k += L) Memory::store(out + k, finished<L, false>(merged(taps, k), by, o));
        if (k < job.inner) {
          k = job.inner - L;
          Memory::store(out + k, finished<L, false>(merged(taps, k), by, o));
        }
      }
      y = reinterpret_cast<T*>(reinterpret_cast<char*>(y) + job.y_step);
      for (int i = 0; i < kRows; ++i)
        rows[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows[i]) + job.step[i]);
    }
    return false;
  }

 private:
  static ANYPOOL_INLINE V merged(const T* const* taps, i64 k) {
    return merged_taps<Op, 0, KW>([&](auto w) {
      return merged_taps<Op, 0, KH>([&](auto h) {
        return merged_taps<Op, 0, KD>([&](auto d) {
          constexpr int i = decltype(w)::value * kRows + decltype(d)::value * KH + decltype(h)::value;
          return Memory::load(taps[i] + k);
        });
      });
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
