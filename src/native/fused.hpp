// The windows that most poolings have, small and with stride 1, 2 or 4, without a line in between: rows are merged over
// d and h in registers and, still there, over w. Results are those of the engine to the bit: the order is the same.
#pragma once
#include "counted.hpp"
#include "fused_job.hpp"

namespace anypool {
namespace {

// What lies beside the rows: nothing; bytes, and what they leave out is absent; or these, to be counted as well.
enum class Beside { nothing, mask, counted_mask };

// L * S columns at an end of a row: which of each L lie inside, and which of each phase, every S-th of them.
template <class A, int L, int S>
struct RowEnd {
  Part part[S];
  LaneMask<A, L> kept[S];
  bool none = true, whole = true;
  RowEnd() = default;
  __attribute__((noinline)) RowEnd(i64 c, i64 cols) : whole(c >= 0 && c + L * S <= cols) {
    const auto places = [&](i64 from) { return lower(ceil_div(higher(from, 0), S), L); };
    for (int s = 0; s < S; ++s) {
      part[s] = Part(inside<L>(c + s * L, cols));
      none &= part[s].empty();
      const i64 lo = places(-c - s);
      kept[s] = LaneMask<A, L>::of(Part({lo, higher(lo, places(cols - c - s))}));
    }
  }
};

// The rows that a window sees. Those of one plane are all there, or there is one output row: then they lie as far from the
// ones that the next window sees.
template <class T, int KD, int KH>
class WindowRows {
  static constexpr int kRows = KD * KH, kOnTheirOwn = KD > 1 ? kRows : 1;
  const char* at_[kOnTheirOwn];
  i64 from_first_[kRows], step_[kOnTheirOwn];

 public:
  __attribute__((noinline)) WindowRows(const FusedJob& job, i64 plane, i64 r) {
    const char* at[kRows];
    for (int i = 0; i < kRows; ++i) {
      at[i] = job.rows[i] + (job.rows[i] == job.none ? 0 : plane * job.x_plane) + r * job.step[i];
      from_first_[i] = reinterpret_cast<i64>(at[i]) - reinterpret_cast<i64>(at[0]);
    }
    for (int i = 0; i < kOnTheirOwn; ++i) at_[i] = at[i], step_[i] = job.step[i];
  }
  ANYPOOL_INLINE const T* operator[](int i) const {
    if constexpr (KD > 1) return reinterpret_cast<const T*>(at_[i]);
    return reinterpret_cast<const T*>(at_[0] + (i == 0 ? 0 : from_first_[i]));
  }
  ANYPOOL_INLINE void next() {
    for (int i = 0; i < kOnTheirOwn; ++i) at_[i] += step_[i];
  }
  // One by one: a copy would load in one piece what was just stored in several, and wait until it has left for the cache.
  ANYPOOL_INLINE void list(const T** to) const {
    for (int i = 0; i < kRows; ++i) to[i] = (*this)[i];
  }
};

// The rows of a plane's first window that kernels take to have been looked through for the window before.
template <class T, class A, int KD, int KH, int S>
__attribute__((noinline)) void see_first_rows(const FusedJob& job, i64 plane, NaNs<A, kLanes<A>>& nan) {
  constexpr int L = kLanes<A>;
  using Memory = Lanes<T, A, L, true>;
  const WindowRows<T, KD, KH> rows(job, plane, 0);
  for (int i = 0; i < KD * KH; ++i) {
    if (i % KH >= KH - S || job.rows[i] == job.none) continue;
    const bool whole = reinterpret_cast<const char*>(rows[i] + round_up(job.cols, L)) <= job.x_end;
    for (i64 c = 0; c < job.cols; c += L) {
      const auto v =
          whole ? Memory::load(rows[i] + c) : Memory::load_part(rows[i] + c, Part(inside<L>(c, job.cols)), Vec<A, L>{});
      nan.see(v, v);
    }
  }
}

// Which output rows lie between others: all that is read for them lies in the array, if not in their rows.
class RowsBetween {
  const FusedJob& job_;
  i64 begin_ = INT64_MAX, end_ = INT64_MIN, step_ = 0;  // of what the first one reads, and how far the next is

