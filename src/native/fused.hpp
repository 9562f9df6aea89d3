// The windows that most poolings have, small and with stride 1, 2 or 4, without a line in between: rows are merged over
// d and h in registers and, still there, over w. Results are those of the engine to the bit: the order is the same.
#pragma once
#include "counted.hpp"
#include "fused_job.hpp"

namespace anypool {
namespace {

// What lies beside the rows: nothing; bytes, and what they leave out is absent; or these, to be counted as well.
enum class Beside { nothing, mask, counted_mask };

template <class T, class Op, int KD, int KH, int KW, int S, int DW = 1, Beside B = Beside::nothing>
class Fused {
  static constexpr bool Masked = B != Beside::nothing, Counted = B == Beside::counted_mask;
  using A = typename Op::A;
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L, Op::kNumbersOnly>;
  const FusedJob& job_;
  const T* rows_[KD * KH];
  const uint8_t* masks_[Masked ? KD * KH : 1];
  Part first_[S], tail_[6][S], last_;  // of the first vectors, of those at the end, of the last result
  i64 whole_ = 0;                      // outputs before the last ones, whose columns all lie inside
  int tails_ = 0;
  bool starts_inside_;
  NaNs<A, L> nan_;

  static ANYPOOL_INLINE V none() { return splat<V>(Op::identity().a); }

  // Of the rows of the window, merged: d within h, as the engine does.
  static ANYPOOL_INLINE V over_rows(const V* v) {
    return merged_taps<Op, 0, KH>([&](auto h) {
      return merged_taps<Op, 0, KD>([&](auto d) { return v[decltype(d)::value * KH + decltype(h)::value]; });
    });
  }
  // L columns merged over the window's rows; what lies outside a row is absent.
  ANYPOOL_INLINE V column(i64 c, NaNs<A, L>& nan) const {
    V v[KD * KH];
    for (int i = 0; i < KD * KH; ++i) {
      if constexpr (Masked)
        v[i] = Memory::load_where(rows_[i] + c, masks_[i] + c, none());
      else
        v[i] = Memory::load(rows_[i] + c);
    }
    look_for_nan(v, nan);
    return over_rows(v);
  }
#if defined(__AVX512F__)
  ANYPOOL_INLINE
#else
  __attribute__((noinline))
#endif
  V edge(i64 c, const Part& part, NaNs<A, L>& nan) const {
    V v[KD * KH];
    for (int i = 0; i < KD * KH; ++i) {
      if constexpr (Masked)
        v[i] = Memory::load_part_where(rows_[i] + c, masks_[i] + c, part, none());
      else
        v[i] = Memory::load_part(rows_[i] + c, part, none());
    }
    look_for_nan(v, nan);
    return over_rows(v);
  }
  ANYPOOL_INLINE V column(i64 c, const Part& part, NaNs<A, L>& nan) const {
    return part.empty() ? none() : edge(c, part, nan);
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
  };
  ANYPOOL_INLINE void phases(i64 c, Phases& p, NaNs<A, L>& nan) const {
    if constexpr (kSame<T, bf16> && S == 2 && !Masked) return halves(c, p, nan);
    V v[S];
    for (int s = 0; s < S; ++s) v[s] = column(c + s * L, nan);
    p.set(v);
  }
  ANYPOOL_INLINE void phases(i64 c, const Part* parts, Phases& p, NaNs<A, L>& nan) const {
    V v[S];
    for (int s = 0; s < S; ++s) v[s] = column(c + s * L, parts[s], nan);
    p.set(v);
  }
  // The phases of halves, for which no lane has to move.
  ANYPOOL_INLINE void halves(i64 c, Phases& p, NaNs<A, L>& nan) const {
    V even[KD * KH], odd[KD * KH];
    for (int i = 0; i < KD * KH; ++i) {
      const auto pairs = load<Vec<uint32_t, L>>(rows_[i] + c);
      even[i] = every_second<0, L>(pairs), odd[i] = every_second<1, L>(pairs);
    }
    look_for_nan(even, nan), look_for_nan(odd, nan);
    p.v[0] = over_rows(even), p.v[1] = over_rows(odd);
  }
  static ANYPOOL_INLINE V over_w(const Phases& here, const Phases& next) {
    return merged_taps<Op, 0, KW>([&](auto tap) {
      constexpr int at = decltype(tap)::value * DW;
      return Slide<V, at / S, L>::run(here.v[at % S], next.v[at % S]);
    });
  }

