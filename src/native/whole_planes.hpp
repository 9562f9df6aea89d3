// Windows that tile planes which are not large: global pooling, and adaptive pooling where bins are alike. The rows of a
// window, all across the plane, are a block. It is read once, row by row in the order in which it lies, into as many
// registers as a row fills; then columns are merged by halving, those of several blocks at once: n columns padded to a
// power of two with absent ones are the engine's own tree. With a mask beside the planes, what does not count is absent, too.
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

// C vectors a row, of which the last `Loose` ones may be partly or wholly behind its end.
template <class T, class A, class Fast, class Careful, int C, int Loose, bool Masked>
class WholePlanes {
  static constexpr int L = kLanes<A>, kAtOnce = C <= 2 ? 8 : 2;  // rows, for which there are registers
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;
  using Result = typename ResultOf<T, A>::type;
  using Results = Lanes<Result, A, L>;
  const Plan& p_;
  const Buffers* buffers_ = nullptr;
  const i64 rows_, cols_;  // of a block
  const i64 blocks_;       // of a plane
  const i64 inside_;       // rows of a plane from which C whole vectors lie in it
  const i64 outputs_;      // of a block
  const bool short_;       // a block is asked for as a whole
  const bool far_;         // a longer one, of an input that no cache holds, piece by piece
  const int together_;     // blocks whose columns fill a vector when they are merged
  Part loose_[Loose];
  // Planes of seven short rows, the last ones of most image classifiers, lie side by side in one vector. Behind the end of
  // a row lies the next one, or the next plane: so it is for all but the last planes.
  static constexpr bool kPairs = ANYPOOL_VECTOR_BYTES == 64 && C == 1 && kSame<T, A>;
  i64 paired_ = 0;  // planes for which that is so
  Part both_;

 public:
  // The power of two that C vectors of columns are padded to, in vectors; windows must be at least as wide as that.
  static constexpr int kPower = C <= 1 ? 1 : C <= 2 ? 2 : C <= 4 ? 4 : C <= 8 ? 8 : 16;

  WholePlanes(const Plan& p, Arena&)
      : p_(p),
        rows_(p.axis[1].n_in / p.axis[1].n_out),
        cols_(p.axis[2].n_in),
        blocks_(p.axis[1].n_out),
        inside_(p.axis[1].n_in * cols_ < C * L ? 0 : (p.axis[1].n_in * cols_ - C * L) / cols_ + 1),
        outputs_(p.axis[2].n_out),
        short_(rows_ * cols_ * i64(sizeof(T)) < kPage),
        far_(!short_ && beyond_caches(p)),
        together_(outputs_ == 1 ? L : int(cols_ / outputs_ / kPower)) {
    for (int c = 0; c < Loose; ++c) loose_[c] = Part(inside<L>((C - Loose + c) * L, cols_));
#if defined(__AVX512F__)
    const i64 plane = 7 * cols_;
    if (kPairs && rows_ == 7 && cols_ <= L / 2 && blocks_ == 1 && outputs_ == 1 && p.n_outer == 1 &&
        p.x_outer[0] == plane && (!Masked || p.aux_outer[0] == plane))
      paired_ = p.outer[0] - 1;
    both_.mask = loose_[0].mask | loose_[0].mask << L / 2;
#endif
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
  ANYPOOL_INLINE Place rows_from(i64 x, i64 mask) const {
    return {static_cast<const T*>(buffers_->x) + x,
            Masked ? static_cast<const uint8_t*>(buffers_->aux) + mask : nullptr};
  }
  ANYPOOL_INLINE void ask(Place from, i64 n) const {
    ask_for(from.x, n * i64(sizeof(T)));
    if constexpr (Masked) ask_for(from.mask, n);
  }

  template <class Op>
  static ANYPOOL_INLINE V neighbours(V l, V r) {
    return Op::template merged<L>(Unzip<A, L>::even(l, r), Unzip<A, L>::odd(l, r));
  }
  // Of N vectors, N a power of two, those behind the first C absent.
  template <class Op, int From, int N>
  static ANYPOOL_INLINE V halved(const V* v) {
    if constexpr (From >= C)
      return none();
    else if constexpr (N == 1)
      return v[From];
    else
      return neighbours<Op>(halved<Op, From, N / 2>(v), halved<Op, From + N / 2, N / 2>(v));
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
    Place from = rows_from(block * plane, block * plane);
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
      if constexpr (Fast::kNumbersOnly)
        for (int t = 0; t < 7; t += 2) nan.see(row[t], row[t + 1 < 7 ? t + 1 : t]);
      v[i] = only<A, L>(both_, merged_taps<Fast, 0, 7>([&](auto tap) { return row[decltype(tap)::value]; }), none());
    }
    return all_halved<Fast, L / 2>(v);
  }

  template <class Op>
  V group(i64 block, i64 n, NaNs<A, L>& nan) const {
    V v[L];
    i64 plane = blocks_ == 1 ? block : block / blocks_, row = (block - plane * blocks_) * rows_;
    for (int i = 0; i < n; ++i) {
      v[i] = columns<Op>(plane, row, nan);
      row += rows_;
      if (row == rows_ * blocks_) row = 0, ++plane;
    }
    for (i64 i = n; i < together_; ++i) v[i] = v[0];
    if (together_ == L) return all_halved<Op, L>(v);
    for (int left = together_; left > 1; left /= 2)
      for (int i = 0; i < left / 2; ++i) v[i] = neighbours<Op>(v[2 * i], v[2 * i + 1]);
    return v[0];
  }

