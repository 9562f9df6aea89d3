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
    return convert<Vec<double, L>>(load_as<T, float, L>(p));
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
struct Columns {
  i64 begin, end;
};
// f(c, how many) over columns of rows: vectors, then single elements. Every element is treated alike, so that the length of
// a vector changes no bit.
template <class A, class F>
ANYPOOL_INLINE void over_columns(Columns columns, F&& f) {
  constexpr int L = kLanes<A>;
  i64 c = columns.begin;
  for (; c + L <= columns.end; c += L) f(c, Width<L>{});
  for (; c < columns.end; ++c) f(c, Width<1>{});
}
// f(c, elements from c on, how many) over a row.
template <class A, class T, class F>
ANYPOOL_INLINE void over_row(const T* x, i64 n, F&& f) {
  over_columns<A>({0, n}, [&](i64 c, auto k) { f(c, load_as<T, A, decltype(k)::n>(x + c), k); });
}
template <class A, int L>
ANYPOOL_INLINE Vec<A, L> at(const A* p, Width<L>) {
  return load<Vec<A, L>>(p);
}
template <class A, class V>
ANYPOOL_INLINE void put(A* p, V v) {
  store(p, v);
}

// A column's share of what follows R rows in memory: in all, the columns fetch the next R rows in the order in which they
// lie there. Of rows read side by side the processor's own prefetchers see no stream.
template <int R, int L, class T>
ANYPOOL_INLINE void fetch(const T* next, i64 c) {
  if (!next) return;
  for (i64 k = 0; k < R * L; k += 64 / i64(sizeof(T))) __builtin_prefetch(next + R * c + k);
}
// The order of lanes is that of sixteen whatever the level: part of what defines a score.
template <int L, class A>
ANYPOOL_INLINE A sum_of_lanes(const Vec<A, L>& v) {
  if constexpr (L == 1) {
    return v;
  } else if constexpr (L == 2) {
    return v[0] + v[1];
  } else {
    Vec<A, L / 2> halves[2];
    __builtin_memcpy(halves, &v, sizeof v);
    return sum_of_lanes<L / 2, A>(halves[0] + halves[1]);
  }
}
// The products of R rows with q. They are read side by side, so that one is not waited for before the next is begun.
template <int R, class A, class T>
ANYPOOL_INLINE void dots(const T* const* x, const T* next, const A* q, i64 n, A* y) {
  using V = Vec<A, 16>;
  V sum[R] = {};
  i64 c = 0;
  for (; c + 16 <= n; c += 16) {
    const V by = load<V>(q + c);
    fetch<R, 16>(next, c);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r] += load_as<T, A, 16>(x[r] + c) * by;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (c < n) {
      V a = {}, b = {};
      for (i64 i = 0; c + i < n; ++i) a[i] = A(widen(x[r][c + i])), b[i] = q[c + i];
      sum[r] += a * b;
    }
    y[r] = sum_of_lanes<16, A>(sum[r]);
  }
}
template <class A, class T>
ANYPOOL_INLINE A dot(const T* x, const A* q, i64 n) {
  A y;
  dots<1>(&x, static_cast<const T*>(nullptr), q, n, &y);
  return y;
}

// exp(x - top), where top is one of the x: 1 for the top itself, an infinity too.
template <int L>
ANYPOOL_INLINE Vec<double, L> exp_below(Vec<double, L> x, Vec<double, L> top) {
  return exp_of<L>(x == top ? Vec<double, L>{} : x - top);
}

// y[c] = f(c) for n columns. Halves are rounded from floats, whatever the sums are kept in.
template <class F>
void write_row(DType out, void* y, i64 n, F&& f) {
  const auto halves = [&](auto* to) {
    for (i64 c = 0; c < n; ++c) narrow(to[c], float(f(c)));
  };
  const auto floats = [&](auto* to) {
    for (i64 c = 0; c < n; ++c) narrow(to[c], f(c));
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
  i64 step;    // between the rows of a whole chunk, in elements; 0 if they are not equally far apart, or too long
  bool ahead;  // whether rows that follow one another in memory are to be fetched before they are read

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
  // Whether the L1 cache holds a chunk and the one that is fetched meanwhile.
  bool narrow() const { return kChunk * width_ * i64(sizeof(T)) <= (24 << 10); }
  bool in_order() const { return row_ == width_ && col_ == 1; }
  void next(i64 n) {
    const bool fits = n == kChunk && narrow();
    step = !fits ? 0 : gathered_ ? width_ : at_ + n <= runs_.count[run_] ? row_ : 0;
    ahead = in_order();
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
  // What follows the first n rows in memory, if that is to be fetched.
  const T* behind(i64 n) const { return ahead ? row[n - 1] + width_ : nullptr; }
};

// What merge(merged so far, lift(elements, how many, row)) makes of R rows of a chunk, from row i and column c on. `last`:
// then end(merged, column, how many), too.
template <int R, class V, class T, class Lift, class M, class End>
ANYPOOL_INLINE void merge_some(V* a, const Reader<T>& x, i64 i, bool last, Columns columns, Lift& lift, M& merge,
                               End& end) {
  const T* const* rows = x.row + i;
  const T* next = x.behind(i + R);
  over_columns<V>(columns, [&](i64 c, auto k) {
    constexpr int L = decltype(k)::n;
    if constexpr (L > 1) fetch<R, L>(next, c);
    auto s = lift(load_as<T, V, L>(rows[0] + c), k, i);
    if (i) s = merge(at(a + c, k), s);
#pragma GCC unroll 4
    for (int r = 1; r < R; ++r) s = merge(s, lift(load_as<T, V, L>(rows[r] + c), k, i + r));
    put(a + c, last ? end(s, c, k) : s);
  });
}
// The same of all n rows of a chunk: four at a time, or sixteen that lie `step` apart, for which three addresses are enough.
template <class V, class T, class Lift, class M, class End>
ANYPOOL_INLINE void merge_rows(V* a, const Reader<T>& x, i64 n, Columns columns, Lift&& lift, M&& merge, End&& end) {
  i64 i = 0;
  if (x.step) {
    constexpr int L = kLanes<V>;
    const i64 step = x.step;
    i64 c = columns.begin;
    const T *p = x.row[0] + c, *p5 = x.row[5] + c, *p10 = x.row[10] + c, *next = x.behind(kChunk);
    for (; c + L <= columns.end; c += L, p += L, p5 += L, p10 += L) {
      fetch<kChunk, L>(next, c);
      auto s = lift(load_as<T, V, L>(p), Width<L>{}, 0);
#pragma GCC unroll 16
      for (int r = 1; r < int(kChunk); ++r) {
        const T* q = (r < 5 ? p : r < 10 ? p5 : p10) + (r < 15 ? r % 5 : 5) * step;
        s = merge(s, lift(load_as<T, V, L>(q), Width<L>{}, r));
      }
      put(a + c, end(s, c, Width<L>{}));
    }
    if (c == columns.end) return;
    columns.begin = c;
  }
  for (; i + 4 <= n; i += 4) merge_some<4>(a, x, i, i + 4 == n, columns, lift, merge, end);
  for (; i < n; ++i) merge_some<1>(a, x, i, i + 1 == n, columns, lift, merge, end);
}

}  // namespace
}  // namespace anypool