  // The results of L windows from output o on. What this needs of the object is passed: see `row`.
  template <class C>
  static ANYPOOL_INLINE V result(V v, const FusedDivisor& by, const C& counted, const A* padding, i64 o) {
    if constexpr (Counted)
      return counted.finished(v, o, padding);
    else
      return finished<L>(v, by, o);
  }

  template <class C>
  ANYPOOL_INLINE void row(T* y, C counted, const A* padding) {
    // What the loop needs of the object, as locals: a store to y might change any member, as far as the compiler knows.
    // The last columns have NaNs of their own, so that those of the loop stay in a register.
    NaNs<A, L> nan, at_ends;
    const FusedDivisor by = job_.by;
    const i64 whole = whole_, start = job_.start;
    if constexpr (Counted) counted.see(masks_);
    Phases here, next;
    if (starts_inside_)
      phases(start, here, nan);
    else
      phases(start, first_, here, at_ends);
    i64 o = 0, c = start + L * S;
    for (; o < whole; o += L, c += L * S) {
      phases(c, next, nan);
      Memory::store(y + o, result(over_w(here, next), by, counted, padding, o));
      here = next;
    }
    for (int t = 0; t < tails_; ++t, o += L, c += L * S) {
      phases(c, tail_[t], next, at_ends);
      const V v = result(over_w(here, next), by, counted, padding, o);
      if (t + 1 < tails_)
        Memory::store(y + o, v);
      else
        Memory::store_part(y + o, v, last_);
      here = next;
    }
    nan_.add(nan);
    nan_.add(at_ends);
  }

  // Rows of few outputs, between others: what lies beside them is read, and left out when it has been merged. Where parts of
  // vectors cost more than whole ones, rows of up to two vectors are such, too: the second one overlaps the first.
#if defined(__AVX512F__)
  static constexpr int kShort = S == 2 && KD == 1 && !Masked && sizeof(A) == 4 ? 1 : 0;  // vectors
#elif defined(__AVX2__)
  static constexpr int kShort = S == 2 && KD == 1 && !Masked && sizeof(A) == 4 ? 2 : 0;
#else
  static constexpr int kShort = 0;
#endif
  struct ShortRow {
    i64 o = 0;  // the first output
    LaneMask<A, L> in[2][S];
    Part out;
    bool two = false, whole = false;  // whether it sees columns of the second half; whether it has L outputs
    ShortRow() = default;
    ShortRow(const FusedJob& job, i64 first) : o(first), out({0, lower(job.n - first, L)}), whole(job.n - first >= L) {
      for (int half = 0; half < 2; ++half)
        for (int s = 0; s < S; ++s) {
          const Part part(inside<L>(job.start + (o + half * L) * S + s * L, job.cols));
          in[half][s] = LaneMask<A, L>::of(part);
          two |= half == 1 && !part.empty();
        }
    }
  };
  // Those of all rows of a plane. What the loop needs is in locals; otherwise it would take longer to read that again for
  // each row than to merge it.
  template <bool Two>
  ANYPOOL_INLINE void short_rows(char* y, const ShortRow& at) {
    NaNs<A, L> all;
    const FusedDivisor by = job_.by;
    const i64 o = at.o;
    const bool whole = at.whole;
    const Part last = at.out;
    LaneMask<A, L> in[2][S];
    for (int s = 0; s < S; ++s) in[0][s] = at.in[0][s], in[1][s] = at.in[1][s];
    const char* rows[KH];
    i64 steps[KH];
    for (int i = 0; i < KH; ++i)
      rows[i] = reinterpret_cast<const char*>(rows_[i] + job_.start + o * S), steps[i] = job_.step[i];
    const i64 y_step = job_.y_step;
    y += o * i64(sizeof(T));
    for (i64 r = job_.count; r > 0; --r, y += y_step) {
      NaNs<A, L> nan;  // of one row: each of them would wait for the one before, for as long as it takes
      Phases p[2];
      for (int half = 0; half <= Two; ++half) {
        V columns[S];
        for (int s = 0; s < S; ++s) {
          V v[KH];
          for (int i = 0; i < KH; ++i) v[i] = Memory::load(reinterpret_cast<const T*>(rows[i]) + (half * S + s) * L);
          look_for_nan(v, nan);
          columns[s] = in[half][s].choose(over_rows(v), none());
        }
        p[half].set(columns);
      }
      if constexpr (!Two)
        for (int s = 0; s < S; ++s) p[1].v[s] = none();
      const V v = finished<L>(over_w(p[0], p[1]), by, o);
      if (kShort > 1 && whole)
        Memory::store(reinterpret_cast<T*>(y), v);
      else
        Memory::store_part(reinterpret_cast<T*>(y), v, last);
      for (int i = 0; i < KH; ++i) rows[i] += steps[i];
      all.add(nan);
    }
    nan_.add(all);
  }
  // The rows of the first window that `row` takes to have been seen by the one before.
  ANYPOOL_INLINE void see_first(bool between) {
    if constexpr (Op::kNumbersOnly) {
      for (int i = 0; i < KD * KH; ++i) {
        if (i % KH >= KH - S || reinterpret_cast<const char*>(rows_[i]) == job_.none) continue;
        for (i64 c = 0; c < job_.cols; c += L) {
          const V v = between ? Memory::load(rows_[i] + c)
                              : Memory::load_part(rows_[i] + c, Part(inside<L>(c, job_.cols)), V{});
          nan_.see(v, v);
        }
      }
    }
  }

