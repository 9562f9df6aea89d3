// Merging rows: every pooling, of any rank and layout, is `merge_rows` over rows that lie somewhere else.
#pragma once
#include "plan.hpp"
#include "reductions.hpp"

namespace anypool {
namespace {

// The order of summation is a function of the window alone: n taps are the merge of the first h and the other n - h,
// h the largest power of two below n. Both a sliding window (by doubling) and a stream (by carries) can follow it.
ANYPOOL_INLINE i64 split_point(i64 n) { return i64(1) << (63 - __builtin_clzll(uint64_t(n - 1))); }

// N sources as a kernel reads them.
template <class Op, int N>
struct Taps {
  const char *a[N], *b[N];
  i64 add[N];
  ANYPOOL_INLINE explicit Taps(const Source* s) {
    for (int n = 0; n < N; ++n) {
      a[n] = s[n].a;
      if constexpr (Op::kPair) b[n] = s[n].b, add[n] = s[n].add;
    }
  }
  ANYPOOL_INLINE void next_row(const Source* s) {
    for (int n = 0; n < N; ++n) {
      a[n] += s[n].pitch * i64(sizeof(typename Op::A));
      if constexpr (Op::kPair)
        if (b[n]) b[n] += s[n].pitch * i64(sizeof(typename Op::B));
    }
  }
  // Taps [From, From + M) at column i.
  template <int From, int M, int L>
  ANYPOOL_INLINE typename Op::template State<L> merge(i64 i) const {
    if constexpr (M == 1) {
      if constexpr (Op::kPair)
        return Op::template get<L>(a[From], b[From], add[From], i);
      else
        return Op::template get<L>(a[From], nullptr, 0, i);
    } else {
      constexpr int h = M > 4 ? 4 : M > 2 ? 2 : 1;
      return Op::template merge<L>(merge<From, h, L>(i), merge<From + h, M - h, L>(i));
    }
  }
  template <int L>
  ANYPOOL_INLINE typename Op::template State<L> at(i64 i) const {
    return merge<0, N, L>(i);
  }
};

// A row shorter than a vector takes a shorter vector; the last vector of a row overlaps the one before, so there is no
// scalar tail. dst must not overlap the sources.
template <class Op, int N, int L>
ANYPOOL_INLINE void merge_span(const Row& dst, i64 at, const Taps<Op, N>& taps, i64 width) {
  if (width >= L) {
    i64 i = 0;
    for (; i + L <= width; i += L) Op::template put<L>(dst, at + i, taps.template at<L>(i));
    if (i < width) Op::template put<L>(dst, at + width - L, taps.template at<L>(width - L));
  } else if constexpr (L > 1) {
    merge_span<Op, N, L / 2>(dst, at, taps, width);
  }
}

template <class Op, int N>
__attribute__((noinline)) void merge_n(Row dst, i64 dst_pitch, const Source* sources, i64 rows, i64 width) {
  Taps<Op, N> taps(sources);
  for (i64 r = 0; r < rows; ++r) {
    merge_span<Op, N, Op::kMaxLanes>(dst, r * dst_pitch, taps, width);
    taps.next_row(sources);
  }
}

constexpr int kLeaf = 5;  // rows merged in registers at once

template <class Op>
void merge_rows(Row dst, i64 dst_pitch, const Source* sources, int n, i64 rows, i64 width) {
  switch (n) {
    case 1: return merge_n<Op, 1>(dst, dst_pitch, sources, rows, width);
    case 2: return merge_n<Op, 2>(dst, dst_pitch, sources, rows, width);
    case 3: return merge_n<Op, 3>(dst, dst_pitch, sources, rows, width);
    case 4: return merge_n<Op, 4>(dst, dst_pitch, sources, rows, width);
    default: return merge_n<Op, 5>(dst, dst_pitch, sources, rows, width);
  }
}

// The same, de-interleaved on the way out: column i goes to (q + i) / 2 of `even` or `odd`, as q + i is.
template <class Op, int N, int L>
ANYPOOL_INLINE void split_span(const Row& even, const Row& odd, const Taps<Op, N>& taps, i64 width) {
  if constexpr (L == 1) {
    for (i64 i = 0; i < width; ++i) Op::template put<1>(i & 1 ? odd : even, i / 2, taps.template at<1>(i));
  } else {
    if (width < 2 * L) return split_span<Op, N, L / 2>(even, odd, taps, width);
    const auto step = [&](i64 i) {
      const auto l = taps.template at<L>(i), r = taps.template at<L>(i + L);
      typename Op::template State<L> e, o;
      e.a = Unzip<typename Op::A, L>::even(l.a, r.a), o.a = Unzip<typename Op::A, L>::odd(l.a, r.a);
      if constexpr (Op::kPair) {
        e.b = Unzip<typename Op::B, L>::even(l.b, r.b), o.b = Unzip<typename Op::B, L>::odd(l.b, r.b);
      }
      Op::template put<L>(even, i / 2, e);
      Op::template put<L>(odd, i / 2, o);
    };
    i64 i = 0;
    for (; i + 2 * L <= width; i += 2 * L) step(i);
    if (i == width) return;
    step((width - 2 * L) & ~i64(1));
    if (width & 1) Op::template put<1>(even, width / 2, taps.template at<1>(width - 1));
  }
}
template <class Op, int N>
__attribute__((noinline)) void split_n(Row even, Row odd, const Source* sources, i64 width) {
  split_span<Op, N, Op::kMaxLanes>(even, odd, Taps<Op, N>(sources), width);
}
template <class Op>
void merge_split(Row even, Row odd, const Source* sources, int n, i64 width) {
  switch (n) {
    case 1: return split_n<Op, 1>(even, odd, sources, width);
    case 2: return split_n<Op, 2>(even, odd, sources, width);
    case 3: return split_n<Op, 3>(even, odd, sources, width);
    case 4: return split_n<Op, 4>(even, odd, sources, width);
    default: return split_n<Op, 5>(even, odd, sources, width);
  }
}

// C vectors of columns of n rows, `step` bytes apart: the tree with its open branches like the digits of a binary counter.
// Many rows are read once, in the order in which they lie, and nothing is written but the result.
template <class Op, int L, int C>
ANYPOOL_INLINE void merge_tall(const Row& dst, const Source& first, i64 step, i64 unit, i64 n, i64 from, i64 width) {
  using State = typename Op::template State<L>;
  i64 at[C];
  for (int c = 0; c < C; ++c) at[c] = from + (c + 1) * L <= width ? from + c * L : width - L;
  const auto row = [&](i64 t, int c) {
    return Op::template get<L>(first.a + t * step, nullptr, first.add + t * unit, at[c]);
  };
  State open[40][C], sum[C];
  int depth = 0;
  i64 t = 0;
  for (i64 block = 0; t + 4 <= n; t += 4, ++block) {
    State s[C], u[C];  // in the order in which rows lie
    for (int c = 0; c < C; ++c) s[c] = row(t, c);
    for (int c = 0; c < C; ++c) s[c] = Op::template merge<L>(s[c], row(t + 1, c));
    for (int c = 0; c < C; ++c) u[c] = row(t + 2, c);
    for (int c = 0; c < C; ++c) s[c] = Op::template merge<L>(s[c], Op::template merge<L>(u[c], row(t + 3, c)));
    for (i64 carry = block; carry & 1; carry >>= 1) {
      --depth;
      for (int c = 0; c < C; ++c) s[c] = Op::template merge<L>(open[depth][c], s[c]);
    }
    for (int c = 0; c < C; ++c) open[depth][c] = s[c];
    ++depth;
  }
  const i64 rest = n - t;
  for (int c = 0; c < C; ++c) {
    int d = depth;
    if (rest == 0) {
      sum[c] = open[--d][c];
    } else {
      sum[c] = row(t, c);
      if (rest > 1) sum[c] = Op::template merge<L>(sum[c], row(t + 1, c));
      if (rest > 2) sum[c] = Op::template merge<L>(sum[c], row(t + 2, c));
    }
    while (d > 0) sum[c] = Op::template merge<L>(open[--d][c], sum[c]);
    Op::template put<L>(dst, at[c], sum[c]);
  }
}
template <class Op, int L>
void tall_span(const Row& dst, const Source& first, i64 step, i64 unit, i64 n, i64 width) {
  if (width >= L) {
    for (i64 i = 0; i < width;) {
      const i64 left = (width - i + L - 1) / L;
      if (left >= 4) {
        merge_tall<Op, L, 4>(dst, first, step, unit, n, i, width);
        i += 4 * L;
      } else {
        merge_tall<Op, L, 1>(dst, first, step, unit, n, i, width);
        i += L;
      }
    }
  } else if constexpr (L > 1) {
    tall_span<Op, L / 2>(dst, first, step, unit, n, width);
  }
}
template <class Op>
void merge_tall_rows(Row dst, const Source& first, i64 step, i64 unit, i64 n, i64 width) {
  tall_span<Op, Op::kMaxLanes>(dst, first, step, unit, n, width);
}

template <class T>
void fill(char* p, i64 n, T value) {
  T* out = reinterpret_cast<T*>(p);
  for (i64 i = 0; i < n; ++i) out[i] = value;
}

// A reduction as the engine sees it.
struct Kernel {
  i64 a_bytes, b_bytes;  // size of the components of a state; b_bytes 0: there is one
  bool coded;            // b is the winner's offset in the window
  bool idempotent;       // taps may be merged twice
  // dst[r][0..width) = merge of sources[0..n)[r][0..width), n <= kLeaf; dst_pitch and width in elements.
  void (*merge)(Row dst, i64 dst_pitch, const Source* sources, int n, i64 rows, i64 width);
  // The same for one row, its even columns into one row and its odd ones into another.
  void (*merge_split)(Row even, Row odd, const Source* sources, int n, i64 width);
  // One row: the merge of n plain rows `step` bytes apart, whose codes are `unit` apart.
  void (*merge_tall)(Row dst, const Source& first, i64 step, i64 unit, i64 n, i64 width);
  // dst[i] = merge of src[2 i] and src[2 i + 1], i < n; reads and writes up to two vectors more.
  void (*halve)(Row dst, Row src, i64 n);
  void (*identity)(Row dst, i64 from, i64 to);
  // One state: taps [lo, lo + n) of a window whose tap t lies at line[t * step], those outside [first, last) being absent.
  void (*run)(Row dst, Source line, i64 step, i64 lo, i64 n, i64 first, i64 last);
};

template <class Op>
void fill_identity(Row r, i64 from, i64 to) {
  if (to <= from) return;
  auto id = Op::identity();
  fill(r.a + from * i64(sizeof(typename Op::A)), to - from, id.a);
  if constexpr (Op::kPair) fill(r.b + from * i64(sizeof(typename Op::B)), to - from, id.b);
}

// 2 L columns that are neighbours become L: the next level of the tree.
template <class Op, int L>
ANYPOOL_INLINE typename Op::template State<L> merge_neighbours(typename Op::template State<L> l,
                                                               typename Op::template State<L> r) {
  typename Op::template State<L> even, odd;
  even.a = Unzip<typename Op::A, L>::even(l.a, r.a), odd.a = Unzip<typename Op::A, L>::odd(l.a, r.a);
  if constexpr (Op::kPair) {
    even.b = Unzip<typename Op::B, L>::even(l.b, r.b), odd.b = Unzip<typename Op::B, L>::odd(l.b, r.b);
  }
  return Op::template merge<L>(even, odd);
}
template <class Op>
void halve_row(Row dst, Row src, i64 n) {
  constexpr int L = Op::kMaxLanes;
  for (i64 i = 0; i < n; i += L)
    Op::template put<L>(dst, i,
                        merge_neighbours<Op, L>(Op::template get<L>(src.a, src.b, 0, 2 * i),
                                                Op::template get<L>(src.a, src.b, 0, 2 * i + L)));
}
// N * L neighbouring columns, N a power of two, as one vector of partial trees, in order.
template <class Op, int N, int L>
ANYPOOL_INLINE typename Op::template State<L> merge_block(const Source& s, i64 i) {
  if constexpr (N == 1)
    return Op::template get<L>(s.a, s.b, s.add, i);
  else
    return merge_neighbours<Op, L>(merge_block<Op, N / 2, L>(s, i), merge_block<Op, N / 2, L>(s, i + N / 2 * L));
}
// What is left when all lanes are merged.
template <class Op, int L>
ANYPOOL_INLINE typename Op::template State<1> first_of(typename Op::template State<L> v) {
  for (int left = L; left > 1; left /= 2) v = merge_neighbours<Op, L>(v, v);
  if constexpr (Op::kPair)
    return {v.a[0], v.b[0]};
  else
    return {v.a[0]};
}

template <class Op>
typename Op::template State<1> merge_run(const Source& line, i64 step, i64 lo, i64 n, i64 first, i64 last) {
  if (lo + n <= first || lo >= last) return Op::identity();
  if (n == 1) {
    return Op::template get<1>(line.a, line.b, line.add + lo, lo * step);
  }
  constexpr int L = Op::kMaxLanes > 16 ? 16 : Op::kMaxLanes;
  if constexpr (!Op::kCoded) {
    if (step == 1 && lo >= first && lo + n <= last) {
      if (n == 4 * L) return first_of<Op, L>(merge_block<Op, 4, L>(line, lo));
      if (n == L) return first_of<Op, L>(Op::template get<L>(line.a, line.b, line.add, lo));
      if constexpr (L >= 16)
        if (n == 8) return first_of<Op, 8>(Op::template get<8>(line.a, line.b, line.add, lo));
      if constexpr (L >= 8)
        if (n == 4) return first_of<Op, 4>(Op::template get<4>(line.a, line.b, line.add, lo));
    }
  }
  const i64 half = split_point(n);
  return Op::template merge<1>(merge_run<Op>(line, step, lo, half, first, last),
                               merge_run<Op>(line, step, lo + half, n - half, first, last));
}
template <class Op>
void put_run(Row dst, Source line, i64 step, i64 lo, i64 n, i64 first, i64 last) {
  Op::template put<1>(dst, 0, merge_run<Op>(line, step, lo, n, first, last));
}

template <class Op>
constexpr Kernel kKernel = {sizeof(typename Op::A),
                            Op::kPair ? sizeof(typename Op::B) : 0,
                            Op::kCoded,
                            Op::kIdempotent,
                            merge_rows<Op>,
                            merge_split<Op>,
                            merge_tall_rows<Op>,
                            halve_row<Op>,
                            fill_identity<Op>,
                            put_run<Op>};

}  // namespace
}  // namespace anypool
