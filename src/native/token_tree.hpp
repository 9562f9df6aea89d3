// The order of summation of tokens: chunks of kChunk are added one token after the other, chunks as a balanced tree. It is
// a function of an output's tokens alone: neither where they lie nor who adds them up enters.
#pragma once
#include "token_rows.hpp"

namespace anypool {
namespace {

// The states that a new one is merged with, one after the other.
struct Left {
  char* const* state;
  int n;
};

// The tree as a binary counter: level k holds the state of 2^k chunks, or of pieces that are as large as each other.
class Tree {
  char* level_[64];
  char* spare_;
  i64 n_ = 0;

 public:
  Tree(Arena& arena, i64 state_bytes, i64 items) {
    int levels = 1;
    while ((i64(1) << levels) <= items) ++levels;
    for (int k = 0; k <= levels; ++k) level_[k] = arena.take(state_bytes);
    spare_ = arena.take(state_bytes);
  }
  void clear() { n_ = 0; }
  // make(state, left) writes the next state with what is on its `left` merged into it, from the nearest on.
  template <class F>
  void push(F&& make) {
    int k = 0;
    while ((n_ >> k) & 1) ++k;
    make(spare_, Left{level_, k});
    char* free = level_[k];
    level_[k] = spare_, spare_ = free, ++n_;
  }
  // Everything so far, and then what is in `last`, if it is not null.
  template <class M>
  char* fold(M&& merge, char* last = nullptr) {
    for (int k = 0; (n_ >> k) > 0; ++k) {
      if (!((n_ >> k) & 1)) continue;
      if (last)
        merge(level_[k], last);
      else
        last = level_[k];
    }
    return last;
  }
};

inline i64 chunks_of(i64 tokens) { return (tokens + kChunk - 1) / kChunk; }

// Machine: arena(); seek(output, token); chunk(state, n, ordinal, left); merge(left, right), which leaves both in `right`;
// finish(output, state); reads(); state_bytes.
template <class Machine>
char* fold_tokens(Machine& m, Tree& tree, i64 output, i64 first, i64 count) {
  const auto merge = [&](const char* l, char* r) { m.merge(l, r); };
  tree.clear();
  m.seek(output, first);
  for (i64 done = 0; done < count; done += kChunk) {
    tree.push([&](char* state, Left left) { m.chunk(state, lower(kChunk, count - done), first + done, left); });
  }
  return tree.fold(merge);
}
// A part of one output, or outputs that are whole; those without tokens have no state.
template <class Machine>
void run_piece(Machine& m, const Piece& piece, const i64* tokens, char* partials) {
  i64 most = piece.count;
  for (i64 o = piece.begin; piece.partial < 0 && o < piece.end; ++o) most = higher(most, tokens[o]);
  Tree tree(m.arena(), m.state_bytes, chunks_of(most));
  if (piece.partial >= 0) {
    const char* s = fold_tokens(m, tree, piece.begin, piece.first, piece.count);
    __builtin_memcpy(partials + piece.partial * m.state_bytes, s, size_t(m.state_bytes));
    return;
  }
  for (i64 o = piece.begin; o < piece.end; ++o)
    m.finish(o, tokens[o] && m.reads() ? fold_tokens(m, tree, o, 0, tokens[o]) : nullptr);
}
// The pieces of one output, all of piece_tokens but the last.
template <class Machine>
void combine_pieces(Machine& m, i64 output, i64 tokens, i64 pieces, i64 piece_tokens, char* partials) {
  const auto merge = [&](const char* l, char* r) { m.merge(l, r); };
  Tree tree(m.arena(), m.state_bytes, pieces);
  const bool full = chunks_of(tokens - (pieces - 1) * piece_tokens) == chunks_of(piece_tokens);
  for (i64 i = 0; i < pieces - !full; ++i) {
    tree.push([&](char* state, Left left) {
      __builtin_memcpy(state, partials + i * m.state_bytes, size_t(m.state_bytes));
      for (int k = 0; k < left.n; ++k) m.merge(left.state[k], state);
    });
  }
  m.finish(output, tree.fold(merge, full ? nullptr : partials + (pieces - 1) * m.state_bytes));
}

}  // namespace
}  // namespace anypool
