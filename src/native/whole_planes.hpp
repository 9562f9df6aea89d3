// Windows that tile planes which are not large: global pooling, and adaptive pooling where bins are alike. The rows of a
// window, all across the plane, are a block. It is read once, a few rows at a time, whose columns are merged as vectors;
// then columns are merged by halving, those of several blocks at once: n columns padded to a power of two with absent ones
// are the engine's own tree. With a mask beside the planes, what does not count is absent, too.
#pragma once
#include "lanes.hpp"
#include "new_rows.hpp"
#include "planes_run.hpp"

namespace anypool {
namespace {

// What results are stored as: sums of bytes do not fit into bytes.
template <class T, class A>
struct ResultOf {
  using type = T;
};
template <>
struct ResultOf<uint8_t, int32_t> {
  using type = int32_t;
};

constexpr int kMostVectors = 32;  // in a row

// C vectors a row, or as many as it takes where C is 0. The last one may be partly behind the row's end.
template <class T, class A, class Fast, class Careful, int C, bool Masked>
class WholePlanes {
  // Rows merged at once: as many as there are registers for. From memory, rows longer than a vector or two come faster when
  // no more than two of them are read side by side.
  static constexpr int L = kLanes<A>, kRows = 8, kFarRows = C ? kRows : 2;
  static constexpr i64 kFar = 32 << 20;  // bytes that no cache holds
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;
  using Result = typename ResultOf<T, A>::type;
  using Results = Lanes<Result, A, L>;
  const Plan& p_;
  const Buffers* buffers_ = nullptr;
  const i64 rows_, cols_;  // of a block
  const i64 blocks_;       // of a plane
  const i64 outputs_;      // of a block
  const bool ahead_;       // the input is asked for before it is read
  const bool far_;
  const int vectors_;
  const int power_;     // of two, that they are padded to; windows must be at least as wide
  const int together_;  // blocks whose columns fill a vector when they are merged
  const Part last_;     // the lanes of the last vector
  // Where blocks lie: the step from each to the next one, if they are at equal distances, else -1; and up to where there
  // is something to read, from where the first one begins or else from where a block's plane does.
  struct Layout {
    const i64* outer;
    i64 step, end;
  };
  const Layout x_, mask_;
  // Planes of seven short rows, the last ones of most image classifiers, lie side by side in one vector. Behind the end of
  // a row lies the next one, or the next plane: so it is for all but the last planes.
  static constexpr bool kPairs = ANYPOOL_VECTOR_BYTES == 64 && C == 1 && kSame<T, A>;
  i64 paired_ = 0;  // planes for which that is so
  Part both_;

 public:
  WholePlanes(const Plan& p, Arena&)
      : p_(p),
        rows_(p.axis[1].n_in / p.axis[1].n_out),
        cols_(p.axis[2].n_in),
        blocks_(p.axis[1].n_out),
        outputs_(p.axis[2].n_out),
        ahead_(beyond_caches(p)),
        far_(elements_of(p, &Axis::n_in) * size_of(p.in) > kFar),
        vectors_(int(ceil_div(cols_, L))),
        power_(power_of(vectors_)),
        together_(outputs_ == 1 ? L : int(cols_ / outputs_ / power_)),
        last_(inside<L>((vectors_ - 1) * L, cols_)),
        x_(layout(p.x_outer)),
        mask_(Masked ? layout(p.aux_outer) : Layout{}) {
#if defined(__AVX512F__)
    const i64 plane = 7 * cols_;
    if (kPairs && rows_ == 7 && cols_ <= L / 2 && blocks_ == 1 && outputs_ == 1 && p.n_outer == 1 &&
        p.x_outer[0] == plane && (!Masked || p.aux_outer[0] == plane))
      paired_ = p.outer[0] - 1;
    both_.mask = last_.mask | last_.mask << L / 2;
#endif
  }
  // The lowest power of two that is not below n.
  static int power_of(i64 n) {
    int power = 1;
    while (power < n) power *= 2;
    return power;
  }

  void run(const Buffers& buffers, i64 begin, i64 end) {  // blocks of all planes
    buffers_ = &buffers;
    for (i64 block = begin; block < end; block += together_) {
      const i64 n = lower(together_, end - block);
      NaNs<A, L> nan;
      V v = first<Fast>(block, n, nan);
      if (nan.any()) v = group<Careful>(block, n, nan);
      store(block, n, v);
    }
  }

