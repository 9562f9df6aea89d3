// Small windows whose winners are asked for, too: every tap of L windows in row-major order, each compared with the best so
// far. The first of equal values stays; of windows that are all -inf it is the first tap that is not absent.
#pragma once
#include "fused.hpp"

namespace anypool {
namespace {

// Winners as Code: a byte for offsets, int64 for indices.
template <class T, bool IsMax, int KD, int KH, int KW, int S, class Code>
class FusedCodes {
  using Op = SelectNumbers<float, IsMax>;
  static constexpr int L = kLanes<float>, kRows = KD * KH, kSteps = (KW - 1) / S + 1;
  static constexpr int kCols = L * S + (kSteps - 1) * S;  // that L windows are read from: S * L from each S-th on
  static constexpr bool kIndices = sizeof(Code) == 8;
  using V = Vec<float, L>;
  using I = Vec<int32_t, L>;
  using Memory = Lanes<T, float, L, true>;
  using Rows = WindowRows<T, KD, KH>;
  struct End {  // L windows, not all of whose columns lie inside: a row's first ones and its last ones
    RowEnd<float, L, S> at[kSteps];
    End() = default;
    End(i64 c, i64 cols) {
      for (int r = 0; r < kSteps; ++r) at[r] = RowEnd<float, L, S>(c + r * S, cols);
    }
  };
  enum class Read { whole, beside, parts };  // all columns inside; left out once they are read; not read

  const FusedJob& job_;
  End first_, tail_[5];
  Part last_;             // of the last results
  i64 head_ = 0, whole_;  // results that come from first_, and those up to the tail
  int tails_ = 0;
  NaNs<float, L> nan_;

  static ANYPOOL_INLINE V none() { return splat<V>(Op::identity().a); }

  // Column W of L windows, the first of which starts at column c.
  template <int W, Read R>
  static ANYPOOL_INLINE V tap(const T* row, i64 c, const End* end) {
    constexpr int r = W / S;
    const T* from = row + c + r * S;
    if constexpr (kSame<T, bf16> && S == 2 && R != Read::parts)
      return every_second<W % 2, L>(load<Vec<uint32_t, L>>(from));
    V v[S];
    for (int s = 0; s < S; ++s)
      v[s] =
          R == Read::parts ? Memory::load_part(from + s * L, end->at[r].part[s], none()) : Memory::load(from + s * L);
    if constexpr (S == 1) return v[0];
    return W % 2 ? Unzip<float, L>::odd(v[0], v[S - 1]) : Unzip<float, L>::even(v[0], v[S - 1]);
  }
  template <int W, Read R>
  static ANYPOOL_INLINE V seen(V v, const End* end) {
    if constexpr (R == Read::beside) return end->at[W / S].kept[W % S].choose(v, none());
    return v;
  }
  template <Read R, class Some>
  static ANYPOOL_INLINE void windows(const Some& rows, i64 c, const End* end, const I* taps, V& best, I& code,
                                     NaNs<float, L>& nan) {
    for (int i = 0; i < kRows; ++i) {
      V v[KW];
      v[0] = tap<0, R>(rows[i], c, end);
      v[1] = tap<1, R>(rows[i], c, end);
      if constexpr (KW > 2) v[2] = tap<2, R>(rows[i], c, end);
      if (i % KH >= KH - S) {  // rows that no window has seen before
        // Columns that the next windows begin with are theirs to look at; the last ones of a row have none behind them.
        nan.see(v[0], v[S - 1]);
        if constexpr (R != Read::whole) nan.see(v[KW - 1], v[1]);
      }
      v[0] = seen<0, R>(v[0], end), v[1] = seen<1, R>(v[1], end);
      if constexpr (KW > 2) v[2] = seen<2, R>(v[2], end);
      // The code of the first tap stands already: where the tap is absent, that is the first one that is not.
      if (i == 0) best = v[0];
      for (int w = i == 0; w < KW; ++w) {
        const auto better = IsMax ? v[w] > best : v[w] < best;
        code = better ? taps[i * KW + w] : code;
        best = Op::template merged<L>(best, v[w]);
      }
    }
  }

  // At an end of a row: on its own, so that what the loop between the ends needs stays in registers.
  struct AtEnd {
    V best;
    I code;
    NaNs<float, L> nan;
  };
  static __attribute__((noinline)) void windows_at_end(const T* const* rows, i64 c, const End& end, bool between,
                                                       const I* taps, AtEnd& at) {
    if (between)
      windows<Read::beside>(rows, c, &end, taps, at.best, at.code, at.nan);
    else
      windows<Read::parts>(rows, c, &end, taps, at.best, at.code, at.nan);
  }

