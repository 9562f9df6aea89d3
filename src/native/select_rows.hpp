// The gradient of a max or min over narrow windows, an input row at a time: what each element won is added up in
// registers, from gradients and codes where they lie. The order of the sums is that of `SelectBackward`.
#pragma once
#include "scratch.hpp"
#include "won.hpp"

namespace anypool {
namespace {

constexpr int kMostSeenRows = 27;

// A row of outputs that saw the input row, and the code of its first tap there.
struct SeenRow {
  const char* grad;
  const uint8_t* code;
  i64 base;
};
// All of them: of each depth so many rows, at the same distances from where that depth begins.
struct SeenRows {
  SeenRow depth[kMostSeenRows];
  int depths = 0, rows = 0;
  i64 grad = 0, code = 0, base = 0;  // of the first row
  i64 grad_step, code_step, base_step;
  int n() const { return depths * rows; }
  SeenRow at(int d, int r) const {
    return {depth[d].grad + grad + r * grad_step, depth[d].code + code + r * code_step,
            depth[d].base + base + r * base_step};
  }
};

// A vector of outputs and those before it, by which an input may be seen, too, say what as many inputs won as lie between
// their first taps. Before the first output there is none; the last vector overlaps the one before.
template <class T, class A, int KW, int S>
class SelectRows {
  static constexpr int L = kLanes<A>;
  using V = Vec<A, L>;
  using Memory = Lanes<T, A, L>;

  // Outputs between whose first taps there are only inputs of the row.
  static i64 outputs_of(const Axis& w) { return lower(w.n_out, (w.n_in + w.pad) / S); }

 public:
  // The first vector ends inside the row, and the last one begins inside it and reads no output before the first.
  static bool fits(const Axis& w) {
    const i64 rest = outputs_of(w) - L;
    return rest >= 0 && w.n_in >= S * L && (rest == 0 || (S * rest >= w.pad && rest >= (KW - 1) / S));
  }
  static void run(const Plan& p, const SeenRows& seen, char* y, i64) {
    const Axis& w = p.axis[2];
    T* const to = reinterpret_cast<T*>(y);
    if (seen.depths == 1 && seen.rows == 1) return run_rows<1>(w, seen, to);
    if (seen.depths == 1 && seen.rows == 2) return run_rows<2>(w, seen, to);
    if (seen.depths == 1 && seen.rows == 3) return run_rows<3>(w, seen, to);
    run_rows<0>(w, seen, to);
  }

 private:
  // N rows of one depth, for whose codes there are registers; or, if N is 0, any.
  template <int N>
  static __attribute__((noinline)) void run_rows(const Axis& w, const SeenRows& seen, T* to) {
    SeenRow rows[N ? N : kMostSeenRows];
    const int n = N ? N : seen.n();
    if constexpr (N > 0)
      for (int r = 0; r < N; ++r) rows[r] = seen.at(0, r);
    else
      for (int d = 0, i = 0; d < seen.depths; ++d)
        for (int r = 0; r < seen.rows; ++r) rows[i++] = seen.at(d, r);
    const i64 outputs = outputs_of(w), pad = w.pad;
    first_ones<N>(rows, n, pad, to);
    i64 i = L;
    for (; i + L <= outputs; i += L) vectors<N>(rows, n, i, to + S * i - pad);
    if (i < outputs) vectors<N>(rows, n, outputs - L, to + S * (outputs - L) - pad);
    for (i64 j = S * outputs - pad; j < w.n_in; ++j) narrow(to[j], one(rows, n, j + pad, w.n_out));
  }
  // The inputs from the first tap of output i on, as many as lie between those of L outputs.
  template <int N>
  static ANYPOOL_INLINE void vectors(const SeenRow* rows, int n, i64 i, T* to) {
    V sum[S] = {};
    for (int r = 0; r < (N ? N : n); ++r) {
      const T* grad = reinterpret_cast<const T*>(rows[r].grad) + i;
      const uint8_t* code = rows[r].code + i;
      for (int t = KW - 1; t >= 0; --t)
        Won<T, A>::add(sum[t % S], grad - t / S, code - t / S, uint8_t(rows[r].base + t));
    }
    in_order(sum);
    for (int s = 0; s < S; ++s) Memory::store(to + s * L, sum[s]);
  }
  // The inputs between the first taps of the first L outputs, and zeros behind them, which the next vector covers.
  template <int N>
  static ANYPOOL_INLINE void first_ones(const SeenRow* rows, int n, i64 pad, T* to) {
    V sum[S] = {};
    for (int r = 0; r < (N ? N : n); ++r)
      add_first<KW - 1>(sum, reinterpret_cast<const T*>(rows[r].grad), rows[r].code, uint8_t(rows[r].base));
    in_order(sum);
    T row[(S + 1) * L] = {};
    for (int s = 0; s < S; ++s) Memory::store(row + s * L, sum[s]);
    __builtin_memcpy(to, row + pad, sizeof(T) * S * L);
  }
  template <int T_>
  static ANYPOOL_INLINE void add_first(V* sum, const T* grad, const uint8_t* code, uint8_t base) {
    V won{};
    Won<T, A>::add(won, grad, code, uint8_t(base + T_));
    sum[T_ % S] = sum[T_ % S] + Slide<V, L - T_ / S, L>::run(V{}, won);
    if constexpr (T_ > 0) add_first<T_ - 1>(sum, grad, code, base);
  }
  static ANYPOOL_INLINE void in_order(V* sum) {
    if constexpr (S == 2) {
      const V even = sum[0], odd = sum[1];
      sum[0] = Zip<A, L>::low(even, odd), sum[1] = Zip<A, L>::high(even, odd);
    }
  }
  // What the input won that lies `at` behind the first output's first tap.
  static A one(const SeenRow* rows, int n, i64 at, i64 outputs) {
    const i64 first = at < KW ? 0 : (at - KW) / S + 1, last = lower(at / S, outputs - 1);
    A sum = 0;
    for (int r = 0; r < n; ++r)
      for (i64 o = first; o <= last; ++o) {
        const A grad = widen(reinterpret_cast<const T*>(rows[r].grad)[o]);
        sum += rows[r].code[o] == uint8_t(rows[r].base + at - o * S) ? grad : A(0);
      }
    return sum;
  }
};

// The same where channels lie innermost: for each pixel, vectors of them.
template <class T, class A>
class SelectPixels {
  static constexpr int L = kLanes<A>, kMany = 4;