 private:
  struct Place {  // elements, and the mask of each of them
    const T* x;
    const uint8_t* mask;
    ANYPOOL_INLINE Place behind(i64 n) const { return {x + n, Masked ? mask + n : nullptr}; }
  };
  Layout layout(const i64* outer) const {
    const i64 block = rows_ * cols_, plane = blocks_ * block;
    if (p_.n_outer == 1 && (blocks_ == 1 ? outer[0] >= 0 : outer[0] == plane))
      return {outer, blocks_ == 1 ? outer[0] : block, (p_.outer[0] - 1) * outer[0] + plane};
    return {outer, -1, plane};
  }
  // A block in one of the arrays: where it begins, and how many elements there are to be read from there on.
  struct Begin {
    i64 at, left;
  };
  ANYPOOL_INLINE Begin begin_of(const Layout& l, i64 block) const {
    if (l.step >= 0) return {block * l.step, l.end - block * l.step};
    const i64 plane = block / blocks_, in_plane = (block - plane * blocks_) * rows_ * cols_;
    return {outer_offset(p_, l.outer, plane) + in_plane, l.end - in_plane};
  }
  ANYPOOL_INLINE int vectors() const { return C ? C : vectors_; }
  ANYPOOL_INLINE void ask(Place from, i64 n) const {
    ask_for(from.x, n * i64(sizeof(T)));
    if constexpr (Masked) ask_for(from.mask, n);
  }

  template <class Op>
  static ANYPOOL_INLINE V neighbours(V l, V r) {
    return Op::template merged<L>(Unzip<A, L>::even(l, r), Unzip<A, L>::odd(l, r));
  }
  static ANYPOOL_INLINE V none() { return splat<V>(Fast::identity().a); }

  template <class Op, int N>
  static ANYPOOL_INLINE V all_halved(const V* v) {
    if constexpr (N == 1)
      return v[0];
    else
      return neighbours<Op>(all_halved<Op, N / 2>(v), all_halved<Op, N / 2>(v + N / 2));
  }
  template <class Op>
  static ANYPOOL_INLINE void halve(V* v, int n) {
    for (int left = n; left > 1; left /= 2)
      for (int i = 0; i < left / 2; ++i) v[i] = neighbours<Op>(v[2 * i], v[2 * i + 1]);
  }

  template <class Op>
  ANYPOOL_INLINE V first(i64 block, i64 n, NaNs<A, L>& nan) const {
    if constexpr (kPairs)
      if (n == L && block + L <= paired_) return pairs(block, nan);
    return group<Op>(block, n, nan);
  }
  template <class E, int... I>
  static ANYPOOL_INLINE Vec<E, L> side_by_side(const E* x, const E* y, Indices<I...>) {
    using Half = Vec<E, L / 2>;
    return __builtin_shufflevector(anypool::load<Half>(x), anypool::load<Half>(y), I...);
  }
  // L planes, two and two.
  V pairs(i64 block, NaNs<A, L>& nan) const {
    const i64 cols = cols_, plane = 7 * cols;
    const typename MakeIndices<L>::type all;
    Place from = place(block * plane, block * plane);
    V v[L / 2];
    for (int i = 0; i < L / 2; ++i, from = from.behind(2 * plane)) {
      ask(from, 2 * plane);
      V row[7];
      for (int t = 0; t < 7; ++t) {
        const Place next = from.behind(t * cols);
        row[t] = side_by_side(next.x, next.x + plane, all);
        if constexpr (Masked)
          row[t] = LaneMask<A, L>::where_set(side_by_side(next.mask, next.mask + plane, all)).choose(row[t], none());
      }
      v[i] = only<A, L>(both_, seen_and_merged<Fast, 7>(row, nan), none());
    }
    return all_halved<Fast, L / 2>(v);
  }

  ANYPOOL_INLINE Place place(i64 x, i64 mask) const {
    return {static_cast<const T*>(buffers_->x) + x,
            Masked ? static_cast<const uint8_t*>(buffers_->aux) + mask : nullptr};
  }
  template <class Op>
  V group(i64 block, i64 n, NaNs<A, L>& nan) const {
    V v[L];
    if (C != 1 || !few_rows<Op>(block, n, v, nan))
      for (i64 i = 0; i < n; ++i) {
        const Rows rows = rows_of(block + i);
        v[i] = far_ ? columns<Op, kFarRows>(rows, nan) : columns<Op, kRows>(rows, nan);
      }
    for (i64 i = n; i < together_; ++i) v[i] = v[0];
    if (together_ == L) return all_halved<Op, L>(v);
    halve<Op>(v, together_);
    return v[0];
  }

  // Rows of a block that are left, and the elements from there on that there are to be read.
  struct Rows {
    Place from;
    i64 n, x, mask;
    ANYPOOL_INLINE void skip(i64 rows, i64 cols) {
      from = from.behind(rows * cols), n -= rows, x -= rows * cols;
      if constexpr (Masked) mask -= rows * cols;
    }
    ANYPOOL_INLINE bool hold(i64 elements) const { return elements <= x && (!Masked || elements <= mask); }
  };
  ANYPOOL_INLINE Rows rows_of(i64 block) const {
    const Begin x = begin_of(x_, block), mask = Masked ? begin_of(mask_, block) : Begin{};
    return {place(x.at, mask.at), rows_, x.left, mask.left};
  }