  static ANYPOOL_INLINE void store_codes(Code* to, I code, i64 index, i64 n) {
    if constexpr (kIndices) {
      constexpr int H = L / 2;
      using Half = Vec<i64, H>;
      Vec<int32_t, H> low, high;
      __builtin_memcpy(&low, &code, sizeof low);
      __builtin_memcpy(&high, reinterpret_cast<const char*>(&code) + sizeof low, sizeof high);
      Half at;
      for (int i = 0; i < H; ++i) at[i] = index + i * S;
      put<H>(to, convert<Half>(low) + at, n);
      if (n > H) put<H>(to + H, convert<Half>(high) + at + i64(H * S), n - H);
    } else {
      put<L>(to, convert<Vec<Code, L>>(code), n);
    }
  }
  template <int N>
  static ANYPOOL_INLINE void put(Code* to, Vec<Code, N> v, i64 n) {
    if (n >= N) return store(to, v);
    store_bits<Code, N>(to, v, Part({0, n}));
  }

  // Output rows [from, to); `whole` rows are stored as whole vectors. In locals what the loop needs: see Fused::rows.
  __attribute__((noinline)) void rows(i64 plane, i64 from, i64 to, bool between, i64 whole) {
    if (from == to) return;
    Rows at(job_, plane, from);
    I taps[kRows * KW];
    for (int i = 0; i < kRows * KW; ++i) taps[i] = I{} + job_.tap[i];
    const int32_t *first_column = job_.first_column, first_row = job_.first_row;
    const i64 n = job_.n, head = head_, inner = whole_, start = job_.start;
    char *y = job_.y + plane * job_.y_plane + from * job_.y_step,
         *codes = job_.codes + plane * job_.codes_plane + from * job_.codes_step;
    i64 index = job_.index + from * job_.index_step;
    NaNs<float, L> all;
    for (i64 r = from; r < to; ++r) {
      NaNs<float, L> nan;
      T* const out = reinterpret_cast<T*>(y);
      Code* const winners = reinterpret_cast<Code*>(codes);
      const bool stored_whole = r < whole;
      AtEnd ends;
      const auto at_end = [&](const T* const* seen, const End& end, i64 o) {
        ends.code = load<I>(first_column + o) + first_row;
        windows_at_end(seen, start + o * S, end, between, taps, ends);
        if (stored_whole || o + L <= n)
          Memory::store(out + o, ends.best);
        else
          Memory::store_part(out + o, ends.best, last_);
        store_codes(winners + o, ends.code, index + o * S, stored_whole ? L : n - o);
      };
      const T* listed[kRows];
      at.list(listed);
      if (S > 1 && job_.in_order) read_new_rows<T, KD, KH, S>(listed, job_.cols, job_.ahead);
      if (head) at_end(listed, first_, 0);
      i64 o = head;
      for (; o < inner; o += L) {
        V best;
        I code = load<I>(first_column + o) + first_row;
        windows<Read::whole>(at, start + o * S, nullptr, taps, best, code, nan);
        Memory::store(out + o, best);
        store_codes(winners + o, code, index + o * S, L);
      }
      for (int t = 0; t < tails_; ++t, o += L) at_end(listed, tail_[t], o);
      all.add(nan), all.add(ends.nan);
      y += job_.y_step, codes += job_.codes_step, index += job_.index_step;
      at.next();
    }
    nan_.add(all);
  }

 public:
  explicit FusedCodes(const FusedJob& job) : job_(job) {
    const i64 start = job.start, last = (job.n - 1) / L * L;
    if (start < 0) first_ = End(start, job.cols), head_ = last > 0 ? L : 0;
    for (whole_ = head_; whole_ < last && start + whole_ * S + kCols <= job.cols;) whole_ += L;
    for (i64 o = whole_; o < job.n; o += L) tail_[tails_++] = End(start + o * S, job.cols);
    last_ = Part({0, job.n - last});
  }
  static bool run(const FusedJob& job) {
    FusedCodes f(job);
    const bool follow = job.codes_step == job.n * i64(sizeof(Code));
    const i64 size = sizeof(T), whole = follow || job.n % L == 0 ? stored_whole<L>(job, size) : 0,
              read = job.start + (job.n - 1) / L * L * S + kCols;
    const RowsBetween between(job, kRows, job.start * size, read * size);
    for (i64 plane = 0; plane < job.planes; ++plane) {
      if (job.planes > 1) see_first_rows<T, float, KD, KH, S>(job, plane, f.nan_);
      between.each(plane, [&](i64 from, i64 to, bool is) { f.rows(plane, from, to, is, whole); });
    }
    return f.nan_.any();
  }
};

}  // namespace
}  // namespace anypool
