// How many inputs of each window count, for the sums and means of small windows: the bytes of the mask are added up over
// the rows of the windows, as one row of bytes, and then over w, in as many lanes as there are results.
#pragma once
#include "fused_job.hpp"

namespace anypool {
namespace {

// Windows of KW columns of `Rows` rows each, S columns apart.
template <class A, int L, int Rows, int KW, int S>
class CountedRow {
  static_assert(S == 1 || S == 2, "columns lie side by side, or in pairs");
  static_assert(Rows * KW <= 255, "counts are bytes");
  static_assert(KW == 2 || KW == 3, "as the windows that have kernels");
  using V = Vec<A, L>;
  uint8_t* const columns_;
  const uint8_t* const first_;  // of the first window
  const i64 cols_;
  const A constant_;
  A empty_;
  const bool divides_, by_constant_;

  template <int Bytes>
  ANYPOOL_INLINE void add_up(const uint8_t* const* masks) {
    using Some = Vec<uint8_t, Bytes>;
    for (i64 c = 0; c < cols_;) {
      Some v{};
      for (int i = 0; i < Rows; ++i) v += min_of(load<Some>(masks[i] + c), splat<Some>(uint8_t(1)));
      store(columns_ + c, v);
      c += Bytes;
      if (c < cols_ && c + Bytes > cols_) c = cols_ - Bytes;  // the last ones once more
    }
  }
  // Column Tap of L windows.
  template <int Tap>
  ANYPOOL_INLINE auto column(i64 o) const {
    if constexpr (S == 1) {
      return load<Vec<uint8_t, L>>(first_ + o + Tap);
    } else {
      constexpr bool kUpper = (Tap % 2 == 1) == (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
      using Pairs = Vec<uint16_t, L>;
      const Pairs pairs = load<Pairs>(first_ + 2 * o + Tap / 2 * 2);
      if constexpr (kUpper)
        return pairs >> 8;
      else
        return pairs & splat<Pairs>(uint16_t(255));
    }
  }

 public:
  explicit CountedRow(const FusedJob& job)
      : columns_(job.columns + kBesideColumns),
        first_(columns_ + job.start),
        cols_(job.cols),
        constant_(A(job.finishing->constant)),
        divides_(job.finishing->divides),
        by_constant_(job.finishing->by_constant) {
    static_assert(sizeof(A) == 4 || sizeof(A) == 8, "floats");
    const uint32_t lower = uint32_t(job.finishing->empty);
    sizeof(A) == 4 ? __builtin_memcpy(&empty_, &lower, 4) : __builtin_memcpy(&empty_, &job.finishing->empty, 8);
    __builtin_memset(columns_ - kBesideColumns, 0, kBesideColumns);
    __builtin_memset(columns_ + cols_, 0, kBesideColumns);
  }
  // The row of windows that is finished next. A row has 16 columns or more.
  ANYPOOL_INLINE void see(const uint8_t* const* masks) {
    cols_ < ANYPOOL_VECTOR_BYTES ? add_up<16>(masks) : add_up<ANYPOOL_VECTOR_BYTES>(masks);
  }
  // The results of L windows from their sums; `padding` tells how many elements of each window are padding that counts.
  ANYPOOL_INLINE V finished(V sums, i64 o, const A* padding) const {
    auto counts = column<0>(o) + column<1>(o);
    if constexpr (KW == 3) counts += column<2>(o);
    const V n = convert<V>(counts);
    if (divides_) {
      if (by_constant_)
        sums /= constant_;
      else
        sums /= padding ? n + load<V>(padding + o) : n;
    }
    return n != V{} ? sums : splat<V>(empty_);
  }
};

}  // namespace
}  // namespace anypool
