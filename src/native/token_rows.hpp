// Rows of tokens as vectors of the type they are added in, whatever type and stride they have in memory.
#pragma once
#include "exponential.hpp"
#include "lanes.hpp"
#include "scratch.hpp"
#include "token_plan.hpp"

namespace anypool {
namespace {

template <class T>
struct SumOf {  // the type in which tokens are added
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

// L elements as A; L == 1 is a plain number.
template <class T, class A, int L>
ANYPOOL_INLINE Vec<A, L> load_as(const T* p) {
  if constexpr (L == 1) {
    return A(widen(*p));
  } else if constexpr (kSame<A, double> && !kSame<T, double>) {
    return __builtin_convertvector(load_as<T, float, L>(p), Vec<double, L>);
#if defined(__AVX512F__)
  } else if constexpr (kSame<T, f16> && L == 16) {  // in one: what is put together in memory waits for its halves
    return (Vec<A, L>)_mm512_maskz_cvtph_ps(__mmask16(-1), load<__m256i>(p));
#elif defined(__F16C__)
  } else if constexpr (kSame<T, f16> && L == 16) {
    const __m256 halves[] = {_mm256_cvtph_ps(load<__m128i>(p)), _mm256_cvtph_ps(load<__m128i>(p + 8))};
    return load<Vec<A, L>>(halves);
#endif
#if defined(__F16C__)
  } else if constexpr (kSame<T, f16> && L == 8) {
    return (Vec<A, L>)_mm256_cvtph_ps(load<__m128i>(p));
#endif
  } else if constexpr (kSame<T, f16>) {
    Vec<A, L> v;
    for (int i = 0; i < L; ++i) v[i] = widen(p[i]);
    return v;
  } else {
    return Numbers<T, A, L>::wide(load<typename Numbers<T, A, L>::Raw>(p));
  }
}

template <int L>
struct Width {
  static constexpr int n = L;
};
// f(c, elements from c on, how many) over a row: vectors, then single elements. Every element is treated alike, so that
// the length of a vector changes no bit.
// Meanwhile what lies `ahead` elements further on is fetched, if that is not 0.
template <class A, class T, class F>
ANYPOOL_INLINE void over_row(const T* x, i64 n, F&& f, i64 ahead = 0) {
  constexpr int L = kLanes<A>;
  i64 c = 0;
  for (; c + L <= n; c += L) {
    if (ahead) __builtin_prefetch(x + c + ahead);
    f(c, load_as<T, A, L>(x + c), Width<L>{});
  }
  for (; c < n; ++c) f(c, load_as<T, A, 1>(x + c), Width<1>{});
}
// The same over four rows that are added up together: f(c, four times elements, how many). `next`, if not null, is where
// the reading goes on after them: it is fetched meanwhile, in the order of memory.
template <class A, class T, class F>
ANYPOOL_INLINE void over_four_rows(const T* const* x, i64 n, const T* next, F&& f) {
  constexpr int L = kLanes<A>;
  constexpr i64 kLine = 64 / i64(sizeof(T));
  const T *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3];
  i64 c = 0;
  for (; c + L <= n; c += L) {
    if (next)
      for (i64 k = 0; k < 4 * L; k += kLine) __builtin_prefetch(next + 4 * c + k);
    f(c, load_as<T, A, L>(x0 + c), load_as<T, A, L>(x1 + c), load_as<T, A, L>(x2 + c), load_as<T, A, L>(x3 + c),
      Width<L>{});
  }
  for (; c < n; ++c)
    f(c, load_as<T, A, 1>(x0 + c), load_as<T, A, 1>(x1 + c), load_as<T, A, 1>(x2 + c), load_as<T, A, 1>(x3 + c),
      Width<1>{});
}
template <class A, int L>
ANYPOOL_INLINE Vec<A, L> at(const A* p, Width<L>) {
  return load<Vec<A, L>>(p);
}
template <class A, class V>
ANYPOOL_INLINE void put(A* p, V v) {
  store(p, v);
}

// The order of lanes is that of sixteen whatever the level: part of what defines a score.
template <class A, class T>
ANYPOOL_INLINE A dot(const T* x, const A* q, i64 n) {
  using V = Vec<A, 16>;
  V sum = {};
  i64 c = 0;
  for (; c + 16 <= n; c += 16) sum += load_as<T, A, 16>(x + c) * load<V>(q + c);
  if (c < n) {
    V a = {}, b = {};
    for (i64 i = 0; c + i < n; ++i) a[i] = A(widen(x[c + i])), b[i] = q[c + i];
    sum += a * b;
  }
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

// exp(x - top), where top is one of the x: 1 for the top itself, an infinity too.
template <int L>
ANYPOOL_INLINE Vec<double, L> exp_below(Vec<double, L> x, Vec<double, L> top) {
  return exp_of<L>(x == top ? Vec<double, L>{} : x - top);
}

// Halves are rounded from floats, whatever the sums are kept in.
template <class A>
void store_row(DType out, void* y, const A* row, i64 n) {
  const auto halves = [&](auto* to) {
    for (i64 c = 0; c < n; ++c) narrow(to[c], float(row[c]));
  };
  const auto floats = [&](auto* to) {
    for (i64 c = 0; c < n; ++c) narrow(to[c], row[c]);
  };
  switch (out) {
    case DType::f16: return halves(static_cast<f16*>(y));
    case DType::bf16: return halves(static_cast<bf16*>(y));
    case DType::f32: return floats(static_cast<float*>(y));
    default: return floats(static_cast<double*>(y));
  }
}
ANYPOOL_INLINE char* element(void* p, DType type, i64 i) { return static_cast<char*>(p) + i * size_of(type); }

// The rows of an output, sixteen at a time.
template <class T>
class Reader {
  const Runs& runs_;
  const T* x_;
  const i64* offset_;
  i64 row_, col_;
  i64 run_, at_ = 0;
  T* gathered_;  // kChunk rows, for elements that do not lie side by side
  i64 width_;

 public:
  const T* row[kChunk];
  i64 flat[kChunk];

  // Elements [column, column + width) of each row.
  Reader(const Runs& runs, const void* x, const i64* offset, i64 row, i64 col, i64 column, i64 width, Arena& arena)
      : runs_(runs),
        x_(static_cast<const T*>(x) + column * col),
        offset_(offset),
        row_(row),
        col_(col),
        run_(0),
        width_(width) {
    gathered_ = col == 1 || width == 1 ? nullptr : arena.take_array<T>(kChunk * width);
  }
  // Start at token `first` of an output.
  void seek(i64 output, i64 first) {
    for (run_ = runs_.bounds[output]; run_ < runs_.bounds[output + 1] && first >= runs_.count[run_]; ++run_)
      first -= runs_.count[run_];
    at_ = first;
  }
  void next(i64 n) {
    for (i64 i = 0; i < n; ++i) {
      while (at_ >= runs_.count[run_]) ++run_, at_ = 0;
      row[i] = x_ + offset_[run_] + at_ * row_;
      flat[i] = runs_.flat[run_] + at_;
      ++at_;
    }
    if (!gathered_) return;
    for (i64 i = 0; i < n; ++i) {
      T* to = gathered_ + i * width_;
      for (i64 c = 0; c < width_; ++c) to[c] = row[i][c * col_];
      row[i] = to;
    }
  }
};

}  // namespace
}  // namespace anypool