 public:
  static constexpr int kMost = 64;  // outputs that may see a pixel
  static void run(const Plan& p, const SeenRows& rows, char* y, i64 channels) {
    const Axis& w = p.axis[2];
    const i64 reach = (w.kernel - 1) * w.dilation;
    const SeenRow nearest = rows.n() ? rows.at(0, 0) : SeenRow{};
    const T* const grad = reinterpret_cast<const T*>(nearest.grad);
    const uint8_t* const code = nearest.code;
    T* to = reinterpret_cast<T*>(y);
    i64 first = 0, last = -1;
    for (i64 j = 0; j < w.n_in; ++j, to += p.y_stride[2]) {
      while (first < w.n_out && first * w.stride - w.pad + reach < j) ++first;
      while (last + 1 < w.n_out && (last + 1) * w.stride - w.pad <= j) ++last;
      SeenAt seen[kMost];
      int m = 0;
      for (int d = 0; d < rows.depths; ++d)
        for (int r = 0; r < rows.rows; ++r) {
          const SeenRow row = rows.at(d, r);
          for (i64 o = first; o <= last; ++o) {
            i64 t = j - (o * w.stride - w.pad);
            if (w.dilation > 1) {
              if (t % w.dilation) continue;
              t /= w.dilation;
            }
            seen[m++] = {row.code - code + o * p.x_stride[2], uint8_t(row.base + t)};
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

// For a row of inputs; where channels lie innermost, so many of them.
using SelectRowsRun = void (*)(const Plan&, const SeenRows&, char* y, i64 channels);

template <class T, class A>
SelectRowsRun select_rows(const Axis& w) {
#define ANYPOOL_SELECT_ROWS(KW, S)              \
  if (w.kernel == KW && w.stride == S) {        \
    using Rows = SelectRows<T, A, KW, S>;       \
    return Rows::fits(w) ? Rows::run : nullptr; \
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
  return nullptr;
}

// How many outputs an input may be seen by.
inline i64 seen_by(const Axis& a) { return lower(a.kernel, (a.kernel - 1) * a.dilation / a.stride + 1); }

// For the plan of a backward pass, in which the axes are those of the forward one; none if its windows are others.
inline SelectRowsRun select_rows_of(const Plan& p) {
  for (const Axis& a : p.axis)
    if (a.kind != AxisKind::sliding) return nullptr;
  const Axis& w = p.axis[2];
  const i64 rows = seen_by(p.axis[0]) * seen_by(p.axis[1]);
  if (p.code != Code::u8 || p.out != p.in || rows > kMostSeenRows) return nullptr;
  return with_float_types<SelectRowsRun>(p, [&](auto t, auto a) -> SelectRowsRun {
    using T = typename decltype(t)::type;
    using A = typename decltype(a)::type;
    if (p.inner > 1) {
      using Pixels = SelectPixels<T, A>;
      bool alike = p.x_stride[3] == 1 && p.code_stride[3] == 1 && p.y_stride[3] == 1;
      for (int i = 0; i < 3; ++i) alike &= p.x_stride[i] == p.code_stride[i];
      if (!alike || p.inner < kLanes<A> || rows * seen_by(w) > Pixels::kMost) return nullptr;
      return Pixels::run;
    }
    // Rows that fill no vector take longer than putting each gradient where it belongs.
    if (w.dilation != 1 || w.pad < 0 || w.pad > w.kernel || p.x_stride[2] != 1 || p.y_stride[2] != 1 ||
        p.code_stride[2] != 1)
      return nullptr;
    return select_rows<T, A>(w);
  });
}

}  // namespace
}  // namespace anypool
