// Attention pooling: scores, softmax and weighted sum in one read of the tokens, and the gradient of the query.
#pragma once
#include "arithmetic.hpp"
#include "token_tree.hpp"

namespace anypool {
namespace {

template <class T>
class Attention {
  using A = typename SumOf<T>::type;
  const AttentionPlan& p_;
  Arena arena_;
  Reader<T> keys_, values_;
  const bool separate_;
  const i64 width_, head_bytes_;
  i64 output_ = 0;

  struct Head {
    double* top;    // the largest score so far
    double* total;  // the sum of exp(score - top)
    A* sum;         // of exp(score - top) * value; of ds * x for the query's gradient
  };
  Head head(char* state, i64 h) const {
    char* s = state + h * head_bytes_;
    return {reinterpret_cast<double*>(s), reinterpret_cast<double*>(s) + 1, reinterpret_cast<A*>(s + 64)};
  }

 public:
  const i64 state_bytes;

  Attention(const AttentionPlan& p, char* scratch)
      : p_(p),
        arena_{reinterpret_cast<uintptr_t>(scratch)},
        keys_(p.runs, p.x, p.runs.offset, p.row, p.col, 0, p.dim, arena_),
        values_(p.runs, p.values, p.value_offset, p.value_row, p.value_col, 0, p.value_dim, arena_),
        separate_(p.values != p.x),
        width_(p.grad ? p.dim : p.value_dim),
        head_bytes_(64 + round_up(width_ * i64(sizeof(A)), 64)),
        state_bytes(p.heads * head_bytes_) {}
  Arena& arena() { return arena_; }

  void seek(i64 output, i64 first) {
    output_ = output;
    keys_.seek(output, first);
    if (separate_) values_.seek(output, first);
  }

  void chunk(char* state, i64 n, i64, Left left) {
    keys_.next(n);
    if (separate_) values_.next(n);
    const Reader<T>& values = separate_ ? values_ : keys_;
    for (i64 h = 0; h < p_.heads; ++h) {
      const A* query = static_cast<const A*>(p_.query) + h * p_.dim;
      Vec<double, kChunk> score = products(keys_, query, p_.dim, n);
      keys_.ahead = false;  // that has fetched what comes next
      const Head to = head(state, h);
      if (p_.grad) {
        const auto ds = score_gradient(score, values, h, n);
        weighted_sum(to.sum, keys_, n, ds, Before(*this, left, h));
        continue;
      }
      double top = score[0];
      for (i64 i = 1; i < n; ++i) top = max_of<double>(top, score[i]);
      const auto weight = exp_below<kChunk>(score, Vec<double, kChunk>{} + top);
      double total = weight[0];
      for (i64 i = 1; i < n; ++i) total += weight[i];
      *to.top = top, *to.total = total;
      weighted_sum(to.sum, values, n, weight, Before(*this, left, h, to));
    }
  }

  void merge(const char* left, char* right) {
    char* const state[] = {const_cast<char*>(left)};
    for (i64 h = 0; h < p_.heads; ++h) {
      const Head to = head(right, h);
      const Before before = p_.grad ? Before(*this, {state, 1}, h) : Before(*this, {state, 1}, h, to);
      over_columns<A>({0, width_}, [&](i64 c, auto k) { put(to.sum + c, before(at(to.sum + c, k), c, k)); });
    }
  }

  bool reads() const { return true; }

  void finish(i64 output, char* state) {
    for (i64 h = 0; h < p_.heads; ++h) {
      const i64 at = output * p_.heads + h;
      char* y = element(p_.y, p_.out, at * width_);
      if (!state) {
        write_row(p_.out, y, width_, [none = A(p_.grad ? 0.0 : p_.empty)](i64) { return none; });
        if (p_.logsumexp) p_.logsumexp[at] = -__builtin_inf();
        continue;
      }
      const Head s = head(state, h);
      const A total = A(p_.grad ? 1.0 : *s.total);
      write_row(p_.out, y, width_, [sum = s.sum, total](i64 c) { return sum[c] / total; });
      if (p_.logsumexp) p_.logsumexp[at] = *s.top + log(*s.total);
    }
  }

