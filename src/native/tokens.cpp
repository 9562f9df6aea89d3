#include "tokens.hpp"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "geometry.hpp"
#include "levels.hpp"
#include "pages.hpp"
#include "threads.hpp"

namespace anypool {

#define ANYPOOL_DECLARE(level) extern const TokenKernels kTokenKernels_##level;
ANYPOOL_LEVELS(ANYPOOL_DECLARE)
#undef ANYPOOL_DECLARE

namespace {

const TokenKernels& kernels() {
  static const TokenKernels* const table = [] {
    const std::string level = chosen_level();
#define ANYPOOL_FIND(name) \
  if (level == #name) return &kTokenKernels_##name;
    ANYPOOL_LEVELS(ANYPOOL_FIND)
#undef ANYPOOL_FIND
    return static_cast<const TokenKernels*>(nullptr);
  }();
  if (!table) throw std::runtime_error("no kernels for this CPU");
  return *table;
}

class Memory {
  std::unique_ptr<char[]> memory_;

 public:
  explicit Memory(i64 bytes) : memory_(new char[size_t(bytes) + 64]) {}
  char* get() const { return reinterpret_cast<char*>(round_up(reinterpret_cast<i64>(memory_.get()), 64)); }
};

int threads_for(i64 bytes) { return int(std::max<i64>(1, std::min<i64>(bytes / kBytesPerThread, thread_count()))); }

template <class F>
void parallel(i64 n, int threads, const F& work) {
  parallel_ranges(
      n, threads,
      [](void* context, i64 begin, i64 end, int) {
        const F& f = *static_cast<const F*>(context);
        for (i64 i = begin; i < end; ++i) f(i);
      },
      const_cast<F*>(&work));
}

// An output of several pieces: who puts it together.
struct Split {
  i64 output, pieces, first;
};
struct Pieces {
  std::vector<Piece> list;
  std::vector<Split> split;
  i64 partials = 0, piece_tokens = 0, most = 0;  // most: tokens that one piece adds up
};

// Pieces of about equally many tokens. Only an output that is longer than a few pieces is cut, always at a power of two of
// chunks: its tree stays the one it has uncut.
Pieces cut(const Runs& runs, i64 wanted) {
  i64 total = 0;
  for (i64 o = 0; o < runs.outputs; ++o) total += runs.tokens[o] + 1;  // an output costs something, too
  Pieces made;
  const i64 share = std::max<i64>(1, ceil_div(total, wanted));
  i64 size = kChunk * 16;
  while (size * 2 <= share) size *= 2;
  made.piece_tokens = size;
  i64 begin = 0, cost = 0;
  const auto flush = [&](i64 end) {
    if (begin < end) made.list.push_back({begin, end, 0, 0, -1});
    begin = end, cost = 0;
  };
  for (i64 o = 0; o < runs.outputs; ++o) {
    const i64 n = runs.tokens[o];
    if (wanted > 1 && n >= 2 * size && n > share) {
      flush(o);
      made.split.push_back({o, ceil_div(n, size), made.partials});
      for (i64 first = 0; first < n; first += size)
        made.list.push_back({o, o + 1, first, std::min(size, n - first), made.partials++});
      begin = o + 1;
      made.most = std::max(made.most, size);
      continue;
    }
    made.most = std::max(made.most, n);
    cost += n + 1;
    if (cost >= share) flush(o + 1);
  }
  flush(runs.outputs);
  return made;
}

i64 bytes_read(const Runs& runs, i64 dim, DType type) {
  i64 tokens = 0;
  for (i64 o = 0; o < runs.outputs; ++o) tokens += runs.tokens[o];
  return (tokens + runs.outputs) * dim * size_of(type);
}

}  // namespace

RowRuns::RowRuns(const PartRuns& runs, const Parts& parts, i64 row) : tokens_(size_t(runs.outputs), 0) {
  const i64 n = runs.bounds[runs.outputs];
  offset_.reserve(size_t(n)), flat_.reserve(size_t(n));
  for (i64 r = 0; r < n; ++r) {
    offset_.push_back(parts.base[runs.part[r]] + runs.start[r] * row);
    flat_.push_back(parts.first[runs.part[r]] + runs.start[r]);
  }
  for (i64 o = 0; o < runs.outputs; ++o)
    for (i64 r = runs.bounds[o]; r < runs.bounds[o + 1]; ++r) tokens_[o] += runs.count[r];
}

void TokenRecipe::run(const void* x, void* y, const PartRuns& runs, const double* weights, const i64* skipped) const {
  const RowRuns rows(runs, parts, plan.row);
  TokenPlan p = plan;
  p.x = x, p.y = y, p.weights = weights, p.skipped = skipped;
  p.runs = rows.get(runs);
  run_tokens(p);
}

void run_tokens(const TokenPlan& plan) {
  const TokenKernels& k = kernels();
  // A term's rows of sums stay in the L1 cache: rows wider than this are cut.
  constexpr i64 kWidest = 4096;
  const int threads = threads_for(bytes_read(plan.runs, plan.dim, plan.in));
  i64 strips = ceil_div(plan.dim, kWidest);
  const Pieces pieces = cut(plan.runs, threads == 1 ? 1 : ceil_div(8 * threads, strips));
  if (threads > 1 && i64(pieces.list.size()) * strips < threads)  // few and short, but wide
    strips = std::min<i64>(threads, std::max<i64>(strips, plan.dim / 256));
  const i64 width = round_up(ceil_div(plan.dim, strips), 64), count = ceil_div(plan.dim, width);
  const i64 n = i64(pieces.list.size()), state = k.state_bytes(plan, width);
  const i64 scratch = k.scratch_bytes(plan, width, std::max(pieces.most, pieces.partials * kChunk));
  const Memory partials(pieces.partials * state * count);
  ask_for_large_pages(plan.y, plan.runs.outputs * plan.y_row * size_of(plan.out));
  const auto in_strip = [&](i64 strip, auto&& work) {
    const i64 column = strip * width;
    const Memory memory(scratch);
    work(column, std::min(width, plan.dim - column), partials.get() + strip * pieces.partials * state, memory.get());
  };
  parallel(n * count, threads, [&](i64 task) {
    in_strip(task % count, [&](i64 column, i64 columns, char* kept, char* memory) {
      k.reduce(plan, pieces.list[task / count], column, columns, kept, memory);
    });
  });
  parallel(i64(pieces.split.size()) * count, threads, [&](i64 task) {
    const Split& s = pieces.split[task / count];
    in_strip(task % count, [&](i64 column, i64 columns, char* kept, char* memory) {
      k.combine(plan, s.output, s.pieces, pieces.piece_tokens, column, columns,
                kept + s.first * k.state_bytes(plan, columns), memory);
    });
  });
}

void run_attention(const AttentionPlan& plan) {
  const TokenKernels& k = kernels();
  const int threads = threads_for(bytes_read(plan.runs, plan.dim * plan.heads, plan.in));
  const Pieces pieces = cut(plan.runs, threads == 1 ? 1 : 8 * threads);
  const i64 state = k.attention_state_bytes(plan);
  const i64 scratch = k.attention_scratch_bytes(plan, std::max(pieces.most, pieces.partials * kChunk));
  const Memory partials(pieces.partials * state);
  parallel(i64(pieces.list.size()), threads, [&](i64 task) {
    const Memory memory(scratch);
    k.attend(plan, pieces.list[task], partials.get(), memory.get());
  });
  parallel(i64(pieces.split.size()), threads, [&](i64 task) {
    const Split& s = pieces.split[task];
    const Memory memory(scratch);
    k.attend_combine(plan, s.output, s.pieces, pieces.piece_tokens, partials.get() + s.first * state, memory.get());
  });
}

void run_token_gradient(const GradientPlan& plan) {
  const TokenKernels& k = kernels();
  ask_for_large_pages(plan.grad, plan.rows * plan.dim * size_of(plan.in));
  if (plan.grad_values) ask_for_large_pages(plan.grad_values, plan.rows * plan.value_dim * size_of(plan.in));
  const int threads = threads_for(plan.rows * plan.dim * size_of(plan.in));
  const i64 scratch = k.gradient_scratch_bytes(plan);
  const i64 tasks = threads == 1 ? 1 : std::min<i64>(8 * threads, plan.rows);
  parallel(tasks, threads, [&](i64 task) {
    const Memory memory(scratch);
    k.gradient(plan, plan.rows * task / tasks, plan.rows * (task + 1) / tasks, memory.get());
  });
}

void run_token_dots(const DotPlan& plan) {
  const TokenKernels& k = kernels();
  std::vector<i64> first(size_t(plan.runs.outputs) + 1, 0);
  for (i64 o = 0; o < plan.runs.outputs; ++o) first[o + 1] = first[o] + plan.runs.tokens[o];
  const int threads = threads_for(bytes_read(plan.runs, plan.dim, plan.in));
  const i64 tasks = threads == 1 ? 1 : std::min<i64>(8 * threads, plan.runs.outputs);
  parallel(tasks, threads, [&](i64 task) {
    const Memory memory(kChunk * plan.dim * 8 + 128);
    const i64 n = plan.runs.outputs;
    k.dots(plan, n * task / tasks, n * (task + 1) / tasks, first.data(), memory.get());
  });
}

}  // namespace anypool
