// Reductions of tokens: several at once, in one read of the data.
#pragma once
#include "arithmetic.hpp"
#include "token_tree.hpp"

namespace anypool {
namespace {

template <class A>
struct BitsOf {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};
template <class A, int L>
ANYPOOL_INLINE Vec<A, L> magnitude(Vec<A, L> v) {
  if constexpr (L == 1) {
    return absolute(v);
  } else {
    using I = typename BitsOf<A>::type;
    Vec<I, L> bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    bits &= Limits<I>::top;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
  }
}

// What one term keeps of its tokens: a header (the sum of weights) and one to three rows.
template <class A>
struct Kept {
  double* weight;
  A* a;             // sum, max ...
  int32_t* winner;  // max, min, largest
  double *b, *c;    // moments, power, exponentials
};
inline i64 kept_bytes(const TokenTerm& t, i64 n, i64 size) {
  switch (t.keep) {
    case Keep::sum:
    case Keep::positions:
    case Keep::weighted: return 64 + round_up(n * size, 64);
    case Keep::max:
    case Keep::min:
    case Keep::largest: return 64 + round_up(n * size, 64) + (t.winners ? round_up(4 * n, 64) : 0);
    case Keep::power:
    case Keep::clamped: return 64 + round_up(8 * n, 64);
    default: return 64 + 2 * round_up(8 * n, 64);
  }
}
template <class A>
Kept<A> kept(char* state, i64 n) {
  char* rows = state + 64;
  return {reinterpret_cast<double*>(state), reinterpret_cast<A*>(rows),
          reinterpret_cast<int32_t*>(rows + round_up(n * i64(sizeof(A)), 64)), reinterpret_cast<double*>(rows),
          reinterpret_cast<double*>(rows + round_up(8 * n, 64))};
}
inline i64 state_bytes_of(const TokenPlan& p, i64 n, i64 size) {
  i64 bytes = 64;
  for (int t = 0; t < p.n_terms; ++t) bytes += kept_bytes(p.term[t], n, size);
  return bytes;
}

template <class A, int L>
ANYPOOL_INLINE Vec<double, L> doubles(Vec<A, L> v) {
  if constexpr (kSame<A, double> || L == 1)
    return v;
  else
    return __builtin_convertvector(v, Vec<double, L>);
}

// The winner of two: the better one, of equals the earlier, of NaNs the later.
struct Max {
  template <class V>
  static ANYPOOL_INLINE V best(V l, V r) {
    return max_of<V>(l, r);
  }
  template <class V>
  static ANYPOOL_INLINE auto wins(V l, V r) {
    return (r > l) | (r != r);
  }
};
struct Min {
  template <class V>
  static ANYPOOL_INLINE V best(V l, V r) {
    return min_of<V>(l, r);
  }
  template <class V>
  static ANYPOOL_INLINE auto wins(V l, V r) {
    return (r < l) | (r != r);
  }
};
template <class Better, class A, int L>
ANYPOOL_INLINE void select(A* a, int32_t* w, Vec<A, L> v, Vec<int32_t, L> by, Width<L> width) {
  const Vec<A, L> old = at(a, width);
  const auto wins = Better::wins(old, v);
  put(a, Vec<A, L>(wins ? v : old));
  if constexpr (L == 1) {
    if (wins) *w = by;
  } else {
    const Vec<int32_t, L> mask = __builtin_convertvector(wins, Vec<int32_t, L>);
    put(w, Vec<int32_t, L>((mask & by) | (~mask & at(w, width))));
  }
}

template <class T>
class Reducer {
  using A = typename SumOf<T>::type;
  const TokenPlan& p_;
  i64 column_, n_;
  Arena arena_;
  Reader<T> reader_;
  double* line_;  // a row to work in
  bool reads_ = false;
  // Rows that follow one another in memory are fetched four rows ahead while the first term reads them: of rows read side
  // by side the processor's own prefetchers see no stream.
  i64 row_ahead_, ahead_ = 0;

 public:
  const i64 state_bytes;

  Reducer(const TokenPlan& p, i64 column, i64 width, char* scratch)
      : p_(p),
        column_(column),
        n_(width),
        arena_{reinterpret_cast<uintptr_t>(scratch)},
        reader_(p.runs, p.x, p.runs.offset, p.row, p.col, column, width, arena_),
        state_bytes(state_bytes_of(p, width, sizeof(A))) {
    line_ = arena_.take_array<double>(width);
    reads_ = p.n_terms > 0;
    row_ahead_ = p.row == width && p.col == 1 ? 4 * width : 0;
  }
  Arena& arena() { return arena_; }

  void seek(i64 output, i64 first) {
    reader_.seek(output, first);
    skipped_ = p_.skipped ? p_.skipped[output] : 0;
  }