  bool between(i64 plane, i64 r) const {
    const i64 at = plane * job_.x_plane + r * step_;
    return begin_ + at >= reinterpret_cast<i64>(job_.x_begin) && end_ + at <= reinterpret_cast<i64>(job_.x_end);
  }

 public:
  // Bytes [first, last) are read, from the beginning of each of so many rows.
  RowsBetween(const FusedJob& job, int rows, i64 first, i64 last) : job_(job) {
    for (int i = 0; i < rows; ++i) {
      if (job.rows[i] == job.none) continue;
      const i64 row = reinterpret_cast<i64>(job.rows[i]);
      begin_ = lower(begin_, row + first), end_ = higher(end_, row + last);
      step_ = job.step[i];
    }
    if (begin_ > end_) begin_ = end_ = reinterpret_cast<i64>(job.x_begin);  // no row is there
  }
  // f(from, to, whether they do), for all rows of a plane in order: those at the ends of the array do not.
  template <class F>
  ANYPOOL_INLINE void each(i64 plane, F&& f) const {
    i64 from = 0, to = job_.count;
    while (from < to && !between(plane, from)) ++from;
    while (from < to && !between(plane, to - 1)) --to;
    f(i64(0), from, false);
    f(from, to, true);
    f(to, job_.count, false);
  }
};

// How many output rows may be stored as whole vectors of L results of so many bytes: they lie without gaps, and what is
// written behind them, later ones cover.
template <int L>
i64 stored_whole(const FusedJob& job, i64 bytes) {
  const i64 beyond = round_up(job.n, L) - job.n;
  if (beyond == 0 || job.around) return job.count;
  if (job.y_step != job.n * bytes) return 0;
  return higher(0, job.count - ceil_div(higher(0, beyond - job.y_behind / bytes), job.n));
}

// Back: the window starts a column before the row does, and moves by two.
template <class T, class Op, int KD, int KH, int KW, int S, int DW = 1, Beside B = Beside::nothing, bool Back = false>
class Fused {
  static constexpr bool Masked = B != Beside::nothing, Counted = B == Beside::counted_mask;
  static constexpr int kRows = KD * KH;
  using A = typename Op::A;
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L, Op::kNumbersOnly>;
  // Results come from L * S columns and as many behind them. The first columns of L windows begin so far before their
  // windows: as far as lets the columns behind be the only ones that lie inside a row at its beginning, if possible.
  static constexpr int kBack = Back ? S * L - 1 : !Masked && (KW - 1) * DW < S ? S * L : 0;
  using End = RowEnd<A, L, S>;
  using Rows = WindowRows<T, KD, KH>;
  const FusedJob& job_;
  const uint8_t* masks_[Masked ? kRows : 1];
  const i64 start_;      // the first column
  End first_, tail_[6];  // of the first columns, and of the last ones
  Part last_;            // of the last results
  i64 whole_ = 0;        // outputs before the last ones, whose columns all lie inside
  int tails_ = 0;
  i64 read_ = 0;  // columns, behind the last one that is read
  NaNs<A, L> nan_;

  static ANYPOOL_INLINE V none() { return splat<V>(Op::identity().a); }