  // Blocks of rows so few and so short that they are merged in no time. Returns false if it is not for these.
  template <class Op>
  ANYPOOL_INLINE bool few_rows(i64 block, i64 n, V* v, NaNs<A, L>& nan) const {
    if (rows_ > kRows || x_.step < 0 || (Masked && mask_.step < 0) ||
        !rows_of(block + n - 1).hold((rows_ - 1) * cols_ + L))
      return false;
    const Place from = rows_of(block).from;
    with_number<kRows>(rows_, [&](auto rows) { few_rows<Op, decltype(rows)::value>(from, n, v, nan); });
    return true;
  }
  template <class Op, int N>
  ANYPOOL_INLINE void few_rows(Place from, i64 n, V* v, NaNs<A, L>& nan) const {
    const i64 x = x_.step, mask = Masked ? mask_.step : 0;
    for (i64 i = 0; i < n; ++i) {
      if (ahead_) ask(from, N * cols_);
      v[i] = only<A, L>(last_, column<Op, N, true>(from, nan), none());
      from.x += x;
      if constexpr (Masked) from.mask += mask;
    }
  }

  // The columns of a block, merged over its rows, and power_ neighbours at a time. Pieces of so many rows are merged at
  // once, then those that are left; the tree's open branches are like the digits of a binary counter.
  template <class Op, int Piece>
  ANYPOOL_INLINE V columns(Rows rows, NaNs<A, L>& nan) const {
    V open[40 * (C ? C : kMostVectors)], *v = open;  // the last one of them
    const int n = vectors();
    const auto pop = [&] {
      v -= n;
      for (int c = 0; c < n; ++c) v[c] = Op::template merged<L>(v[c], v[n + c]);
    };
    for (i64 piece = 0; rows.n > Piece; ++piece, v += n) {
      at_once<Op, Piece>(rows, v, nan);
      rows.skip(Piece, cols_);
      for (i64 carry = piece; carry & 1; carry >>= 1) pop();
    }
    with_number<Piece>(rows.n, [&](auto left) { at_once<Op, decltype(left)::value>(rows, v, nan); });
    while (v > open) pop();
    open[n - 1] = only<A, L>(last_, open[n - 1], none());
    const int power = C ? C : power_;
    for (int c = n; c < power; ++c) open[c] = none();
    halve<Op>(open, power);
    return open[0];
  }
  // N rows, one column of vectors after the other. Behind the end of a row lies the next one, for as long as there is one:
  // all but the last rows are read as if they were longer, and what does not belong to them is left out at the end.
  template <class Op, int N>
  ANYPOOL_INLINE void at_once(const Rows& rows, V* merged, NaNs<A, L>& nan) const {
    const int n = vectors(), whole = n - !rows.hold((N - 1) * cols_ + n * L);
    NaNs<A, L> seen;  // a local one stays in a register
    for (int c = 0; c < whole; ++c) {
      if (ahead_) ask(rows.from.behind(c * N * L), N * L);
      merged[c] = column<Op, N, true>(rows.from.behind(c * L), seen);
    }
    if (whole < n) merged[n - 1] = column<Op, N, false>(rows.from.behind((n - 1) * L), seen);
    if constexpr (Op::kNumbersOnly) nan.add(seen);
  }
  template <class Op, int N, bool Whole>
  ANYPOOL_INLINE V column(Place from, NaNs<A, L>& nan) const {
    V v[N];
    for (int t = 0; t < N; ++t, from = from.behind(cols_)) {
      if constexpr (Masked)
        v[t] = Whole ? Memory::load_where(from.x, from.mask, none())
                     : Memory::load_part_where(from.x, from.mask, last_, none());
      else
        v[t] = Whole ? Memory::load(from.x) : Memory::load_part(from.x, last_, none());
    }
    return seen_and_merged<Op, N>(v, nan);
  }
  template <class Op, int N>
  static ANYPOOL_INLINE V seen_and_merged(const V* v, NaNs<A, L>& nan) {
    if constexpr (Op::kNumbersOnly)
      for (int i = 0; i < N; i += 2) nan.see(v[i], v[i + 1 < N ? i + 1 : i]);
    return merged_taps<Op, 0, N>([&](auto tap) { return v[decltype(tap)::value]; });
  }

