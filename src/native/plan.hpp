// The plan: everything a kernel needs to know, as plain numbers. Python validates and fills it; kernels only read it.
// This header is shared by every translation unit, so it holds no code that could become a weak symbol.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace anypool {

using i64 = int64_t;

enum class DType : int32_t { u8, i8, u16, i16, u32, i32, u64, i64, f16, bf16, f32, f64 };
enum class Code : int32_t { none, u8, u16, i32, i64, index };  // index: flat position in the pooled axes, int64

// How states merge. A scaled sum keeps (mantissa, exponent) pairs, so that exp() and powers never overflow.
enum class Merge : int32_t { max, min, sum, scaled_sum };

// What happens to an element before it is merged ...
enum class Lift : int32_t { none, absolute, power, signed_power, exp, over_divisor, over_power, over_exp };
// ... and to a merged state before it is stored. The `over_*` lifts and the `times_*` finishes belong to adjoints:
// grad_x[j] = finish(x[j]) * sum over the windows o that saw j of lift(grad_y[o], y[o]).
enum class Finish : int32_t { none, divide, root, signed_root, log, times_power, times_signed_power, times_exp };

enum class AxisKind : int32_t { sliding, table, transposed };
enum class Divisor : int32_t {
  window,
  valid,
  constant
};  // window: taps inside the padded extent; valid: taps inside the data

// One pooled axis. `sliding`: window o starts at o*stride - pad and has `kernel` taps, `dilation` apart.
// `table`: window o is first[o], first[o]+dilation, ... (count[o] taps). `transposed`: of the sliding axis with these
// numbers, input j's window is the outputs that saw j; n_in and n_out are then those of the transposed axis. The host makes
// sliding ones of those whose stride is 1.
struct Axis {
  AxisKind kind;
  i64 n_in, n_out, kernel, stride, dilation, pad, pad_hi;
  const i64* first;
  const i64* count;
};

constexpr int kMaxOuter = 16;

struct Plan {
  DType in, acc, out, aux;
  Code code;
  Merge merge;
  Lift lift;
  Finish finish;
  Divisor divisor;
  bool adjoint;          // of windows: an input that none of them saw, or that got only -0.0, has the gradient 0.0
  double divisor_value;  // Divisor::constant
  double p;              // exponent of lp, sharpness r of logsumexp
  Axis axis[3];          // d, h, w of this pass; missing axes have one element and a one-wide window
  Axis forward[3];       // the axes that define the divisor (those of the forward pass)

  // Canonical view (outer..., d, h, w, inner); strides are in elements of the array they belong to.
  int32_t n_outer;
  i64 outer[kMaxOuter];
  i64 inner;
  i64 x_outer[kMaxOuter], x_stride[4];        // input of this pass
  i64 y_outer[kMaxOuter], y_stride[4];        // output of this pass
  i64 code_outer[kMaxOuter], code_stride[4];  // codes, beside the output (forward) or the input (backward)
  i64 aux_outer[kMaxOuter], aux_stride[4];    // y of the forward pass, beside the input of an adjoint; or the mask
  i64 post_outer[kMaxOuter], post_stride[4];  // x of the forward pass, beside the output of an adjoint

  // Blocking, chosen by the host so that a thread's scratch stays in its cache.
  i64 tile_w;      // output columns per task
  i64 tile_c;      // inner elements per task
  i64 rows_block;  // output rows per task
  i64 group;       // small planes taken at once; 0: one by one
  i64 planes;      // 0, or into how many tasks a kernel that takes whole planes cuts each
};

struct Buffers {
  const void* x;
  void* y;
  void* code;               // written by forward, read by the selecting backward
  const void* aux;          // over_power, over_exp; or the mask
  const void* post;         // times_*
  uint64_t empty = 0;       // bits of the result of a window in which nothing counts
  bool rows_alone = false;  // x is where the input would begin, of which the rows that tasks see are all there is
};