  // Of the rows of the window, merged: d within h, as the engine does.
  static ANYPOOL_INLINE V over_rows(const V* v) {
    return merged_taps<Op, 0, KH>([&](auto h) {
      return merged_taps<Op, 0, KD>([&](auto d) { return v[decltype(d)::value * KH + decltype(h)::value]; });
    });
  }
  // L columns merged over the window's rows; what lies outside a row is absent.
  ANYPOOL_INLINE V column(const Rows& rows, i64 c, NaNs<A, L>& nan) const {
    V v[kRows];
    for (int i = 0; i < kRows; ++i) {
      if constexpr (Masked)
        v[i] = Memory::load_where(rows[i] + c, masks_[i] + c, none());
      else
        v[i] = Memory::load(rows[i] + c);
    }
    look_for_nan(v, nan);
    return over_rows(v);
  }
#if defined(__AVX512F__)
  ANYPOOL_INLINE
#else
  __attribute__((noinline))
#endif
  V edge(const T* const* rows, i64 c, const Part& part, NaNs<A, L>& nan) const {
    V v[kRows];
    for (int i = 0; i < kRows; ++i) {
      if constexpr (Masked)
        v[i] = Memory::load_part_where(rows[i] + c, masks_[i] + c, part, none());
      else
        v[i] = Memory::load_part(rows[i] + c, part, none());
    }
    look_for_nan(v, nan);
    return over_rows(v);
  }
  static ANYPOOL_INLINE void look_for_nan(const V* v, NaNs<A, L>& nan) {
    if constexpr (Op::kNumbersOnly) {
      constexpr int kFresh = S < KH ? S : KH, kAll = KD * kFresh;
      const auto fresh = [&](int i) { return v[i / kFresh * KH + KH - kFresh + i % kFresh]; };
      for (int i = 0; i + 1 < kAll; i += 2) nan.see(fresh(i), fresh(i + 1));
      if (kAll % 2) nan.see(fresh(kAll - 1), fresh(kAll - 1));
    }
  }

  struct Phases {  // columns c, c + S … of L outputs, and c + 1, c + 1 + S …
    V v[S];
    ANYPOOL_INLINE void set(const V* columns) {
      if constexpr (S == 1) {
        v[0] = columns[0];
      } else {
        v[0] = Unzip<A, L>::even(columns[0], columns[1]);
        v[1] = Unzip<A, L>::odd(columns[0], columns[1]);
      }
    }
    ANYPOOL_INLINE void set_none() {
      for (int s = 0; s < S; ++s) v[s] = none();
    }
  };
  ANYPOOL_INLINE void phases(const Rows& rows, i64 c, Phases& p, NaNs<A, L>& nan) const {
    if constexpr (kSame<T, bf16> && S == 2 && !Masked) return halves(rows, c, p, nan);
    V v[S];
    for (int s = 0; s < S; ++s) v[s] = column(rows, c + s * L, nan);
    p.set(v);
  }
  // At an end of a row. What lies beside a row that is between others is read with it, and left out when it has been
  // merged; beside other rows nothing is read.
  ANYPOOL_INLINE void phases(const Rows& rows, i64 c, const End& end, bool between, Phases& p, NaNs<A, L>& nan) const {
    if (!Masked && between) {
      phases(rows, c, p, nan);
      for (int s = 0; s < S; ++s) p.v[s] = end.kept[s].choose(p.v[s], none());
    } else {
      const T* at[kRows];  // not the rows themselves: they would lie in memory in the loop, too, as would the NaNs
      rows.list(at);
      NaNs<A, L> seen;
      V v[S];
      for (int s = 0; s < S; ++s) v[s] = end.part[s].empty() ? none() : edge(at, c + s * L, end.part[s], seen);
      nan.add(seen);
      p.set(v);
    }
  }
  // The phases of halves, for which no lane has to move.
  ANYPOOL_INLINE void halves(const Rows& rows, i64 c, Phases& p, NaNs<A, L>& nan) const {
    V even[kRows], odd[kRows];
    for (int i = 0; i < kRows; ++i) {
      const auto pairs = load<Vec<uint32_t, L>>(rows[i] + c);
      even[i] = every_second<0, L>(pairs), odd[i] = every_second<1, L>(pairs);
    }
    look_for_nan(even, nan), look_for_nan(odd, nan);
    p.v[0] = over_rows(even), p.v[1] = over_rows(odd);
  }
  static ANYPOOL_INLINE V over_w(const Phases& here, const Phases& next) {
    return merged_taps<Op, 0, KW>([&](auto tap) {
      constexpr int at = kBack + decltype(tap)::value * DW;
      return Slide<V, at / S, L>::run(here.v[at % S], next.v[at % S]);
    });
  }

  // The results of L windows from output o on. What this needs of the object is passed: see `rows`.
  template <class C>
  static ANYPOOL_INLINE V result(V v, const FusedDivisor& by, const C& counted, const A* padding, i64 o) {
    if constexpr (Counted)
      return counted.finished(v, o, padding);
    else if constexpr (Op::kSelects)
      return v;
    else
      return finished<L>(v, by, o);
  }

