// What token kernels need to know, as plain numbers: which rows of a matrix each output sees, and what is done with them.
// Python validates and fills it; kernels only read it. Shared by every translation unit, so it holds no code.
#pragma once
#include "plan.hpp"

namespace anypool {

// What is kept of the tokens seen so far. `moments` are a mean and the sum of squared distances to it; `exponentials` a
// maximum and the sum of exp(x - maximum).
enum class Keep : int32_t {
  sum,
  positions,  // tokens weighted by their place in the row, 1, 2, ...
  weighted,
  max,
  min,
  largest,  // max |x|
  moments,
  weighted_moments,
  power,    // sum of |x|^p
  clamped,  // sum of max(x, eps)^p
  exponentials
};
enum class TokenFinish : int32_t {
  none,
  over_count,
  over_root_count,
  over_weight,
  deviation,
  root,
  mean_root,
  log,
  first,  // these two take a row as it is and keep nothing
  last
};

constexpr int kMaxTerms = 16;

struct TokenTerm {
  Keep keep;
  double p;          // exponent or sharpness
  double eps;        // clamped
  int32_t* winners;  // max, min, largest: the winner's ordinal among its output's tokens, (outputs, dim), or null
};
struct TokenResult {
  TokenFinish finish;
  int32_t term;
  i64 column;  // where its block begins in a row of the result
};

// Output o sees the runs bounds[o] <= r < bounds[o + 1], one after the other; run r is `count[r]` rows of x.
struct Runs {
  i64 outputs;
  const i64 *bounds, *offset, *count, *flat;  // offset: elements from x to the first row; flat: number of that row
  const i64* tokens;                          // of each output, all its runs together
};

struct TokenPlan {
  DType in, out;
  i64 dim, row, col;  // strides of x in elements
  Runs runs;
  const void* x;
  void* y;
  i64 y_row;
  const double* weights;  // by number of row
  const i64* skipped;     // tokens of an output that stand before its first one here: positions count them; or null
  double empty;
  int32_t n_terms, n_results;
  TokenTerm term[kMaxTerms];
  TokenResult result[kMaxTerms];
};

// Scores of tokens against `heads` queries, softmax over an output's tokens, weighted sum of their values.
struct AttentionPlan {
  DType in, out;  // of x and values; of y
  i64 dim, row, col;
  i64 value_dim, value_row, value_col;
  Runs runs;
  const i64* value_offset;
  const void *x, *values;
  const void* query;  // (heads, dim), already scaled; float, or double if x is
  i64 heads;
  void* y;            // (outputs, heads, value_dim)
  double* logsumexp;  // (outputs, heads) of the scores, or null
  // The gradient of the query: the sums over each output's tokens of ds * x. Null: the result itself.
  const void* grad;     // (outputs, heads, value_dim), float or double as the query
  const double* known;  // logsumexp, then grad . y: (outputs, heads, 2)
  double empty;
};

// Gradients: every row of x gathers from the outputs that saw it.
enum class Give : int32_t {
  uniform,    // g / by
  positions,  // g * position / by
  weighted,   // g * weight / by
  select,     // g for the winner
  largest,    // g * sign(x) for the winner
  first,
  last,
  deviation,           // a * (x - b)
  weighted_deviation,  // a * (x - b) * weight
  power,               // g * (|x| / y)^(p - 1) * sign(x)
  clamped,             // g * (x / y)^(p - 1) / by, where x > eps
  exponentials,        // g * exp(p * (x - y))
  attention
};
struct GradientTerm {
  Give give;
  double p, eps;
  const void *a, *b;  // (outputs, dim) each, float or double as the sums are; rows a_row and b_row apart
  i64 a_row, b_row;
  const double* by;  // of each output, or null
  const int32_t* winners;
};
struct GradientPlan {
  DType in;
  i64 dim, row, col;
  i64 rows;  // all rows of the gradient, (rows, dim); a row no output saw gets zeros
  // Runs in the order in which a row adds up what they give. Disjoint and ascending: found by search; else `listed`
  // runs of each block of kBlockRows rows are list[list_bounds[b]] ... .
  i64 n_runs;
  const i64 *offset, *count, *flat, *output, *ordinal;  // ordinal: of the run's first token in its output
  const i64 *list, *list_bounds;
  const i64 *tokens, *skipped;
  const void* x;
  const double* weights;
  void* grad;
  bool around_cache;  // so large that nobody finds it there: stores that do not read first
  int32_t n_terms;
  GradientTerm term[kMaxTerms];
  // attention
  i64 heads, value_dim, value_row, value_col;
  const i64* value_offset;
  const void *values, *query, *grad_y;
  const double* known;
  void* grad_values;  // null: values are x, and their gradient is added to that of x
};
constexpr i64 kBlockRows = 32;

// For every token of every run: the sum over c of a[c] * (x[c] - m[c]) + b[c] * (x[c] - m[c])^2, a, b and m by output.
struct DotPlan {
  DType in;
  i64 dim, row, col;
  Runs runs;
  const void *x, *a, *b, *m;  // b and m may be null
  double* y;                  // one for each token, run after run
};

constexpr i64 kChunk = 16;  // tokens added one after the other; chunks are added as a balanced tree

// One piece of work: outputs [begin, end), or the tokens [first, first + count) of one output, kept in `partial`.
struct Piece {
  i64 begin, end, first, count, partial;
};

struct TokenKernels {
  const char* name;
  i64 (*state_bytes)(const TokenPlan&, i64 width);
  i64 (*scratch_bytes)(const TokenPlan&, i64 width, i64 tokens);
  void (*reduce)(const TokenPlan&, const Piece&, i64 column, i64 width, char* partials, char* scratch);
  void (*combine)(const TokenPlan&, i64 output, i64 pieces, i64 piece_tokens, i64 column, i64 width, char* partials,
                  char* scratch);
  i64 (*attention_state_bytes)(const AttentionPlan&);
  i64 (*attention_scratch_bytes)(const AttentionPlan&, i64 tokens);
  void (*attend)(const AttentionPlan&, const Piece&, char* partials, char* scratch);
  void (*attend_combine)(const AttentionPlan&, i64 output, i64 pieces, i64 piece_tokens, char* partials, char* scratch);
  i64 (*gradient_scratch_bytes)(const GradientPlan&);
  void (*gradient)(const GradientPlan&, i64 begin, i64 end, char* scratch);
  void (*dots)(const DotPlan&, i64 begin, i64 end, const i64* first, char* scratch);
};

}  // namespace anypool