  void store(i64 block, i64 n, V v) const {
    if constexpr (kIsFloat<A>) {
      if (p_.finish == Finish::divide)
        v = v /
            splat<V>(A(p_.divisor == Divisor::constant ? p_.divisor_value : double(rows_) * double(cols_ / outputs_)));
    }
    Result* y = static_cast<Result*>(buffers_->y);
    const auto at = [&](i64 i) {
      const i64 plane = blocks_ == 1 ? i : i / blocks_;
      return outer_offset(p_, p_.y_outer, plane) + (i - plane * blocks_) * p_.y_stride[1];
    };
    if (n == L && at(block + n - 1) == at(block) + n - 1) return Results::store(y + at(block), v);
    Result one[L];
    Results::store(one, v);
    for (i64 i = 0, slots = L / together_; i < n; ++i) {
      Result* to = y + at(block + i);
      for (i64 o = 0; o < outputs_; ++o) to[o * p_.y_stride[2]] = one[i * slots + o];
    }
  }
};

template <class T, class A, class Fast, class Careful, bool Masked>
PlanesRun whole_run(const Axis& w) {
  const i64 vectors = ceil_div(w.n_in, kLanes<A>);
  using Planes = WholePlanes<T, A, Fast, Careful, 0, Masked>;
  if (vectors > kMostVectors || (w.n_out > 1 && w.n_in / w.n_out < Planes::power_of(vectors))) return {};
  if (vectors == 1) return planes_run<WholePlanes<T, A, Fast, Careful, 1, Masked>>();
  if (vectors == 2) return planes_run<WholePlanes<T, A, Fast, Careful, 2, Masked>>();
  return planes_run<Planes>();
}
template <class T, class A, bool Masked = false>
PlanesRun whole_run(const Plan& p) {
  const Axis& w = p.axis[2];
  switch (p.merge) {
    case Merge::max: return whole_run<T, A, SelectNumbers<A, true>, Select<A, true>, Masked>(w);
    case Merge::min: return whole_run<T, A, SelectNumbers<A, false>, Select<A, false>, Masked>(w);
    default: return whole_run<T, A, Sum<A>, Sum<A>, Masked>(w);
  }
}

// Whether windows of one size lie side by side all along an axis.
inline bool tiles(const Axis& a) {
  if (a.kind == AxisKind::transposed || a.n_out == 0 || a.n_in == 0 || a.n_in % a.n_out != 0) return false;
  const i64 n = a.n_in / a.n_out;
  for (i64 o = 0; o < a.n_out; ++o) {
    const Window w = window_of(a, o);
    if (w.start != o * n || w.taps != n || (w.step != 1 && n > 1)) return false;
  }
  return true;
}

// Whether the windows of a plan tile dense planes.
inline bool tiles_planes(const Plan& p) {
  const i64 width = p.axis[2].n_out ? p.axis[2].n_in / p.axis[2].n_out : 0;
  if (p.axis[2].n_out != 1 && (width < 2 || (width & (width - 1)) != 0)) return false;
  for (const Axis& a : p.axis)
    if (!tiles(a)) return false;
  if (width == 2 && p.axis[1].kernel == 2 && p.axis[2].n_in >= 8) return false;  // fused rows are faster
  return p.inner == 1 && p.axis[0].n_in == 1 && (p.axis[2].n_in <= 1 || p.x_stride[2] == 1) &&
         (p.axis[1].n_in <= 1 || p.x_stride[1] == p.axis[2].n_in) && !p.adjoint && p.lift == Lift::none &&
         p.code == Code::none && p.merge != Merge::scaled_sum &&
         (p.finish == Finish::none || p.finish == Finish::divide);
}

// For such a plan, or nothing.
inline PlanesRun whole_run_of(const Plan& p) {
  if (!tiles_planes(p)) return {};
  PlanesRun found;
  if (p.in == DType::u8 && p.acc == DType::i32 && p.out == DType::i32 && p.merge == Merge::sum &&
      p.finish == Finish::none)
    found = whole_run<uint8_t, int32_t, Sum<int32_t>, Sum<int32_t>, false>(p.axis[2]);
  else if (p.out == p.in)
    found = with_float_types<PlanesRun>(
        p, [&](auto t, auto a) { return whole_run<typename decltype(t)::type, typename decltype(a)::type>(p); });
  found.tasks = p.axis[1].n_out;
  return found;
}

// With a mask that lies as the planes do.
inline PlanesRun masked_whole_run_of(const Plan& p) {
  if (!tiles_planes(p) || p.out != p.in || p.acc != p.in || (p.axis[2].n_in > 1 && p.aux_stride[2] != 1) ||
      (p.axis[1].n_in > 1 && p.aux_stride[1] != p.axis[2].n_in))
    return {};
  PlanesRun found = p.in == DType::f32   ? whole_run<float, float, true>(p)
                    : p.in == DType::f64 ? whole_run<double, double, true>(p)
                                         : PlanesRun{};
  found.tasks = p.axis[1].n_out;
  return found;
}

}  // namespace
}  // namespace anypool