  // Output rows [from, to) of a plane, whose first one is at y; `whole` rows are stored as whole vectors. What the loop
  // needs of the object is in locals: a store to y might change any member, as far as the compiler knows, and it would take
  // longer to read them again for each row than to merge it.
  template <int Vectors, class C>
  __attribute__((noinline)) void rows(i64 plane, i64 from, i64 to, bool may_be_between, i64 whole, char* y, C counted) {
    const bool between = Vectors || may_be_between;
    Rows at(job_, plane, from);
    const FusedDivisor by = job_.by;
    const i64 inner = Vectors ? 0 : whole_, start = start_, y_step = job_.y_step;
    const int tails = Vectors ? Vectors : tails_;
    const bool in_order = S > 1 && job_.in_order;
    const char* padding = Counted && job_.padding ? job_.padding + from * job_.padding_step : nullptr;
    y += from * y_step;
    NaNs<A, L> all;
    for (i64 r = from; r < to; ++r, y += y_step) {
      if (in_order) {
        const T* seen[kRows];
        at.list(seen);
        read_new_rows<T, KD, KH, S>(seen, job_.cols, job_.ahead);
      }
      T* out = reinterpret_cast<T*>(y);
      if constexpr (S == 1)
        if (job_.around) out = reinterpret_cast<T*>(job_.around->room(y));
      const A* const beside = reinterpret_cast<const A*>(padding);
      if constexpr (Counted) counted.see(masks_);
      // NaNs of one row: each of them would wait for the one before, for as long as it takes. Those of the ends are on
      // their own, so that those of the loop stay in a register.
      NaNs<A, L> nan, at_ends;
      Phases here, next;
      here.set_none();
      if constexpr (kBack == 0) {
        if (!Vectors && first_.whole)
          phases(at, start, here, nan);
        else
          phases(at, start, first_, between, here, at_ends);
      }
      i64 o = 0, c = start + L * S;
      for (; o < inner; o += L, c += L * S) {
        phases(at, c, next, nan);
        Memory::store(out + o, result(over_w(here, next), by, counted, beside, o));
        here = next;
      }
#pragma GCC unroll 2
      for (int t = 0; t < tails; ++t, o += L, c += L * S) {
        if (kBack == 0 && tail_[t].none)
          next.set_none();
        else
          phases(at, c, tail_[t], between, next, at_ends);
        const V v = result(over_w(here, next), by, counted, beside, o);
        if (r < whole || t + 1 < tails)
          Memory::store(out + o, v);
        else
          Memory::store_part(out + o, v, last_);
        here = next;
      }
      all.add(nan), all.add(at_ends);
      if constexpr (S == 1)
        if (job_.around) job_.around->wrote(job_.n * i64(sizeof(T)));
      if (padding) padding += job_.padding_step;
      at.next();
      for (int i = 0; Masked && i < kRows; ++i) masks_[i] += job_.mask_step[i];
    }
    nan_.add(all);
  }
  // Rows of one or two vectors between others have no loop.
  static constexpr bool kHasShort = S == 2 && KD == 1 && sizeof(A) == 4 && !Masked;
  template <class C>
  void rows(i64 plane, i64 from, i64 to, bool between, i64 whole, char* y, C counted) {
    if (from == to) return;
    if constexpr (kHasShort) {
      if (between && job_.n <= L) return rows<1>(plane, from, to, true, whole, y, counted);
      if (between && job_.n <= 2 * L) return rows<2>(plane, from, to, true, whole, y, counted);
    }
    rows<0>(plane, from, to, between, whole, y, counted);
  }