  void chunk(char* state, i64 n, i64 ordinal) {
    reader_.next(n);
    for (int t = 0; t < p_.n_terms; ++t) {
      const TokenTerm& term = p_.term[t];
      ahead_ = t == 0 ? row_ahead_ : 0;
      chunk_of(term, kept<A>(state, n_), n, ordinal);
      state += kept_bytes(term, n_, sizeof(A));
    }
  }

  void merge(const char* left, char* right) {
    for (int t = 0; t < p_.n_terms; ++t) {
      const TokenTerm& term = p_.term[t];
      merge_of(term, kept<A>(const_cast<char*>(left), n_), kept<A>(right, n_));
      const i64 bytes = kept_bytes(term, n_, sizeof(A));
      left += bytes, right += bytes;
    }
  }

  bool reads() const { return reads_; }

  void finish(i64 output, char* state) {
    const i64 n = p_.runs.tokens[output];
    for (int i = 0; i < p_.n_results; ++i) {
      const TokenResult& r = p_.result[i];
      char* y = element(p_.y, p_.out, output * p_.y_row + r.column + column_);
      if (n == 0) {
        for (i64 c = 0; c < n_; ++c) line_[c] = p_.empty;
        store_row(p_.out, y, line_, n_);
        continue;
      }
      if (r.finish >= TokenFinish::first) {
        reader_.seek(output, r.finish == TokenFinish::first ? 0 : n - 1);
        reader_.next(1);
        over_row<double>(reader_.row[0], n_, [&](i64 c, auto v, auto) { put(line_ + c, v); });
        store_row(p_.out, y, line_, n_);
        continue;
      }
      char* at_term = state;
      for (int t = 0; t < r.term; ++t) at_term += kept_bytes(p_.term[t], n_, sizeof(A));
      finish_of(r, p_.term[r.term], kept<A>(at_term, n_), output, n, y);
    }
    for (int t = 0; t < p_.n_terms; ++t) {
      if (int32_t* winners = p_.term[t].winners) {
        winners += output * p_.dim + column_;
        if (n == 0)
          for (i64 c = 0; c < n_; ++c) winners[c] = -1;
        else
          __builtin_memcpy(winners, kept<A>(state, n_).winner, size_t(4 * n_));
      }
      if (state) state += kept_bytes(p_.term[t], n_, sizeof(A));
    }
  }

 private:
  i64 skipped_ = 0;