// Rows of n elements in which those that do not count are replaced. Elements are bits: `largest` is the largest magnitude
// of a number where NaNs are left out, 0 where they are not. Steps are in elements; results lie side by side.
struct LeaveOut {
  i64 n, bytes, x_step, mask_step;
  uint64_t none, largest;
};
struct LeaveOutRow {
  const void* x;
  const uint8_t* mask;
  void* y;         // null: only to tell which count
  uint8_t* valid;  // 0 or 1: which count; may be null where NaNs are not left out
};

// Rows of merged elements, of which each had so many that count, become results: a mean is divided, by that number and
// its window's padding or by a constant, and what had none gets a value of its own.
struct Finishing {
  DType state, out;
  bool short_counts;  // bytes, else int32
  bool divides, by_constant;
  double constant;
  i64 y_step;      // in elements
  uint64_t empty;  // bits of a result
};
struct FinishingRow {
  i64 n;
  void* state;  // side by side, as are counts; the results themselves, unless it divides
  const void* counts;
  const void* padding;  // elements of each window that are, or null for none; of the state's type
  void* y;
};

// What a level exports for plans that are run plane by plane, without tiles of the host's.
struct PlaneKernels {
  i64 (*tasks)(const Plan&);        // 0, or into how many tasks a kernel that takes whole planes cuts each
  const char* (*way)(const Plan&);  // where there is one, as are the others
  i64 (*scratch_bytes)(const Plan&);
  void (*run)(const Plan&, const Buffers&, i64 begin, i64 end, char* scratch);
};

// What one instruction-set level exports. A task is one (outer, inner block, d, row block, column tile).
struct KernelTable {
  const char* name;
  bool (*whole_rows)(const Plan&);            // whether a kernel for just these windows exists, which needs no lines
  const char* (*way)(const Plan&);            // how rows are merged; depends on the tiles
  i64 (*planes)(const Plan&, bool backward);  // what PlaneKernels::tasks says
  i64 (*scratch_bytes)(const Plan&, bool backward);
  void (*forward)(const Plan&, const Buffers&, i64 begin, i64 end, char* scratch);
  // The same in two steps, for many small runs: what is worked out once stays in the scratch memory.
  void (*open)(const Plan&, char* scratch);
  void (*forward_opened)(const Plan&, const Buffers&, i64 begin, i64 end, char* scratch);
  void (*select_backward)(const Plan&, const Buffers&, i64 begin, i64 end, char* scratch);
};

// Output rows [oh0, oh1) of depth od of one plane, windows merged over what counts; not divided. Of sums also the counts.
struct MaskedBlock {
  const char* x;        // of the plane
  const uint8_t* mask;  // of the plane
  char* y;              // where row oh0 begins
  i64 y_step;           // from row to row, in bytes
  i64 od, oh0, oh1;
  const uint8_t* zeros;  // as many as a row has elements
  // Of sums, which are finished at once; maxima are not.
  uint8_t* columns;  // room for as many, and kBesideColumns on either side
  const Finishing* finishing;
  const char* padding;  // as in FinishingRow, of row oh0
  i64 padding_step;     // in bytes
};
constexpr i64 kBesideColumns = 128;  // windows of the last lanes begin so far behind a row at most

// What a level exports for inputs of which not all count; the strides of a plan's aux are those of the mask.
struct MaskKernels {
  const char* name;
  bool (*fused)(const Plan&);  // whether `block` knows the windows
  void (*block)(const Plan&, const MaskedBlock&);
  i64 (*tasks)(const Plan&);  // of each plane, if `planes` knows the windows, else 0
  void (*planes)(const Plan&, const Buffers&, i64 begin, i64 end);
  void (*leave_out)(const LeaveOut&, const LeaveOutRow&);
  void (*finish)(const Finishing&, const FinishingRow&);
  // The first element from `from` on with these bits, or n.
  i64 (*find)(const void* row, i64 bytes, i64 step, i64 from, i64 n, uint64_t bits);
};

}  // namespace anypool