  // Row t, into vectors. Behind its end lies the next row, for as long as there is one: all rows but the last ones, from
  // `whole` on, are read as if they were longer, and what does not belong to them is left out at the end.
  ANYPOOL_INLINE void load(Place row, i64 t, i64 whole, V* v) const {
    for (int c = 0; c < C; ++c) {
      const Place from = row.behind(t * cols_ + c * L);
      const bool part = c >= C - Loose && t >= whole;
      const Part& inside = loose_[c >= C - Loose ? c - (C - Loose) : 0];
      if constexpr (Masked)
        v[c] = part ? Memory::load_part_where(from.x, from.mask, inside, none())
                    : Memory::load_where(from.x, from.mask, none());
      else
        v[c] = part ? Memory::load_part(from.x, inside, none()) : Memory::load(from.x);
    }
  }
  // The columns of a block, merged over its rows, and kPower neighbours at a time.
  template <class Op>
  ANYPOOL_INLINE V columns(i64 plane, i64 row, NaNs<A, L>& nan) const {
    const auto offset = [&](const i64* outer) {
      return (p_.n_outer == 1 ? plane * outer[0] : outer_offset(p_, outer, plane)) + row * cols_;
    };
    const Place from = rows_from(offset(p_.x_outer), Masked ? offset(p_.aux_outer) : 0);
    if (short_) ask(from, rows_ * cols_);
    V v[C];
    if (C == 1 && rows_ == 7)  // the last planes of most image classifiers
      at_once<Op, 7>(from, 0, inside_ - row, v, nan);
    else
      many_rows<Op>(from, inside_ - row, v, nan);
    for (int c = C - Loose; c < C; ++c) v[c] = only<A, L>(loose_[c - (C - Loose)], v[c], none());
    return halved<Op, 0, kPower>(v);
  }
  // Rows t to t + N.
  template <class Op, int N>
  ANYPOOL_INLINE void at_once(Place from, i64 t, i64 whole, V* merged, NaNs<A, L>& nan) const {
    V v[N][C];
    if (far_) ask(from.behind(t * cols_), N * cols_);
    for (int i = 0; i < N; ++i) load(from, t + i, whole, v[i]);
    for (int c = 0; c < C; ++c) {
      if constexpr (Op::kNumbersOnly)
        for (int i = 0; i < N; i += 2) nan.see(v[i][c], v[i + 1 < N ? i + 1 : i][c]);
      merged[c] = merged_taps<Op, 0, N>([&](auto tap) { return v[decltype(tap)::value][c]; });
    }
  }
  // Pieces of kAtOnce rows, the tree's open branches as a binary counter; and of the rows that are left.
  template <class Op>
  ANYPOOL_INLINE void many_rows(Place from, i64 whole, V* v, NaNs<A, L>& nan) const {
    V open[40][C];
    int depth = 0;
    i64 t = 0;
    const auto push = [&] {
      for (int c = 0; c < C; ++c) open[depth][c] = v[c];
      ++depth;
    };
    const auto pop = [&] {
      --depth;
      for (int c = 0; c < C; ++c) v[c] = Op::template merged<L>(open[depth][c], v[c]);
    };
    for (i64 piece = 0; t + kAtOnce <= rows_; t += kAtOnce, ++piece) {
      at_once<Op, kAtOnce>(from, t, whole, v, nan);
      for (i64 carry = piece; carry & 1; carry >>= 1) pop();
      push();
    }
    if constexpr (kAtOnce > 4)
      if ((rows_ - t) & 4) at_once<Op, 4>(from, t, whole, v, nan), push(), t += 4;
    if constexpr (kAtOnce > 2)
      if ((rows_ - t) & 2) at_once<Op, 2>(from, t, whole, v, nan), push(), t += 2;
    if (t < rows_) at_once<Op, 1>(from, t, whole, v, nan), push();
    --depth;
    for (int c = 0; c < C; ++c) v[c] = open[depth][c];
    while (depth > 0) pop();
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
  const i64 vectors = ceil_div(w.n_in, kLanes<A>), width = w.n_in / w.n_out;
#define ANYPOOL_WHOLE(C, LOOSE)                                        \
  if (vectors <= C) {                                                  \
    using Planes = WholePlanes<T, A, Fast, Careful, C, LOOSE, Masked>; \
    if (w.n_out > 1 && width < Planes::kPower) return {};              \
    return planes_run<Planes>();                                       \
  }
  ANYPOOL_WHOLE(1, 1)
  ANYPOOL_WHOLE(2, 1)
  ANYPOOL_WHOLE(3, 1)
  ANYPOOL_WHOLE(4, 1)
  ANYPOOL_WHOLE(7, 3)
  ANYPOOL_WHOLE(8, 1)
  ANYPOOL_WHOLE(16, 8)
#undef ANYPOOL_WHOLE
  return {};
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