  // a = the rows merged one after the other; four are taken at a time, so that `a` is read and written less often.
  template <class V, class Lift, class M>
  void merge_rows(V* a, i64 n, Lift&& lift, M&& merge) {
    over_row<V>(reader_.row[0], n_, [&](i64 c, auto v, auto k) { put(a + c, lift(v, k, 0)); }, ahead_);
    i64 i = 1;
    for (; i + 4 <= n; i += 4) {
      over_four_rows<V>(reader_.row + i, n_, ahead_ ? reader_.row[i + 3] + n_ : nullptr,
                        [&](i64 c, auto v0, auto v1, auto v2, auto v3, auto k) {
                          auto s = merge(at(a + c, k), lift(v0, k, i));
                          s = merge(s, lift(v1, k, i + 1));
                          s = merge(s, lift(v2, k, i + 2));
                          put(a + c, merge(s, lift(v3, k, i + 3)));
                        });
    }
    for (; i < n; ++i)
      over_row<V>(
          reader_.row[i], n_, [&](i64 c, auto v, auto k) { put(a + c, merge(at(a + c, k), lift(v, k, i))); }, ahead_);
  }
  static constexpr auto kAdd = [](auto l, auto r) { return l + r; };
  static constexpr auto kAsIs = [](auto v, auto, i64) { return v; };
  template <class W>
  void add_rows(A* a, i64 n, W&& weight) {
    A w[kChunk];
    for (i64 i = 0; i < n; ++i) w[i] = A(weight(i));
    merge_rows(a, n, [&](auto v, auto, i64 i) { return v * w[i]; }, kAdd);
  }
  template <class Better, bool Magnitude>
  void select_rows(Kept<A> s, bool winners, i64 n, i64 ordinal) {
    const auto lifted = [](auto v, auto k) {
      constexpr int L = decltype(k)::n;
      if constexpr (Magnitude)
        return magnitude<A, L>(v);
      else
        return v;
    };
    if (!winners)
      return merge_rows(
          s.a, n, [&](auto v, auto k, i64) { return lifted(v, k); }, [](auto l, auto r) { return Better::best(l, r); });
    over_row<A>(reader_.row[0], n_, [&](i64 c, auto v, auto k) { put(s.a + c, lifted(v, k)); });
    for (i64 c = 0; c < n_; ++c) s.winner[c] = int32_t(ordinal);
    for (i64 i = 1; i < n; ++i)
      over_row<A>(
          reader_.row[i], n_,
          [&](i64 c, auto v, auto k) {
            constexpr int L = decltype(k)::n;
            select<Better, A, L>(s.a + c, s.winner + c, lifted(v, k), Vec<int32_t, L>{} + int32_t(ordinal + i), k);
          },
          ahead_);
  }
  // Mean and sum of squared distances of a chunk, from sums of distances to its first token: of no more than kChunk
  // distances one is at least as large as that to the mean, so the subtraction below loses few bits. Column by column, in
  // registers; the rows are in the cache, as the chunk before fetched them.
  template <bool Weighted, class W>
  void moment_rows(Kept<A> s, i64 n, W&& weight) {
    A w[kChunk];
    for (i64 i = 0; i < n; ++i) w[i] = A(weight(i));
    const double by = *s.weight == 0 ? 0 : 1 / *s.weight;
    const T* const* rows = reader_.row;
    const T* next = ahead_ ? rows[n - 1] + n_ : nullptr;
    const auto column = [&](i64 c, auto k) {
      constexpr int L = decltype(k)::n;
      const Vec<A, L> origin = load_as<T, A, L>(rows[0] + c);
      Vec<A, L> first{}, second = origin - origin;  // 0, but for NaN and infinities, also where they are alone
      for (i64 i = 1; i < n; ++i) {
        const Vec<A, L> d = load_as<T, A, L>(rows[i] + c) - origin;
        const Vec<A, L> wd = Weighted ? d * w[i] : d;
        first = first + wd;
        second = second + wd * d;
      }
      const auto sum = doubles<A, L>(first), shift = sum * by;
      put(s.b + c, doubles<A, L>(origin) + shift);
      put(s.c + c, doubles<A, L>(second) - sum * shift);
    };
    constexpr int L = kLanes<A>;
    i64 c = 0;
    for (; c + L <= n_; c += L) {
      if (next)
        for (i64 i = 0; i < n * L; i += 64 / i64(sizeof(T))) __builtin_prefetch(next + n * c + i);
      column(c, Width<L>{});
    }
    for (; c < n_; ++c) column(c, Width<1>{});
  }
  void power_rows(const TokenTerm& t, double* b, i64 n) {
    const double eps = t.eps, p = t.p;
    const bool clamp = t.keep == Keep::clamped;
    const auto base = [=](auto v, auto k, i64) {
      constexpr int L = decltype(k)::n;
      using V = Vec<double, L>;
      return V(clamp ? (v < eps ? V{} + eps : v) : magnitude<double, L>(v));
    };
    if (p == 1) return merge_rows(b, n, base, kAdd);
    if (p == 2) return merge_rows(b, n, [=](auto v, auto k, i64) { return base(v, k, 0) * base(v, k, 0); }, kAdd);
    if (p == 3)
      return merge_rows(b, n, [=](auto v, auto k, i64) { return base(v, k, 0) * base(v, k, 0) * base(v, k, 0); }, kAdd);
    const auto raise = [=](auto v, auto k, i64) {
      constexpr int L = decltype(k)::n;
      auto u = base(v, k, 0);
      if constexpr (L == 1)
        u = pow(u, p);
      else
        for (int i = 0; i < L; ++i) u[i] = pow(u[i], p);
      return u;
    };
    merge_rows(b, n, raise, kAdd);
  }
  void exponential_rows(Kept<A> s, i64 n, double r) {
    for (i64 i = 0; i < n; ++i)
      over_row<double>(reader_.row[i], n_, [&](i64 c, auto v, auto k) {
        const auto scaled = v * r;
        put(s.b + c, i ? Max::best(at(s.b + c, k), scaled) : scaled);
      });
    for (i64 i = 0; i < n; ++i)
      over_row<double>(reader_.row[i], n_, [&](i64 c, auto v, auto k) {
        constexpr int L = decltype(k)::n;
        const auto e = exp_below<L>(v * r, at(s.b + c, k));
        put(s.c + c, i ? at(s.c + c, k) + e : e);
      });
  }

  void chunk_of(const TokenTerm& t, Kept<A> s, i64 n, i64 ordinal) {
    const auto weight = [&](i64 i) { return p_.weights[reader_.flat[i]]; };
    const auto total = [&] {
      double sum = weight(0);
      for (i64 i = 1; i < n; ++i) sum += weight(i);
      return sum;
    };
    switch (t.keep) {
      case Keep::sum: return merge_rows(s.a, n, kAsIs, kAdd);
      case Keep::positions: return add_rows(s.a, n, [&](i64 i) { return double(skipped_ + ordinal + i + 1); });
      case Keep::weighted: *s.weight = total(); return add_rows(s.a, n, weight);
      case Keep::max: return select_rows<Max, false>(s, t.winners, n, ordinal);
      case Keep::min: return select_rows<Min, false>(s, t.winners, n, ordinal);
      case Keep::largest: return select_rows<Max, true>(s, t.winners, n, ordinal);
      case Keep::moments: *s.weight = double(n); return moment_rows<false>(s, n, [](i64) { return 1.0; });
      case Keep::weighted_moments: *s.weight = total(); return moment_rows<true>(s, n, weight);
      case Keep::power:
      case Keep::clamped: return power_rows(t, s.b, n);
      case Keep::exponentials: return exponential_rows(s, n, t.p);
    }
  }

