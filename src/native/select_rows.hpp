// The gradient of a max or min over narrow windows, an input row at a time: what each element won is added up in
// registers, from gradients and codes where they lie. The order of the sums is that of `SelectBackward`.
#pragma once
#include "lanes.hpp"
#include "scratch.hpp"

namespace anypool {
namespace {

// A row of outputs that saw the input row, and the code of its first tap there.
struct SeenRow {
  const void* grad;
  const uint8_t* code;
  i64 base;
};

template <class T, class A, int KW, int S>
class SelectRows {
  static constexpr int L = kLanes<A>, kShifts = (KW - 1) / S + 1;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;
  // Outputs i, i + 1 … i + L - 1, those before by each shift, and the columns whose first windows they are.
  struct Block {
    Part seen[kShifts], columns[S];
    bool whole;  // all of them exist
  };

  static i64 blocks_of(const Plan& p) {
    const Axis& w = p.axis[2];
    return ceil_div(ceil_div(w.n_in + w.pad, S), L);
  }

  static ANYPOOL_INLINE void add(V& sum, const T* grad, const uint8_t* code, uint8_t tap) {
    sum = LaneMask<A, L>::where_equal(load<Vec<uint8_t, L>>(code), tap).add(sum, Memory::load(grad));
  }
  static ANYPOOL_INLINE void add(V& sum, const T* grad, const uint8_t* code, uint8_t tap, const Part& seen) {
    sum = LaneMask<A, L>::where_equal(load_bits<uint8_t, L>(code, seen), tap)
              .add(sum, Memory::load_part(grad, seen, V{}));
  }

 public:
  static i64 scratch_bytes(const Plan& p) { return blocks_of(p) * i64(sizeof(Block)); }
  static void prepare(const Plan& p, char* scratch) {
    const Axis& w = p.axis[2];
    Block* blocks = reinterpret_cast<Block*>(scratch);
    for (i64 b = 0; b < blocks_of(p); ++b) {
      Block& block = blocks[b];
      block.whole = true;
      const auto part = [&](i64 first, i64 n) {
        const Inside in = inside<L>(first, n);
        block.whole &= in.lo == 0 && in.hi == L;
        return Part(in);
      };
      for (int s = 0; s < kShifts; ++s) block.seen[s] = part(b * L - s, w.n_out);
      for (int s = 0; s < S; ++s) block.columns[s] = part(b * L * S + s * L - w.pad, w.n_in);
    }
  }
  static void run(const Plan& p, const char* scratch, const SeenRow* rows, int n, char* y) {
    const Block* block = reinterpret_cast<const Block*>(scratch);
    T* to = reinterpret_cast<T*>(y) - p.axis[2].pad;
    const i64 blocks = blocks_of(p);
    for (i64 b = 0; b < blocks; ++b, ++block, to += L * S) {
      const i64 i = b * L;
      V sum[S] = {};
      for (int r = 0; r < n; ++r) {
        const T* grad = static_cast<const T*>(rows[r].grad) + i;
        const uint8_t* code = rows[r].code + i;
        const int base = int(rows[r].base);
        if (block->whole)
          for (int t = KW - 1; t >= 0; --t) add(sum[t % S], grad - t / S, code - t / S, uint8_t(base + t));
        else
          for (int t = KW - 1; t >= 0; --t)
            add(sum[t % S], grad - t / S, code - t / S, uint8_t(base + t), block->seen[t / S]);
      }
      V columns[S] = {sum[0]};
      if constexpr (S == 2) columns[0] = Zip<A, L>::low(sum[0], sum[1]), columns[1] = Zip<A, L>::high(sum[0], sum[1]);
      for (int s = 0; s < S; ++s) {
        if (block->whole)
          Memory::store(to + s * L, columns[s]);
        else
          Memory::store_part(to + s * L, columns[s], block->columns[s]);
      }
    }
  }
};

struct SelectRowsRun {
  i64 (*scratch_bytes)(const Plan&) = nullptr;
  void (*prepare)(const Plan&, char* scratch) = nullptr;
  void (*run)(const Plan&, const char* scratch, const SeenRow* rows, int n, char* y) = nullptr;
};

template <class T, class A>
SelectRowsRun select_rows(i64 kernel, i64 stride) {
#define ANYPOOL_SELECT_ROWS(KW, S)                          \
  if (kernel == KW && stride == S) {                        \
    using Rows = SelectRows<T, A, KW, S>;                   \
    return {Rows::scratch_bytes, Rows::prepare, Rows::run}; \
  }
  if constexpr (kLanes<A> >= 4) {
    ANYPOOL_SELECT_ROWS(2, 1)
    ANYPOOL_SELECT_ROWS(2, 2)
    ANYPOOL_SELECT_ROWS(3, 1)
    ANYPOOL_SELECT_ROWS(3, 2)
    ANYPOOL_SELECT_ROWS(4, 1)
    ANYPOOL_SELECT_ROWS(4, 2)
  }
#undef ANYPOOL_SELECT_ROWS
  return {};
}

// For the plan of a backward pass, in which the axes are those of the forward one; none if its windows are others.
inline SelectRowsRun select_rows_of(const Plan& p) {
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  if (p.inner != 1 || p.code != Code::u8 || p.out != p.in || w.kind != AxisKind::sliding || w.dilation != 1 ||
      d.kind != AxisKind::sliding || h.kind != AxisKind::sliding || w.pad < 0 || w.pad > w.kernel ||
      p.x_stride[2] != 1 || p.y_stride[2] != 1 || p.code_stride[2] != 1)
    return {};
  return with_float_types<SelectRowsRun>(p, [&](auto t, auto a) {
    return select_rows<typename decltype(t)::type, typename decltype(a)::type>(w.kernel, w.stride);
  });
}

}  // namespace
}  // namespace anypool
