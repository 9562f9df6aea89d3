// Small windows whose winners are asked for, too: every tap of L windows in row-major order, each compared with the best so
// far. The first of equal values stays; of windows that are all -inf it is the first tap that is not absent.
#pragma once
#include "fused_job.hpp"

namespace anypool {
namespace {

// Winners as Code: a byte for offsets, int64 for indices.
template <class T, bool IsMax, int KD, int KH, int KW, int S, class Code>
class FusedCodes {
  static constexpr int L = kLanes<float>, kRows = KD * KH, kReach = (KW - 1) / S * S, kMost = 160;
  static constexpr bool kIndices = sizeof(Code) == 8;
  using V = Vec<float, L>;
  using I = Vec<int32_t, L>;
  using Memory = Lanes<T, float, L, true>;
  struct Parts {  // of what is read for L windows: at column s * L + r * S
    Part at[S][kReach / S + 1];
    bool whole;
  };
  const FusedJob& job_;
  const T* rows_[kRows];
  NaNs<float, L> nan_;

  static ANYPOOL_INLINE V none() { return splat<V>(IsMax ? Limits<float>::bottom : Limits<float>::top); }

  // Column W of L windows, the first of which starts at column c.
  template <int W, bool Edge>
  static ANYPOOL_INLINE V tap(const T* row, i64 c, const Parts& parts) {
    constexpr int r = W / S;
    if constexpr (kSame<T, bf16> && S == 2 && !Edge)
      return every_second<W % 2, L>(load<Vec<uint32_t, L>>(row + c + r * S));
    V v[S];
    for (int s = 0; s < S; ++s) {
      const T* from = row + c + s * L + r * S;
      v[s] = Edge ? Memory::load_part(from, parts.at[s][r], none()) : Memory::load(from);
    }
    if constexpr (S == 1) return v[0];
    return W % 2 ? Unzip<float, L>::odd(v[0], v[S - 1]) : Unzip<float, L>::even(v[0], v[S - 1]);
  }
  template <bool Edge>
  ANYPOOL_INLINE void windows(i64 c, const Parts& parts, const int32_t* taps, V& best, I& code,
                              NaNs<float, L>& nan) const {
    for (int i = 0; i < kRows; ++i) {
      V v[KW];
      v[0] = tap<0, Edge>(rows_[i], c, parts);
      v[1] = tap<1, Edge>(rows_[i], c, parts);
      if constexpr (KW > 2) v[2] = tap<2, Edge>(rows_[i], c, parts);
      nan.see(v[0], v[1]);
      if constexpr (KW > 2) nan.see(v[2], v[2]);
      for (int w = 0; w < KW; ++w) {
        const auto better = IsMax ? v[w] > best : v[w] < best;
        code = better ? I{} + taps[i * KW + w] : code;
        best = better ? v[w] : best;
      }
    }
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

 public:
  explicit FusedCodes(const FusedJob& job) : job_(job) {}
  static bool run(const FusedJob& job) {
    FusedCodes f(job);
    char *y = job.y, *codes = job.codes;
    Parts parts[kMost];
    for (i64 from = 0; from < job.n; from += kMost * L) {  // as many windows as there are parts for
      const i64 to = lower(job.n, from + kMost * L);
      for (i64 o = from; o < to; o += L) {
        Parts& p = parts[(o - from) / L];
        const i64 c = job.start + o * S;
        p.whole = c >= 0 && c + S * L + kReach <= job.cols;
        for (int s = 0; s < S; ++s)
          for (int r = 0; r <= kReach / S; ++r) p.at[s][r] = Part(inside<L>(c + s * L + r * S, job.cols));
      }
      f.restart();
      for (i64 r = 0; r < job.count; ++r) {
        if (S > 1 && job.in_order) read_new_rows<T, KD, KH, S>(f.rows_, job.cols, job.ahead);
        f.row(reinterpret_cast<T*>(y + r * job.y_step), reinterpret_cast<Code*>(codes + r * job.codes_step),
              job.index + r * job.index_step, from, to, parts);
      }
    }
    return f.nan_.any();
  }

 private:
  void restart() {
    for (int i = 0; i < kRows; ++i) rows_[i] = reinterpret_cast<const T*>(job_.rows[i]);
  }
  ANYPOOL_INLINE void row(T* y, Code* codes, i64 index, i64 from, i64 to, const Parts* parts) {
    NaNs<float, L> nan;  // and other locals: see Fused::row
    const int32_t *taps = job_.tap, *first_column = job_.first_column, first_row = job_.first_row;
    const i64 start = job_.start;
    for (i64 o = from; o < to; o += L, ++parts) {
      V best = none();
      I code = load<I>(first_column + o) + first_row;
      if (parts->whole)
        windows<false>(start + o * S, *parts, taps, best, code, nan);
      else
        windows<true>(start + o * S, *parts, taps, best, code, nan);
      const i64 n = to - o;
      if (n >= L)
        Memory::store(y + o, best);
      else
        Memory::store_part(y + o, best, Part({0, n}));
      store_codes(codes + o, code, index + o * S, n);
    }
    nan_.add(nan);
    for (int i = 0; i < kRows; ++i)
      rows_[i] = reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows_[i]) + job_.step[i]);
  }
};

}  // namespace
}  // namespace anypool
