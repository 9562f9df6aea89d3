// Small transposes in registers: elements of several planes side by side, and back.
#pragma once
#include "plan.hpp"
#include "simd.hpp"

namespace anypool {
namespace {

// One step of a transpose by halves: lanes whose index has bit S go where those of the partner row come from.
template <class T, int B, int S>
struct Swap {
  using V = Vec<T, B>;
  template <int... I>
  static ANYPOOL_INLINE V low(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I & S ? B + I - S : I)...);
  }
  template <int... I>
  static ANYPOOL_INLINE V high(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I & S ? B + I : I + S)...);
  }
  static ANYPOOL_INLINE void run(V* v) {
    for (int i = 0; i < B; ++i) {
      if (i & S) continue;
      const V a = v[i], b = v[i + S];
      v[i] = low(a, b, typename MakeIndices<B>::type{});
      v[i + S] = high(a, b, typename MakeIndices<B>::type{});
    }
    if constexpr (S > 1) Swap<T, B, S / 2>::run(v);
  }
};

template <class T, int B>
ANYPOOL_INLINE void transpose_block(T* dst, i64 dst_pitch, const T* src, i64 src_pitch) {
  Vec<T, B> v[B];
  for (int i = 0; i < B; ++i) v[i] = load<Vec<T, B>>(src + i * src_pitch);
  Swap<T, B, B / 2>::run(v);
  for (int i = 0; i < B; ++i) store(dst + i * dst_pitch, v[i]);
}

// dst[c][r] = src[r][c] for r < rows, c < cols. Blocks at the end overlap those before, so that none is cut.
template <class T, int B>
void transpose_blocks(T* dst, i64 dst_pitch, const T* src, i64 src_pitch, i64 rows, i64 cols) {
  if constexpr (B == 1) {
    for (i64 r = 0; r < rows; ++r)
      for (i64 c = 0; c < cols; ++c) dst[c * dst_pitch + r] = src[r * src_pitch + c];
  } else {
    if (rows < B || cols < B) return transpose_blocks<T, B / 2>(dst, dst_pitch, src, src_pitch, rows, cols);
    for (i64 r0 = 0; r0 < rows; r0 += B) {
      const i64 r = r0 + B <= rows ? r0 : rows - B;
      for (i64 c0 = 0; c0 < cols; c0 += B) {
        const i64 c = c0 + B <= cols ? c0 : cols - B;
        transpose_block<T, B>(dst + c * dst_pitch + r, dst_pitch, src + r * src_pitch + c, src_pitch);
      }
    }
  }
}
template <class T>
void transpose(char* dst, i64 dst_pitch, const char* src, i64 src_pitch, i64 rows, i64 cols) {
  constexpr int B = kLanes<T> < 16 ? kLanes<T> : 16;
  transpose_blocks<T, B>(reinterpret_cast<T*>(dst), dst_pitch, reinterpret_cast<const T*>(src), src_pitch, rows, cols);
}
inline void transpose(i64 bytes, char* dst, i64 dst_pitch, const char* src, i64 src_pitch, i64 rows, i64 cols) {
  switch (bytes) {
    case 1: return transpose<uint8_t>(dst, dst_pitch, src, src_pitch, rows, cols);
    case 2: return transpose<uint16_t>(dst, dst_pitch, src, src_pitch, rows, cols);
    case 4: return transpose<uint32_t>(dst, dst_pitch, src, src_pitch, rows, cols);
    default: return transpose<uint64_t>(dst, dst_pitch, src, src_pitch, rows, cols);
  }
}

}  // namespace
}  // namespace anypool
