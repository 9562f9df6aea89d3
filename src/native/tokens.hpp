// The host side of token pooling: work cut into pieces, pieces given to threads.
#pragma once
#include <vector>

#include "token_plan.hpp"

namespace anypool {

// Runs as Python keeps them: `count` rows of a part of a matrix from `start` on. Part p begins base[p] elements from x with
// the row of number first[p].
struct PartRuns {
  i64 outputs;
  const i64 *bounds, *part, *start, *count;
};
struct Parts {
  std::vector<i64> base, first;
};

// The same runs with what kernels need to know of each.
class RowRuns {
  std::vector<i64> offset_, flat_, tokens_;

 public:
  RowRuns(const PartRuns& runs, const Parts& parts, i64 row);
  Runs get(const PartRuns& runs) const {
    return {runs.outputs, runs.bounds, offset_.data(), runs.count, flat_.data(), tokens_.data()};
  }
  const i64* offset() const { return offset_.data(); }
};

// A call of pool_tokens but for its data: run() on any that lie alike.
struct TokenRecipe {
  TokenPlan plan;
  Parts parts;
  void run(const void* x, void* y, const PartRuns& runs, const double* weights, const i64* skipped) const;
};

// Each throws std::bad_alloc for want of memory and runs on as many threads as the bytes are worth.
void run_tokens(const TokenPlan& plan);
void run_attention(const AttentionPlan& plan);
void run_token_gradient(const GradientPlan& plan);
void run_token_dots(const DotPlan& plan);

}  // namespace anypool
