// Token pooling, compiled once per instruction-set level; exports one table. As kernels.cpp: no STL, and nothing outside
// the anonymous namespace but the table.
#include "level.hpp"
#include "token_attention.hpp"
#include "token_gradient.hpp"
#include "token_reduce.hpp"

namespace anypool {
namespace {

template <class F>
ANYPOOL_INLINE auto with_float(DType t, F&& f) {
  switch (t) {
    case DType::f16: return f(Tag<f16>{});
    case DType::bf16: return f(Tag<bf16>{});
    case DType::f32: return f(Tag<float>{});
    default: return f(Tag<double>{});
  }
}
ANYPOOL_INLINE i64 sum_bytes(DType t) { return t == DType::f64 ? 8 : 4; }

i64 state_bytes(const TokenPlan& p, i64 width) { return state_bytes_of(p, width, sum_bytes(p.in)); }
i64 scratch_bytes(const TokenPlan& p, i64 width, i64 tokens) {
  return with_float(p.in, [&](auto tag) {
    Reducer<typename decltype(tag)::type> machine(p, 0, width, nullptr);
    Tree tree(machine.arena(), machine.state_bytes, chunks_of(tokens));
    return machine.arena().used;
  });
}
void reduce(const TokenPlan& p, const Piece& piece, i64 column, i64 width, char* partials, char* scratch) {
  with_float(p.in, [&](auto tag) {
    Reducer<typename decltype(tag)::type> machine(p, column, width, scratch);
    run_piece(machine, piece, p.runs.tokens, partials);
  });
}
void combine(const TokenPlan& p, i64 output, i64 pieces, i64 piece_tokens, i64 column, i64 width, char* partials,
             char* scratch) {
  with_float(p.in, [&](auto tag) {
    Reducer<typename decltype(tag)::type> machine(p, column, width, scratch);
    combine_pieces(machine, output, p.runs.tokens[output], pieces, piece_tokens, partials);
  });
}

i64 attention_state_bytes(const AttentionPlan& p) {
  return with_float(p.in, [&](auto tag) { return Attention<typename decltype(tag)::type>(p, nullptr).state_bytes; });
}
i64 attention_scratch_bytes(const AttentionPlan& p, i64 tokens) {
  return with_float(p.in, [&](auto tag) {
    Attention<typename decltype(tag)::type> machine(p, nullptr);
    Tree tree(machine.arena(), machine.state_bytes, chunks_of(tokens));
    return machine.arena().used;
  });
}
void attend(const AttentionPlan& p, const Piece& piece, char* partials, char* scratch) {
  with_float(p.in, [&](auto tag) {
    Attention<typename decltype(tag)::type> machine(p, scratch);
    run_piece(machine, piece, p.runs.tokens, partials);
  });
}
void attend_combine(const AttentionPlan& p, i64 output, i64 pieces, i64 piece_tokens, char* partials, char* scratch) {
  with_float(p.in, [&](auto tag) {
    Attention<typename decltype(tag)::type> machine(p, scratch);
    combine_pieces(machine, output, p.runs.tokens[output], pieces, piece_tokens, partials);
  });
}

i64 gradient_scratch_bytes(const GradientPlan& p) {
  return with_float(p.in, [&](auto tag) { return Gradient<typename decltype(tag)::type>(p, nullptr).scratch_bytes(); });
}
void gradient(const GradientPlan& p, i64 begin, i64 end, char* scratch) {
  with_float(p.in, [&](auto tag) { Gradient<typename decltype(tag)::type>(p, scratch).run(begin, end); });
}
void dots(const DotPlan& p, i64 begin, i64 end, const i64* first, char* scratch) {
  with_float(p.in, [&](auto tag) { token_dots<typename decltype(tag)::type>(p, begin, end, first, scratch); });
}

}  // namespace

extern const TokenKernels ANYPOOL_NAME(kTokenKernels_, ANYPOOL_LEVEL);
const TokenKernels ANYPOOL_NAME(kTokenKernels_, ANYPOOL_LEVEL) = {ANYPOOL_TEXT(ANYPOOL_LEVEL),
                                                                  state_bytes,
                                                                  scratch_bytes,
                                                                  reduce,
                                                                  combine,
                                                                  attention_state_bytes,
                                                                  attention_scratch_bytes,
                                                                  attend,
                                                                  attend_combine,
                                                                  gradient_scratch_bytes,
                                                                  gradient,
                                                                  dots};

}  // namespace anypool
