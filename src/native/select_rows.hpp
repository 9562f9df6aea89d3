// The gradient of a max or min over narrow windows, an input row at a time: what each element won is added up in
// registers, from gradients and codes where they lie. The order of the sums is that of `SelectBackward`.
#pragma once
#include "scratch.hpp"
#include "won.hpp"

namespace anypool {
namespace {

// A row of outputs that saw the input row, and the code of its first tap there.
struct SeenRow {
  const void* grad;
  const uint8_t* code;
  i64 base;
};

constexpr int kMostSeenRows = 27;

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
  static void run(const Plan& p, const char* scratch, const SeenRow* rows, int n, char* y, i64) {
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
          for (int t = KW - 1; t >= 0; --t) Won<T, A>::add(sum[t % S], grad - t / S, code - t / S, uint8_t(base + t));
        else
          for (int t = KW - 1; t >= 0; --t)
            Won<T, A>::add(sum[t % S], grad - t / S, code - t / S, uint8_t(base + t), block->seen[t / S]);
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

// The same where channels lie innermost: for each pixel, vectors of them.
template <class T, class A>
class SelectPixels {
  static constexpr int L = kLanes<A>, kMany = 4;

 public:
  static constexpr int kMost = 64;  // outputs that may see a pixel
  static i64 scratch_bytes(const Plan&) { return 0; }
  static void prepare(const Plan&, char*) {}
  static void run(const Plan& p, const char*, const SeenRow* rows, int n, char* y, i64 channels) {
    const Axis& w = p.axis[2];
    const i64 reach = (w.kernel - 1) * w.dilation;
    const T* const grad = n ? static_cast<const T*>(rows[0].grad) : nullptr;
    const uint8_t* const code = n ? rows[0].code : nullptr;
    T* to = reinterpret_cast<T*>(y);
    i64 first = 0, last = -1;
    for (i64 j = 0; j < w.n_in; ++j, to += p.y_stride[2]) {
      while (first < w.n_out && first * w.stride - w.pad + reach < j) ++first;
      while (last + 1 < w.n_out && (last + 1) * w.stride - w.pad <= j) ++last;
      SeenAt seen[kMost];
      int m = 0;
      for (int r = 0; r < n; ++r) {
        const i64 row = rows[r].code - code;
        for (i64 o = first; o <= last; ++o) {
          i64 t = j - (o * w.stride - w.pad);
          if (w.dilation > 1) {
            if (t % w.dilation) continue;
            t /= w.dilation;
          }
          seen[m++] = {row + o * p.x_stride[2], uint8_t(rows[r].base + t)};
        }
      }
      i64 c = 0;
      for (; c + kMany * L <= channels; c += kMany * L)
        Won<T, A>::template vectors<kMany>(grad + c, code + c, seen, m, to + c);
      for (; c + L <= channels; c += L) Won<T, A>::template vectors<1>(grad + c, code + c, seen, m, to + c);
      if (c < channels)
        Won<T, A>::part(grad + c, code + c, seen, m, to + c, channels - c,
                        [&](i64) { return Inside{0, channels - c}; });
    }
  }
};

struct SelectRowsRun {
  i64 (*scratch_bytes)(const Plan&) = nullptr;
  void (*prepare)(const Plan&, char* scratch) = nullptr;
  // A row of inputs; where channels lie innermost, so many of them.
  void (*run)(const Plan&, const char* scratch, const SeenRow* rows, int n, char* y, i64 channels) = nullptr;
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

// How many outputs an input may be seen by.
inline i64 seen_by(const Axis& a) { return lower(a.kernel, (a.kernel - 1) * a.dilation / a.stride + 1); }

// For the plan of a backward pass, in which the axes are those of the forward one; none if its windows are others.
inline SelectRowsRun select_rows_of(const Plan& p) {
  for (const Axis& a : p.axis)
    if (a.kind != AxisKind::sliding) return {};
  const Axis& w = p.axis[2];
  const i64 rows = seen_by(p.axis[0]) * seen_by(p.axis[1]);
  if (p.code != Code::u8 || p.out != p.in || rows > kMostSeenRows) return {};
  return with_float_types<SelectRowsRun>(p, [&](auto t, auto a) -> SelectRowsRun {
    using T = typename decltype(t)::type;
    using A = typename decltype(a)::type;
    if (p.inner > 1) {
      using Pixels = SelectPixels<T, A>;
      bool alike = p.x_stride[3] == 1 && p.code_stride[3] == 1 && p.y_stride[3] == 1;
      for (int i = 0; i < 3; ++i) alike &= p.x_stride[i] == p.code_stride[i];
      if (!alike || p.inner < kLanes<A> || rows * seen_by(w) > Pixels::kMost) return {};
      return {Pixels::scratch_bytes, Pixels::prepare, Pixels::run};
    }
    // Rows that fill no vector take longer than putting each gradient where it belongs.
    if (w.dilation != 1 || w.pad < 0 || w.pad > w.kernel || w.n_out < kLanes<A> || p.x_stride[2] != 1 ||
        p.y_stride[2] != 1 || p.code_stride[2] != 1)
      return {};
    return select_rows<T, A>(w.kernel, w.stride);
  });
}

}  // namespace
}  // namespace anypool
