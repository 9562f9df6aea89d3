// The host side of token pooling: work cut into pieces, pieces given to threads.
#pragma once
#include "token_plan.hpp"

namespace anypool {

// Each throws std::bad_alloc for want of memory and runs on as many threads as the bytes are worth.
void run_tokens(const TokenPlan& plan);
void run_attention(const AttentionPlan& plan);
void run_token_gradient(const GradientPlan& plan);
void run_token_dots(const DotPlan& plan);

}  // namespace anypool
