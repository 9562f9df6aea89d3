// Reading ahead, and looking for NaNs.
#pragma once
#include "elements.hpp"

namespace anypool {
namespace {

// A window walks several rows side by side, a pattern in which the prefetchers of today's processors see no stream: from
// memory it is two to three times slower than the same bytes one after the other. So what comes a page later is read in
// the order in which it lies, a load per cache line.
constexpr i64 kPage = 4096;  // bytes, beyond which prefetchers do not look
ANYPOOL_INLINE void read_ahead(const char* from, i64 n, const char* limit) {
  const char* end = from + n < limit ? from + n : limit;
  for (; from < end; from += 64) {
#if defined(__x86_64__)
    asm volatile("movb %0, %%al" ::"m"(*from) : "al");  // a prefetch would be dropped when many are under way
#else
    __builtin_prefetch(from);
#endif
  }
}

// How far reading ahead may go from the plane at x on: if its elements follow one another, to its end, or to that of the
// array if its planes do so too; else nowhere.
inline const char* readable_end(const Plan& p, const Buffers& buffers, const char* x) {
  const i64 row = p.axis[2].n_in * p.inner, plane = row * p.axis[1].n_in;
  const bool dense = (p.inner == 1 || p.x_stride[3] == 1) && (p.axis[2].n_in == 1 || p.x_stride[2] == p.inner) &&
                     (p.axis[1].n_in == 1 || p.x_stride[1] == row) && (p.axis[0].n_in == 1 || p.x_stride[0] == plane);
  if (!dense) return nullptr;
  i64 n = p.axis[0].n_in * plane;
  const char* plane_end = x + n * size_of(p.in);
  for (int a = p.n_outer; a > 0; n *= p.outer[--a])
    if (p.outer[a - 1] > 1 && p.x_outer[a - 1] != n) return plane_end;
  return static_cast<const char*>(buffers.x) + n * size_of(p.in);
}

// Whether a NaN was among the vectors seen.
template <class A, int L>
struct NaNs {
  using V = Vec<A, L>;
#if defined(__AVX512F__)
  __mmask16 found = 0;
  ANYPOOL_INLINE void see(V a, V b) {
    if constexpr (sizeof(A) == 4)
      found = _kor_mask16(found, _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q));
    else
      found = _kor_mask16(found, _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_UNORD_Q));
  }
  bool any() const { return found != 0; }
#else
  decltype(V{} != V{}) found = V{} != V{};
  ANYPOOL_INLINE void see(V a, V b) { found |= (a != a) | (b != b); }
  bool any() const {
    bool any = false;
    for (int i = 0; i < L; ++i) any |= found[i] != 0;
    return any;
  }
#endif
};

// The same for n elements in a row.
using HasNaN = bool (*)(const char* from, i64 n);
template <class T>
bool has_nan(const char* from, i64 n) {
  const T* p = reinterpret_cast<const T*>(from);
  bool any = false;
  for (i64 i = 0; i < n; ++i) {
    const auto v = widen(p[i]);
    any |= v != v;
  }
  return any;
}
inline HasNaN has_nan_of(DType t) {
  switch (t) {
    case DType::f16: return has_nan<f16>;
    case DType::bf16: return has_nan<bf16>;
    case DType::f32: return has_nan<float>;
    case DType::f64: return has_nan<double>;
    default: return nullptr;
  }
}

}  // namespace
}  // namespace anypool
