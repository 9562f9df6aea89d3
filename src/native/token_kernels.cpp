// Token pooling, compiled once per instruction-set level; exports one table. As kernels.cpp: no STL, and nothing outside
// the anonymous namespace but the table.
#include "token_attention.hpp"
#include "token_gradient.hpp"
#include "token_reduce.hpp"

#ifndef ANYPOOL_LEVEL
#error "ANYPOOL_LEVEL names the instruction-set level, e.g. x86_64_v3"
#endif
#define ANYPOOL_PASTE(a, b) a##b
#define ANYPOOL_NAME(prefix, level) ANYPOOL_PASTE(prefix, level)
#define ANYPOOL_TEXT_(x) #x
#define ANYPOOL_TEXT(x) ANYPOOL_TEXT_(x)

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
    i64 most = piece.count;
    for (i64 o = piece.begin; piece.partial < 0 && o < piece.end; ++o) most = higher(most, p.runs.tokens[o]);
    Tree tree(machine.arena(), machine.state_bytes, chunks_of(most));
    machine.run(piece, tree, partials);
  });
}
void combine(const TokenPlan& p, i64 output, i64 pieces, i64 piece_tokens, i64 column, i64 width, char* partials,
             char* scratch) {
  with_float(p.in, [&](auto tag) {
    Reducer<typename decltype(tag)::type> machine(p, column, width, scratch);
    Tree tree(machine.arena(), machine.state_bytes, pieces);
    machine.finish(
        output, fold_pieces(machine, tree, p.runs.tokens[output], pieces, piece_tokens, partials, machine.state_bytes));
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
    i64 most = piece.count;
    for (i64 o = piece.begin; piece.partial < 0 && o < piece.end; ++o) most = higher(most, p.runs.tokens[o]);
    Tree tree(machine.arena(), machine.state_bytes, chunks_of(most));
    machine.run(piece, tree, partials);
  });
}
void attend_combine(const AttentionPlan& p, i64 output, i64 pieces, i64 piece_tokens, char* partials, char* scratch) {
  with_float(p.in, [&](auto tag) {
    Attention<typename decltype(tag)::type> machine(p, scratch);
    Tree tree(machine.arena(), machine.state_bytes, pieces);
    machine.finish(
        output, fold_pieces(machine, tree, p.runs.tokens[output], pieces, piece_tokens, partials, machine.state_bytes));
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