 public:
  explicit Fused(const FusedJob& job) : job_(job), start_(job.start - kBack), first_(start_, job.cols) {
    for (int i = 0; Masked && i < kRows; ++i) masks_[i] = job.masks[i];
    const i64 step = L * S;
    i64 c = start_ + step;
    if (!kHasShort || job.n > 2 * L)
      for (; whole_ + L <= job.n && c + step <= job.cols; c += step) whole_ += L;
    for (i64 o = whole_; o < job.n; o += L, c += step) tail_[tails_++] = End(c, job.cols);
    last_ = Part({0, (job.n - 1) % L + 1});
    read_ = c;
  }
  static bool run(const FusedJob& job) {
    if constexpr (S == 2 && KW <= 3 && !Masked && !Back)
      if (job.start == -1) return Fused<T, Op, KD, KH, KW, S, DW, B, true>::run(job);
    Fused f(job);
    const auto counted = [&] {
      if constexpr (Counted)
        return CountedRow<A, L, kRows, KW, S>(job);
      else
        return 0;
    }();
    const i64 size = sizeof(T), whole = stored_whole<L>(job, size), read = kBack > 0 ? f.start_ + L * S : f.start_;
    const RowsBetween between(job, Masked ? 0 : kRows, read * size, f.read_ * size);
    for (i64 plane = 0; plane < job.planes; ++plane) {
      if constexpr (Op::kNumbersOnly)
        if (job.planes > 1) see_first_rows<T, A, KD, KH, S>(job, plane, f.nan_);
      char* y = job.y + plane * job.y_plane;
      if constexpr (Masked)
        f.rows(plane, 0, job.count, false, whole, y, counted);
      else
        between.each(plane, [&](i64 from, i64 to, bool is) { f.rows(plane, from, to, is, whole, y, counted); });
    }
    return f.nan_.any();
  }
};

// A row of windows of four neighbours that do not overlap.
template <class T, class Op>
class Fours {
  using A = typename Op::A;
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;

  static ANYPOOL_INLINE V pair(V a, V b) {
    return Op::template merged<L>(Unzip<A, L>::even(a, b), Unzip<A, L>::odd(a, b));
  }

 public:
  static bool run(const FusedJob& job) {
    NaNs<A, L> nan;
    const T* x = reinterpret_cast<const T*>(job.rows[0]);
    T* y = reinterpret_cast<T*>(job.y);
    for (i64 r = 0; r < job.count; ++r) {
      i64 c = job.start;
      for (i64 o = 0; o < job.n; o += L, c += 4 * L) {
        V v[4];
        if (c >= 0 && c + 4 * L <= job.cols)
          for (int s = 0; s < 4; ++s) v[s] = Memory::load(x + c + s * L);
        else
          for (int s = 0; s < 4; ++s)
            v[s] = Memory::load_part(x + c + s * L, Part(inside<L>(c + s * L, job.cols)), splat<V>(Op::identity().a));
        if constexpr (Op::kNumbersOnly) nan.see(v[0], v[1]), nan.see(v[2], v[3]);
        V merged = pair(pair(v[0], v[1]), pair(v[2], v[3]));
        merged = finished<L>(merged, job.by, o);
        if (o + L <= job.n)
          Memory::store(y + o, merged);
        else
          Memory::store_part(y + o, merged, Part({0, job.n - o}));
      }
      x = reinterpret_cast<const T*>(reinterpret_cast<const char*>(x) + job.step[0]);
      y = reinterpret_cast<T*>(reinterpret_cast<char*>(y) + job.y_step);
    }
    return nan.any();
  }
};

// Sums of two by two bytes that do not overlap, all of them inside: neighbours are the two halves of a short.
class BytePairs {
  static constexpr int L = kLanes<uint16_t>;
  using V = Vec<uint16_t, L>;
  using Memory = Lanes<uint8_t, uint16_t, L>;

  static ANYPOOL_INLINE V pairs(const uint8_t* x) {
    const V v = load<V>(x);
    return (v & splat<V>(uint16_t(0xff))) + (v >> splat<V>(uint16_t(8)));
  }