  void merge_of(const TokenTerm& t, Kept<A> l, Kept<A> r) {
    const auto add = [&](auto* a, const auto* b) {
      for (i64 c = 0; c < n_; ++c) a[c] = b[c] + a[c];
    };
    switch (t.keep) {
      case Keep::weighted: *r.weight = *l.weight + *r.weight; [[fallthrough]];
      case Keep::sum:
      case Keep::positions: return add(r.a, l.a);
      case Keep::max:
      case Keep::largest: return t.winners ? pick<Max>(l, r) : best<Max>(l, r);
      case Keep::min: return t.winners ? pick<Min>(l, r) : best<Min>(l, r);
      case Keep::moments:
      case Keep::weighted_moments: return merge_moments(l, r);
      case Keep::power:
      case Keep::clamped: return add(r.b, l.b);
      case Keep::exponentials:
        over_row<double>(static_cast<const double*>(l.b), n_, [&](i64 c, auto a, auto k) {
          constexpr int L = decltype(k)::n;
          const auto b = at(r.b + c, k);
          const auto top = Max::best(a, b);
          put(r.c + c, at(l.c + c, k) * exp_below<L>(a, top) + at(r.c + c, k) * exp_below<L>(b, top));
          put(r.b + c, top);
        });
    }
  }
  void merge_moments(Kept<A> l, Kept<A> r) {
    const double total = *l.weight + *r.weight, share = total == 0 ? 0 : *r.weight / total;
    const double between = *l.weight * share;
    for (i64 c = 0; c < n_; ++c) {
      const double apart = r.b[c] - l.b[c];
      r.b[c] = l.b[c] + apart * share;
      r.c[c] = l.c[c] + r.c[c] + apart * apart * between;
    }
    *r.weight = total;
  }
  template <class Better>
  void best(Kept<A> l, Kept<A> r) {
    over_row<A>(static_cast<const A*>(l.a), n_,
                [&](i64 c, auto v, auto k) { put(r.a + c, Better::best(v, at(r.a + c, k))); });
  }
  template <class Better>
  void pick(Kept<A> l, Kept<A> r) {
    for (i64 c = 0; c < n_; ++c)
      if (!Better::wins(l.a[c], r.a[c])) r.a[c] = l.a[c], r.winner[c] = l.winner[c];
  }

  template <class V>
  void divide(void* y, const V* v, double by) {
    V* line = reinterpret_cast<V*>(line_);
    const V d = V(by);
    for (i64 c = 0; c < n_; ++c) line[c] = v[c] / d;
    store_row(p_.out, y, line, n_);
  }
  void finish_of(const TokenResult& r, const TokenTerm& t, Kept<A> s, i64 output, i64 n, void* y) {
    const double count = double(n), p = t.p;
    switch (r.finish) {
      case TokenFinish::over_count: return divide(y, s.a, count);
      case TokenFinish::over_root_count: return divide(y, s.a, sqrt(count));
      case TokenFinish::over_weight: {
        const double before = p_.skipped ? double(p_.skipped[output]) : 0.0;
        return divide(y, s.a, t.keep == Keep::positions ? count * (count + 1) / 2 + before * count : *s.weight);
      }
      case TokenFinish::deviation: {
        const double by = 1 / *s.weight;
        for (i64 c = 0; c < n_; ++c) line_[c] = __builtin_sqrt(s.c[c] * by);  // NaN if weights below 0 prevail
        break;
      }
      case TokenFinish::root:
      case TokenFinish::mean_root: {
        const double by = r.finish == TokenFinish::root ? 1.0 : count;
        for (i64 c = 0; c < n_; ++c) line_[c] = s.b[c] / by;
        finish_roots(line_, n_, p);
        break;
      }
      case TokenFinish::log:
        for (i64 c = 0; c < n_; ++c) line_[c] = (s.b[c] + log(s.c[c])) / p;
        break;
      default: return t.keep >= Keep::moments ? store_row(p_.out, y, s.b, n_) : store_row(p_.out, y, s.a, n_);
    }
    store_row(p_.out, y, line_, n_);
  }
};

}  // namespace
}  // namespace anypool
