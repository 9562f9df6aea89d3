// Reductions of tokens: several at once, in one read of the data.
#pragma once
#include "arithmetic.hpp"
#include "doubles.hpp"
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

// f(c, how many, v as doubles ...), half of the lanes at a time where a register holds no more doubles. GCC would put
// vectors longer than that together in memory, where loads wait for both halves.
template <class A, int L, class F, class... V>
ANYPOOL_INLINE void in_doubles(F&& f, i64 c, V... v) {
  if constexpr (kSame<A, double> || L == 1) {
    f(c, Width<L>{}, Vec<double, L>(v)...);
  } else {
    constexpr typename MakeIndices<L / 2>::type lanes;
    f(c, Width<L / 2>{}, half_as_doubles<0, A, L>(v, lanes)...);
    f(c + L / 2, Width<L / 2>{}, half_as_doubles<1, A, L>(v, lanes)...);
  }
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
// (v, w), a value and where it was, with (x, by) on its right.
template <class Better, class A, int L>
ANYPOOL_INLINE void select(Vec<A, L>& v, Vec<int32_t, L>& w, Vec<A, L> x, Vec<int32_t, L> by) {
  const auto wins = Better::wins(v, x);
  v = wins ? x : v;
  if constexpr (L == 1) {
    if (wins) w = by;
  } else {
    const Vec<int32_t, L> mask = __builtin_convertvector(wins, Vec<int32_t, L>);
    w = (mask & by) | (~mask & w);
  }
}
// Means and sums of squared distances to them, with those on their left; see Parting.
template <class V>
ANYPOOL_INLINE void join_moments(V& mean, V& squares, V left_mean, V left_squares, double share, double between) {
  const V apart = mean - left_mean;
  mean = left_mean + apart * share;
  squares = left_squares + squares + apart * apart * between;
}
// A maximum and the sum of exponentials below it, with those on their left.
template <int L>
ANYPOOL_INLINE void join_exponentials(Vec<double, L>& top, Vec<double, L>& sum, Vec<double, L> left_top,
                                      Vec<double, L> left_sum) {
  const auto common = Max::best(left_top, top);
  sum = left_sum * exp_below<L>(left_top, common) + sum * exp_below<L>(top, common);
  top = common;
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
  }
  Arena& arena() { return arena_; }

  void seek(i64 output, i64 first) {
    reader_.seek(output, first);
    skipped_ = p_.skipped ? p_.skipped[output] : 0;
  }

  void chunk(char* state, i64 n, i64 ordinal, Left left) {
    reader_.next(n);
    const i64 step = p_.n_terms > 1 && !reader_.narrow() ? kTogether : n_;
    for (i64 c = 0; c < n_; c += step) {
      columns_ = {c, lower(c + step, n_)};
      reader_.ahead = reader_.in_order();
      i64 at = 0;
      for (int t = 0; t < p_.n_terms; ++t) {
        const TokenTerm& term = p_.term[t];
        Kept<A> before[64];
        for (int k = 0; k < left.n; ++k) before[k] = kept<A>(left.state[k] + at, n_);
        chunk_of(term, kept<A>(state + at, n_), n, ordinal, {before, left.n});
        reader_.ahead = false;  // the first term has fetched everything
        at += kept_bytes(term, n_, sizeof(A));
      }
    }
  }

  void merge(const char* left, char* right) {
    columns_ = {0, n_};
    for (int t = 0; t < p_.n_terms; ++t) {
      const TokenTerm& term = p_.term[t];
      const Kept<A> before = kept<A>(const_cast<char*>(left), n_);
      merge_of(term, kept<A>(right, n_), {&before, 1});
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
        write_row(p_.out, y, n_, [&](i64) { return p_.empty; });
        continue;
      }
      if (r.finish >= TokenFinish::first) {
        reader_.seek(output, r.finish == TokenFinish::first ? 0 : n - 1);
        reader_.next(1);
        write_row(p_.out, y, n_, [row = reader_.row[0]](i64 c) { return A(widen(row[c])); });
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
  // Of a chunk that the L1 cache does not hold, each of several reductions walks over so many columns before the next one
  // does, and all but the first find them there.
  static constexpr i64 kTogether = 512 / i64(sizeof(T));
  Columns columns_{};  // those that are being worked on
  i64 skipped_ = 0;

  // What is on the left of a chunk, from the nearest on. It is merged in the same walk over the columns as the tokens: each
  // walk more is a time in which nothing is read from memory.
  struct Before {
    const Kept<A>* kept;
    int n;
  };
  template <class V, class M>
  static auto with(Before before, V* Kept<A>::* row, M merge) {
    return [=](auto s, i64 c, auto k) {
      for (int i = 0; i < before.n; ++i) s = merge(at(before.kept[i].*row + c, k), s);
      return s;
    };
  }
  template <class V, class Lift, class M>
  void merge_tokens(Kept<A> s, V* Kept<A>::* row, i64 n, Before before, Lift&& lift, M&& merge) {
    merge_rows(s.*row, reader_, n, columns_, lift, merge, with(before, row, merge));
  }
  // The same of a state that is there already.
  template <class V, class M>
  void merge_states(Kept<A> s, V* Kept<A>::* row, Before before, M&& merge) {
    const auto end = with(before, row, merge);
    over_columns<V>(columns_, [&](i64 c, auto k) { put(s.*row + c, end(at(s.*row + c, k), c, k)); });
  }
  static void add_weights(Kept<A> s, Before before) {
    for (int i = 0; i < before.n; ++i) *s.weight = *before.kept[i].weight + *s.weight;
  }
  static constexpr auto kAdd = [](auto l, auto r) { return l + r; };
  static constexpr auto kAsIs = [](auto v, auto, i64) { return v; };
  template <class W>
  void add_tokens(Kept<A> s, i64 n, Before before, W&& weight) {
    A w[kChunk];
    for (i64 i = 0; i < n; ++i) w[i] = A(weight(i));
    merge_tokens(s, &Kept<A>::a, n, before, [&](auto v, auto, i64 i) { return v * w[i]; }, kAdd);
  }

  template <class Better>
  static constexpr auto kBest = [](auto l, auto r) { return Better::best(l, r); };
  template <class Better, bool Magnitude>
  void select_tokens(Kept<A> s, bool winners, i64 n, i64 ordinal, Before before) {
    const auto lifted = [](auto v, auto k) {
      constexpr int L = decltype(k)::n;
      if constexpr (Magnitude)
        return magnitude<A, L>(v);
      else
        return v;
    };
    if (!winners)
      return merge_tokens(s, &Kept<A>::a, n, before, [&](auto v, auto k, i64) { return lifted(v, k); }, kBest<Better>);
    const T* next = n == kChunk ? reader_.behind(n) : nullptr;
    over_columns<A>(columns_, [&](i64 c, auto k) {
      constexpr int L = decltype(k)::n;
      if constexpr (L > 1) fetch<kChunk, L>(next, c);
      const auto token = [&](i64 i) { return lifted(load_as<T, A, L>(reader_.row[i] + c), k); };
      const auto place = [&](i64 i) { return Vec<int32_t, L>{} + int32_t(ordinal + i); };
      Vec<A, L> v = token(0);
      Vec<int32_t, L> w = place(0);
      for (i64 i = 1; i < n; ++i) select<Better, A, L>(v, w, token(i), place(i));
      put_winners<Better, L>(s, c, v, w, before);
    });
  }
  template <class Better, int L>
  void put_winners(Kept<A> s, i64 c, Vec<A, L> v, Vec<int32_t, L> w, Before before) {
    for (int i = 0; i < before.n; ++i) {
      Vec<A, L> left = at(before.kept[i].a + c, Width<L>{});
      Vec<int32_t, L> where = at(before.kept[i].winner + c, Width<L>{});
      select<Better, A, L>(left, where, v, w);
      v = left, w = where;
    }
    put(s.a + c, v);
    put(s.winner + c, w);
  }
  template <class Better>
  void select_states(Kept<A> s, bool winners, Before before) {
    if (!winners) return merge_states(s, &Kept<A>::a, before, kBest<Better>);
    over_columns<A>(columns_, [&](i64 c, auto k) {
      put_winners<Better, decltype(k)::n>(s, c, at(s.a + c, k), at(s.winner + c, k), before);
    });
  }

  // By how much a mean moves towards that of what is on the left, and what the squares gain of their distance.
  struct Parting {
    double share[64], between[64];
    int n;
    // Adds the weights up as well.
    Parting(double* weight, Before before) : n(before.n) {
      for (int i = 0; i < n; ++i) {
        const double left = *before.kept[i].weight, total = left + *weight;
        share[i] = total == 0 ? 0 : *weight / total;
        between[i] = left * share[i];
        *weight = total;
      }
    }
  };
  template <int L>
  void put_moments(Kept<A> s, i64 c, Vec<double, L> mean, Vec<double, L> squares, Before before, const Parting& by) {
    for (int i = 0; i < before.n; ++i) {
      const Kept<A>& left = before.kept[i];
      join_moments(mean, squares, at(left.b + c, Width<L>{}), at(left.c + c, Width<L>{}), by.share[i], by.between[i]);
    }
    put(s.b + c, mean);
    put(s.c + c, squares);
  }
  // Mean and sum of squared distances of a chunk, from sums of distances to its first token: of no more than kChunk
  // distances one is at least as large as that to the mean, so the subtraction below loses few bits.
  template <bool Weighted, class W>
  void moments_of_tokens(Kept<A> s, i64 n, Before before, W&& weight) {
    A w[kChunk];
    for (i64 i = 0; i < n; ++i) w[i] = A(weight(i));
    const double by = *s.weight == 0 ? 0 : 1 / *s.weight;
    const Parting parting(s.weight, before);
    const T* next = n == kChunk ? reader_.behind(n) : nullptr;
    over_columns<A>(columns_, [&](i64 c, auto k) {
      constexpr int L = decltype(k)::n;
      if constexpr (L > 1) fetch<kChunk, L>(next, c);
      const Vec<A, L> origin = load_as<T, A, L>(reader_.row[0] + c);
      Vec<A, L> first{}, second = origin - origin;  // 0, but for NaN and infinities, also where they are alone
      for (i64 i = 1; i < n; ++i) {
        const Vec<A, L> d = load_as<T, A, L>(reader_.row[i] + c) - origin;
        const Vec<A, L> wd = Weighted ? d * w[i] : d;
        first = first + wd;
        second = second + wd * d;
      }
      const auto put = [&](i64 c, auto k, auto from, auto sum, auto squares) {
        const auto shift = sum * by;
        put_moments<decltype(k)::n>(s, c, from + shift, squares - sum * shift, before, parting);
      };
      in_doubles<A, L>(put, c, origin, first, second);
    });
  }
  void moments_of_states(Kept<A> s, Before before) {
    const Parting parting(s.weight, before);
    over_columns<double>(columns_, [&](i64 c, auto k) {
      put_moments<decltype(k)::n>(s, c, at(s.b + c, k), at(s.c + c, k), before, parting);
    });
  }

  void powers_of_tokens(const TokenTerm& t, Kept<A> s, i64 n, Before before) {
    const double eps = t.eps, p = t.p;
    const bool clamp = t.keep == Keep::clamped;
    const auto base = [=](auto v, auto k) {
      constexpr int L = decltype(k)::n;
      using V = Vec<double, L>;
      return V(clamp ? (v < eps ? V{} + eps : v) : magnitude<double, L>(v));
    };
    const auto add = [&](auto&& raise) {
      merge_tokens(s, &Kept<A>::b, n, before, [&](auto v, auto k, i64) { return raise(base(v, k), k); }, kAdd);
    };
    if (p == 1) return add([](auto u, auto) { return u; });
    if (p == 2) return add([](auto u, auto) { return u * u; });
    if (p == 3) return add([](auto u, auto) { return u * u * u; });
    add([=](auto u, auto k) {
      constexpr int L = decltype(k)::n;
      if constexpr (L == 1)
        u = pow(u, p);
      else
        for (int i = 0; i < L; ++i) u[i] = pow(u[i], p);
      return u;
    });
  }

  template <int L>
  void put_exponentials(Kept<A> s, i64 c, Vec<double, L> top, Vec<double, L> sum, Before before) {
    for (int i = 0; i < before.n; ++i) {
      const Kept<A>& left = before.kept[i];
      join_exponentials<L>(top, sum, at(left.b + c, Width<L>{}), at(left.c + c, Width<L>{}));
    }
    put(s.b + c, top);
    put(s.c + c, sum);
  }
  void exponentials_of_tokens(Kept<A> s, i64 n, Before before, double r) {
    over_columns<double>(columns_, [&](i64 c, auto k) {
      constexpr int L = decltype(k)::n;
      using V = Vec<double, L>;
      V scaled[kChunk];
      for (i64 i = 0; i < n; ++i) scaled[i] = load_as<T, double, L>(reader_.row[i] + c) * r;
      V top = scaled[0];
      for (i64 i = 1; i < n; ++i) top = Max::best(top, scaled[i]);
      V sum = exp_below<L>(scaled[0], top);
      for (i64 i = 1; i < n; ++i) sum = sum + exp_below<L>(scaled[i], top);
      put_exponentials<L>(s, c, top, sum, before);
    });
  }
  void exponentials_of_states(Kept<A> s, Before before) {
    over_columns<double>(columns_, [&](i64 c, auto k) {
      put_exponentials<decltype(k)::n>(s, c, at(s.b + c, k), at(s.c + c, k), before);
    });
  }

  void chunk_of(const TokenTerm& t, Kept<A> s, i64 n, i64 ordinal, Before before) {
    const auto weight = [&](i64 i) { return p_.weights[reader_.flat[i]]; };
    const auto total = [&] {
      double sum = weight(0);
      for (i64 i = 1; i < n; ++i) sum += weight(i);
      return sum;
    };
    switch (t.keep) {
      case Keep::sum: return merge_tokens(s, &Kept<A>::a, n, before, kAsIs, kAdd);
      case Keep::positions: return add_tokens(s, n, before, [&](i64 i) { return double(skipped_ + ordinal + i + 1); });
      case Keep::weighted: *s.weight = total(), add_weights(s, before); return add_tokens(s, n, before, weight);
      case Keep::max: return select_tokens<Max, false>(s, t.winners, n, ordinal, before);
      case Keep::min: return select_tokens<Min, false>(s, t.winners, n, ordinal, before);
      case Keep::largest: return select_tokens<Max, true>(s, t.winners, n, ordinal, before);
      case Keep::moments: *s.weight = double(n); return moments_of_tokens<false>(s, n, before, [](i64) { return 1.0; });
      case Keep::weighted_moments: *s.weight = total(); return moments_of_tokens<true>(s, n, before, weight);
      case Keep::power:
      case Keep::clamped: return powers_of_tokens(t, s, n, before);
      case Keep::exponentials: return exponentials_of_tokens(s, n, before, t.p);
    }
  }

  void merge_of(const TokenTerm& t, Kept<A> s, Before before) {
    switch (t.keep) {
      case Keep::weighted: add_weights(s, before); [[fallthrough]];
      case Keep::sum:
      case Keep::positions: return merge_states(s, &Kept<A>::a, before, kAdd);
      case Keep::max:
      case Keep::largest: return select_states<Max>(s, t.winners, before);
      case Keep::min: return select_states<Min>(s, t.winners, before);
      case Keep::moments:
      case Keep::weighted_moments: return moments_of_states(s, before);
      case Keep::power:
      case Keep::clamped: return merge_states(s, &Kept<A>::b, before, kAdd);
      case Keep::exponentials: return exponentials_of_states(s, before);
    }
  }

  void finish_of(const TokenResult& r, const TokenTerm& t, Kept<A> s, i64 output, i64 n, void* y) {
    const double count = double(n), p = t.p;
    const auto write = [&](auto&& f) { write_row(p_.out, y, n_, f); };
    const auto divide = [&](double by) { write([a = s.a, d = A(by)](i64 c) { return a[c] / d; }); };
    const double *b = s.b, *second = s.c;
    switch (r.finish) {
      case TokenFinish::over_count: return divide(count);
      case TokenFinish::over_root_count: return divide(sqrt(count));
      case TokenFinish::over_weight: {
        const double before = p_.skipped ? double(p_.skipped[output]) : 0.0;
        return divide(t.keep == Keep::positions ? count * (count + 1) / 2 + before * count : *s.weight);
      }
      case TokenFinish::deviation:  // NaN if weights below 0 prevail
        return write([=, by = 1 / *s.weight](i64 c) { return __builtin_sqrt(second[c] * by); });
      case TokenFinish::root:
      case TokenFinish::mean_root: {
        const double by = r.finish == TokenFinish::root ? 1.0 : count;
        for (i64 c = 0; c < n_; ++c) line_[c] = b[c] / by;
        finish_roots(line_, n_, p);
        return write([line = line_](i64 c) { return line[c]; });
      }
      case TokenFinish::log: return write([=](i64 c) { return (b[c] + log(second[c])) / p; });
      default:
        if (t.keep >= Keep::moments) return write([=](i64 c) { return b[c]; });
        return write([a = s.a](i64 c) { return a[c]; });
    }
  }
};

}  // namespace
}  // namespace anypool