 public:
  static bool run(const FusedJob& job) {
    const uint8_t *above = reinterpret_cast<const uint8_t*>(job.rows[0]) + job.start,
                  *below = reinterpret_cast<const uint8_t*>(job.rows[1]) + job.start;
    uint8_t* y = reinterpret_cast<uint8_t*>(job.y);
    const i64 whole = job.n / L * L, rest = job.n - whole;
    for (i64 r = 0; r < job.count; ++r, above += job.step[0], below += job.step[1], y += job.y_step) {
      for (i64 o = 0; o < whole; o += L)
        Memory::store(y + o, finished<L>(pairs(above + 2 * o) + pairs(below + 2 * o), job.by, o));
      if (!rest) continue;
      uint8_t a[2 * L] = {}, b[2 * L] = {}, sums[L];
      __builtin_memcpy(a, above + 2 * whole, size_t(2 * rest));
      __builtin_memcpy(b, below + 2 * whole, size_t(2 * rest));
      Memory::store(sums, finished<L>(pairs(a) + pairs(b), job.by, whole));
      __builtin_memcpy(y + whole, sums, size_t(rest));
    }
    return false;
  }
};

// Sums of three by three bytes, one apart. Columns are the two halves of shorts: no byte has to move to become one.
class ByteTriples {
  static constexpr int L = kLanes<uint16_t>, kColumns = 2 * L;
  static constexpr bool kLittle = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
  using V = Vec<uint16_t, L>;
  using Bytes = Vec<uint8_t, kColumns>;
  struct Sums {  // over three rows, of columns c, c + 2 ... and c + 1, c + 3 ...
    V even, odd;
  };

  static ANYPOOL_INLINE Sums columns(const uint8_t* const* rows, i64 c, i64 n) {
    V row[3];
    const bool whole = c >= 0 && c + kColumns <= n;
    for (int i = 0; i < 3; ++i) {
      if (whole)
        row[i] = load<V>(rows[i] + c);
      else
        row[i] = (V)load_bits<uint8_t, kColumns>(rows[i] + c, Part(inside<kColumns>(c, n)));
    }
    const V low = splat<V>(uint16_t(0xff)), byte = splat<V>(uint16_t(8));
    const V halves[2] = {(row[0] & low) + (row[1] & low) + (row[2] & low),
                         (row[0] >> byte) + (row[1] >> byte) + (row[2] >> byte)};
    return {halves[!kLittle], halves[kLittle]};
  }
  // `ahead`: where the next row of outputs sees a new row, which may not exist.
  static ANYPOOL_INLINE void row(const FusedJob& job, const uint8_t* const* rows, const uint8_t* ahead, uint8_t* y) {
    const FusedDivisor by = job.by;
    const i64 n = job.n, cols = job.cols;
    Sums here = columns(rows, job.start, cols);
    for (i64 o = 0, c = job.start + kColumns; o < n; o += kColumns, c += kColumns) {
      __builtin_prefetch(ahead + c);
      const Sums next = columns(rows, c, cols);
      const V inner = here.odd + Slide<V, 1, L>::run(here.even, next.even);
      const V even = finished<L>(here.even + inner, by, 0),
              odd = finished<L>(inner + Slide<V, 1, L>::run(here.odd, next.odd), by, 0);
      const V byte = splat<V>(uint16_t(8)), low = splat<V>(uint16_t(0xff));  // quotients may be more, which wrap
      const V both = ((kLittle ? even : odd) & low) | (kLittle ? odd : even) << byte;
      if (o + kColumns <= n)
        store(y + o, both);
      else
        store_bits<uint8_t, kColumns>(y + o, (Bytes)both, Part({0, n - o}));
      here = next;
    }
  }

 public:
  static bool run(const FusedJob& job) {
    if (!job.by.bytes.known) return Fused<uint8_t, Sum<uint16_t>, 1, 3, 3, 1>::run(job);
    for (i64 plane = 0; plane < job.planes; ++plane) {
      const uint8_t* rows[3];
      for (int i = 0; i < 3; ++i)
        rows[i] = reinterpret_cast<const uint8_t*>(job.rows[i]) + (job.rows[i] == job.none ? 0 : plane * job.x_plane);
      uint8_t* y = reinterpret_cast<uint8_t*>(job.y) + plane * job.y_plane;
      for (i64 r = 0; r < job.count; ++r, y += job.y_step) {
        row(job, rows, rows[2] + job.step[2], y);
        for (int i = 0; i < 3; ++i) rows[i] += job.step[i];
      }
    }
    return false;
  }
};

}  // namespace
}  // namespace anypool
