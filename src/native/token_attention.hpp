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

  void chunk(char* state, i64 n, i64) {
    keys_.next(n);
    if (separate_) values_.next(n);
    const Reader<T>& values = separate_ ? values_ : keys_;
    for (i64 h = 0; h < p_.heads; ++h) {
      const A* query = static_cast<const A*>(p_.query) + h * p_.dim;
      Vec<double, kChunk> score = {};
      for (i64 i = 0; i < n; ++i) score[i] = dot<A>(keys_.row[i], query, p_.dim);
      const Head to = head(state, h);
      if (p_.grad) {
        query_gradient(to, values, h, n, score);
        continue;
      }
      double top = score[0];
      for (i64 i = 1; i < n; ++i) top = max_of<double>(top, score[i]);
      const auto weight = exp_below<kChunk>(score, Vec<double, kChunk>{} + top);
      double total = weight[0];
      for (i64 i = 1; i < n; ++i) total += weight[i];
      *to.top = top, *to.total = total;
      add_rows(to.sum, values, n, p_.value_dim, weight);
    }
  }

  void merge(const char* left, char* right) {
    for (i64 h = 0; h < p_.heads; ++h) {
      const Head l = head(const_cast<char*>(left), h), r = head(right, h);
      if (p_.grad) {
        for (i64 c = 0; c < width_; ++c) r.sum[c] = l.sum[c] + r.sum[c];
        continue;
      }
      const double top = max_of<double>(*l.top, *r.top);
      const double a = exp_below<1>(*l.top, top), b = exp_below<1>(*r.top, top);
      *r.top = top;
      *r.total = *l.total * a + *r.total * b;
      const A fa = A(a), fb = A(b);
      for (i64 c = 0; c < width_; ++c) r.sum[c] = l.sum[c] * fa + r.sum[c] * fb;
    }
  }

  bool reads() const { return true; }

  void finish(i64 output, char* state) {
    for (i64 h = 0; h < p_.heads; ++h) {
      const i64 at = output * p_.heads + h;
      char* y = element(p_.y, p_.out, at * width_);
      if (!state) {
        for (i64 c = 0; c < width_; ++c) {
          const A none = A(p_.grad ? 0.0 : p_.empty);
          store_row(p_.out, element(y, p_.out, c), &none, 1);
        }
        if (p_.logsumexp) p_.logsumexp[at] = -__builtin_inf();
        continue;
      }
      const Head s = head(state, h);
      if (!p_.grad) {
        const A total = A(*s.total);
        for (i64 c = 0; c < width_; ++c) s.sum[c] /= total;
      }
      store_row(p_.out, y, s.sum, width_);
      if (p_.logsumexp) p_.logsumexp[at] = *s.top + log(*s.total);
    }
  }

 private:
  void add_rows(A* sum, const Reader<T>& rows, i64 n, i64 width, Vec<double, kChunk> weight) {
    for (i64 i = 0; i < n; ++i) {
      const A w = A(weight[i]);
      if (i == 0)
        over_row<A>(rows.row[i], width, [&](i64 c, auto v, auto) { put(sum + c, v * w); });
      else
        over_row<A>(rows.row[i], width, [&](i64 c, auto v, auto k) { put(sum + c, at(sum + c, k) + v * w); });
    }
  }
  void query_gradient(const Head& to, const Reader<T>& values, i64 h, i64 n, Vec<double, kChunk> score) {
    const i64 at = output_ * p_.heads + h;
    const A* g = static_cast<const A*>(p_.grad) + at * p_.value_dim;
    auto ds = exp_below<kChunk>(score, Vec<double, kChunk>{} + p_.known[2 * at]);
    for (i64 i = 0; i < n; ++i) ds[i] *= double(dot<A>(values.row[i], g, p_.value_dim)) - p_.known[2 * at + 1];
    add_rows(to.sum, keys_, n, p_.dim, ds);
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
