// What a kernel does to rows before it merges them: reads them in order, and looks for NaNs.
#pragma once
#include "lanes.hpp"

namespace anypool {
namespace {

// A window walks several rows side by side, a pattern in which the prefetchers of today's processors see no stream: from
// memory it takes twice as long as the same bytes one after the other. So rows are first read in the order in which they
// lie, a load per cache line. Rows longer than a page, beyond which prefetchers do not look, do not need it.
//
// Each such load waits for memory, unless its line was asked for a page earlier: in the time that a page takes to be merged
// it has come. (What lies a page further need not exist: asking is no access.)
constexpr i64 kPage = 4096;
ANYPOOL_INLINE void ask_for(const void* row, i64 bytes) {
#pragma GCC unroll 4
  for (i64 i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(row) + kPage + i);
}
// What is read a page later: so many bytes further, and beyond the end of a plane as many more as there are up to the next.
struct Ahead {
  i64 by = kPage;
  const char* end = nullptr;  // if the planes have gaps
  i64 gap = 0;
  ANYPOOL_INLINE const char* of(const char* p) const {
    p += by;
    return end && p >= end ? p + gap : p;
  }
};
ANYPOOL_INLINE void touch([[maybe_unused]] const char* p) {
#if defined(__x86_64__)
  asm volatile("movzbl %0, %%eax" ::"m"(*p) : "eax");  // a prefetch would be dropped when many are under way
#endif
}
ANYPOOL_INLINE void read_in_order(const void* row, i64 bytes, const Ahead& ahead = {}) {
  const char *p = static_cast<const char*>(row), *next = ahead.of(p);
#pragma GCC unroll 4
  for (i64 i = 0; i < bytes; i += 64) {
    __builtin_prefetch(next + i);
    touch(p + i);
  }
  if (bytes > 0) touch(p + bytes - 1);  // the line where a row ends, if it begins in the middle of one
}

// Whether no cache is to be counted on to hold the input.
inline bool beyond_caches(const Plan& p) {
  constexpr i64 kCached = 4 << 20;  // bytes
  return elements_of(p, &Axis::n_in) * size_of(p.in) > kCached;
}

// The last S of the KH rows on each d, at once if they follow one another, with a line between them at most.
template <class T, int KD, int KH, int S>
__attribute__((noinline)) void read_new_rows(const T* const* rows, i64 cols, const Ahead& ahead) {
  constexpr int kNew = S < KH ? S : KH;
  const i64 bytes = cols * i64(sizeof(T));
  const auto from_to = [](const T* a, const T* b) { return reinterpret_cast<i64>(b) - reinterpret_cast<i64>(a); };
  for (int d = 0; d < KD; ++d, rows += KH) {
    const T* first = rows[KH - kNew];
    bool follow = true;
    for (int i = KH - kNew + 1; i < KH; ++i) {
      const i64 gap = from_to(rows[i - 1], rows[i]) - bytes;
      follow &= gap >= 0 && gap <= 64;
    }
    if (follow)
      read_in_order(first, from_to(first, rows[KH - 1]) + bytes, ahead);
    else
      for (int i = KH - kNew; i < KH; ++i) read_in_order(rows[i], bytes, ahead);
  }
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
    asm("" : "+k"(found));  // GCC would carry it in a general register: 8 cycles a round, there and back
  }
  void add(const NaNs& other) { found = __mmask16(found | other.found); }  // where GCC likes to
  bool any() const { return found != 0; }
#else
  decltype(V{} != V{}) found = V{} != V{};
  ANYPOOL_INLINE void see(V a, V b) { found |= either_nan(a, b); }
  void add(const NaNs& other) { found |= other.found; }
  bool any() const {
#if defined(__AVX2__)
    if constexpr (sizeof(V) == 32) return _mm256_movemask_epi8((__m256i)found) != 0;
#endif
    bool any = false;
    for (int i = 0; i < L; ++i) any |= found[i] != 0;
    return any;
  }
#endif
};

// The same for n elements in a row.
using HasNaN = bool (*)(const char* from, i64 n);
template <class T, class A>
bool has_nan(const char* from, i64 n) {
  constexpr int L = kLanes<A>;
  using Memory = Lanes<T, A, L>;
  const T* p = reinterpret_cast<const T*>(from);
  NaNs<A, L> nan;
  i64 i = 0;
  for (; i + 2 * L <= n; i += 2 * L) nan.see(Memory::load(p + i), Memory::load(p + i + L));
  for (; i < n; i += L) {
    const auto v = Memory::load_part(p + i, Part({0, lower(n - i, L)}), Vec<A, L>{});
    nan.see(v, v);
  }
  return nan.any();
}
inline HasNaN has_nan_of(DType t) {
  switch (t) {
#if defined(__F16C__)
    case DType::f16: return has_nan<f16, float>;
#endif
    case DType::bf16: return has_nan<bf16, float>;
    case DType::f32: return has_nan<float, float>;
    case DType::f64: return has_nan<double, double>;
    default: return nullptr;
  }
}

}  // namespace
}  // namespace anypool