 private:
  // The sums on the left of a chunk's, and what each of the two is multiplied by before they are added.
  class Before {
    const A* sum_[64];
    A left_[64], right_[64];
    int n_;

   public:
    Before(const Attention& a, Left left, i64 h) : n_(left.n) {
      for (int i = 0; i < n_; ++i) sum_[i] = a.head(left.state[i], h).sum, left_[i] = right_[i] = 1;
    }
    // Of exponentials below a maximum: the largest of all becomes that of `to`.
    Before(const Attention& a, Left left, i64 h, Head to) : Before(a, left, h) {
      for (int i = 0; i < n_; ++i) {
        const Head l = a.head(left.state[i], h);
        const double top = max_of<double>(*l.top, *to.top);
        const double by_left = exp_below<1>(*l.top, top), by = exp_below<1>(*to.top, top);
        *to.top = top, *to.total = *l.total * by_left + *to.total * by;
        left_[i] = A(by_left), right_[i] = A(by);
      }
    }
    template <class V, class K>
    ANYPOOL_INLINE V operator()(V s, i64 c, K k) const {
      for (int i = 0; i < n_; ++i) s = at(sum_[i] + c, k) * left_[i] + s * right_[i];
      return s;
    }
  };
  void weighted_sum(A* sum, const Reader<T>& rows, i64 n, Vec<double, kChunk> weight, const Before& before) {
    A w[kChunk];
    for (i64 i = 0; i < n; ++i) w[i] = A(weight[i]);
    merge_rows(
        sum, rows, n, {0, width_}, [&](auto v, auto, i64 i) { return v * w[i]; }, [](auto l, auto r) { return l + r; },
        before);
  }
  static Vec<double, kChunk> products(const Reader<T>& rows, const A* q, i64 dim, i64 n) {
    constexpr int kAtOnce = 4;
    A y[kChunk];
    i64 i = 0;
    for (; i + kAtOnce <= n; i += kAtOnce) dots<kAtOnce>(rows.row + i, rows.behind(i + kAtOnce), q, dim, y + i);
    for (; i < n; ++i) dots<1>(rows.row + i, rows.behind(i + 1), q, dim, y + i);
    Vec<double, kChunk> found = {};
    for (i = 0; i < n; ++i) found[i] = y[i];
    return found;
  }
  Vec<double, kChunk> score_gradient(Vec<double, kChunk> score, const Reader<T>& values, i64 h, i64 n) const {
    const i64 at = output_ * p_.heads + h;
    const auto g = products(values, static_cast<const A*>(p_.grad) + at * p_.value_dim, p_.value_dim, n);
    return exp_below<kChunk>(score, Vec<double, kChunk>{} + p_.known[2 * at]) * (g - p_.known[2 * at + 1]);
  }
};

// For every token, run after run; see DotPlan.
template <class T>
void token_dots(const DotPlan& p, i64 begin, i64 end, const i64* first, char* scratch) {
  using A = typename SumOf<T>::type;
  Arena arena{reinterpret_cast<uintptr_t>(scratch)};
  Reader<T> reader(p.runs, p.x, p.runs.offset, p.row, p.col, 0, p.dim, arena);
  const auto row_of = [&](const void* rows, i64 o) { return rows ? static_cast<const A*>(rows) + o * p.dim : nullptr; };
  for (i64 o = begin; o < end; ++o) {
    const A *a = row_of(p.a, o), *b = row_of(p.b, o), *m = row_of(p.m, o);
    reader.seek(o, 0);
    for (i64 k = 0; k < p.runs.tokens[o]; ++k) {
      reader.next(1);
      double sum = 0;
      for (i64 c = 0; c < p.dim; ++c) {
        const double d = double(widen(reader.row[0][c])) - (m ? double(m[c]) : 0.0);
        sum += (b ? double(a[c]) + double(b[c]) * d : double(a[c])) * d;
      }
      p.y[first[o] + k] = sum;
    }
  }
}

}  // namespace
}  // namespace anypool