 public:
  explicit Fused(const FusedJob& job) : job_(job) {
    for (int i = 0; i < KD * KH; ++i) rows_[i] = reinterpret_cast<const T*>(job.rows[i]);
    for (int i = 0; Masked && i < KD * KH; ++i) masks_[i] = job.masks[i];
    const i64 step = L * S;
    i64 c = job.start;
    for (int s = 0; s < S; ++s) first_[s] = Part(inside<L>(c + s * L, job.cols));
    starts_inside_ = c >= 0 && c + step <= job.cols;
    for (c += step; whole_ + L < job.n && c + step <= job.cols; c += step) whole_ += L;
    for (i64 o = whole_; o < job.n; o += L, c += step, ++tails_)
      for (int s = 0; s < S; ++s) tail_[tails_][s] = Part(inside<L>(c + s * L, job.cols));
    last_ = Part({0, (job.n - 1) % L + 1});
  }
  static bool run(const FusedJob& job) {
    Fused f(job);
    const auto counted = [&] {
      if constexpr (Counted)
        return CountedRow<A, L, KD * KH, KW, S>(job);
      else
        return 0;
    }();
    const char* padding = Counted ? job.padding : nullptr;
    ShortRow pieces[kShort > 0 ? kShort : 1];
    const bool few = kShort > 0 && job.planes > 1 && job.n <= kShort * L;
    for (int i = 0; few && i < kShort; ++i) pieces[i] = ShortRow(job, i == 0 ? 0 : higher(0, job.n - L));
    for (i64 plane = 0; plane < job.planes; ++plane) {
      for (int i = 0; plane > 0 && i < KD * KH; ++i)
        f.rows_[i] = reinterpret_cast<const T*>(job.rows[i] + (job.rows[i] == job.none ? 0 : plane * job.x_plane));
      const bool between = (plane > 0 || job.before) && (plane + 1 < job.planes || job.behind) &&
                           job.x_plane >= i64(2 * S * L * sizeof(T));
      if (job.planes > 1) f.see_first(between);
      char* y = job.y + plane * job.y_plane;
      if (few && between) {
        for (int i = 0; i < (job.n > L ? kShort : 1); ++i)
          pieces[i].two ? f.template short_rows<true>(y, pieces[i]) : f.template short_rows<false>(y, pieces[i]);
        continue;
      }
      for (i64 r = 0; r < job.count; ++r, y += job.y_step) {
        if (S > 1 && job.in_order) read_new_rows<T, KD, KH, S>(f.rows_, job.cols, job.ahead);
        char* const to = job.around ? job.around->room(y) : y;
        f.row(reinterpret_cast<T*>(to), counted, reinterpret_cast<const A*>(padding));
        if (job.around) job.around->wrote(job.n * i64(sizeof(T)));
        if (padding) padding += job.padding_step;
        for (int i = 0; i < KD * KH; ++i)
          f.rows_[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(f.rows_[i]) + job.step[i]);
        for (int i = 0; Masked && i < KD * KH; ++i) f.masks_[i] += job.mask_step[i];
      }
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
