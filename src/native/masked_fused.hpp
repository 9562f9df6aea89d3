// The common small windows, with the mask loaded beside each row: nothing is copied. Sums also count what they add up.
#pragma once
#include "fused.hpp"

namespace anypool {
namespace {

template <class T, class Op, Beside B>
FusedKernel masked_kernel(i64 kd, i64 kh, i64 kw, i64 s) {
#define ANYPOOL_MASKED(KD, KH, KW, S) \
  if (kd == KD && kh == KH && kw == KW && s == S) return Fused<T, Op, KD, KH, KW, S, 1, B>::run;
  ANYPOOL_MASKED(1, 1, 2, 2)
  ANYPOOL_MASKED(1, 1, 3, 1)
  ANYPOOL_MASKED(1, 1, 3, 2)
  ANYPOOL_MASKED(1, 2, 2, 2)
  ANYPOOL_MASKED(1, 3, 3, 1)
  ANYPOOL_MASKED(1, 3, 3, 2)
  ANYPOOL_MASKED(2, 2, 2, 2)
#undef ANYPOOL_MASKED
  return nullptr;
}
template <class T>
FusedKernel masked_kernel(const Plan& p) {
  if constexpr (kLanes<T> >= 3) {
    const i64 kd = p.axis[0].kernel, kh = p.axis[1].kernel, kw = p.axis[2].kernel, s = p.axis[2].stride;
    switch (p.merge) {
      case Merge::max: return masked_kernel<T, Select<T, true>, Beside::mask>(kd, kh, kw, s);
      case Merge::min: return masked_kernel<T, Select<T, false>, Beside::mask>(kd, kh, kw, s);
      default: return masked_kernel<T, Sum<T>, Beside::counted_mask>(kd, kh, kw, s);
    }
  }
  return nullptr;
}

// The kernel for a plan, or none. Its results have the type of the inputs, and lie side by side.
inline FusedKernel masked_kernel_of(const Plan& p) {
  for (const Axis& a : p.axis)
    if (a.kind != AxisKind::sliding || a.dilation != 1) return nullptr;
  const Axis& w = p.axis[2];
  if (p.inner != 1 || w.n_in < 16 || w.pad > w.kernel || w.pad_hi > w.kernel || p.x_stride[2] != 1 ||
      p.aux_stride[2] != 1 || p.y_stride[2] != 1 || p.lift != Lift::none || p.acc != p.in || p.out != p.in ||
      p.merge == Merge::scaled_sum || (p.finish != Finish::none && p.finish != Finish::divide))
    return nullptr;
  return p.in == DType::f32 ? masked_kernel<float>(p) : p.in == DType::f64 ? masked_kernel<double>(p) : nullptr;
}

inline void masked_block(const Plan& p, const MaskedBlock& b) {
  const Axis &h = p.axis[1], &w = p.axis[2];
  const i64 bytes = size_of(p.in), row = p.x_stride[1] * bytes;
  const Window wd = window_of(p.axis[0], b.od);
  FusedJob job{};
  job.cols = w.n_in, job.start = -w.pad, job.n = w.n_out, job.y_step = b.y_step;
  job.columns = b.columns, job.finishing = b.finishing, job.padding_step = b.padding_step;
  job.in_order = p.axis[0].kernel * h.kernel > 1 && job.cols * bytes < kPage;
  const FusedKernel run = masked_kernel_of(p);
  for (i64 oh = b.oh0; oh < b.oh1; oh += job.count) {
    const Window wh = window_of(h, oh);
    // The next rows with it, as long as they miss nothing.
    job.count = wh.lo > 0 || wh.hi < wh.taps ? 1 : lower(b.oh1 - oh, (h.n_in - wh.start - wh.taps) / h.stride + 1);
    int i = 0;
    for (i64 d = 0; d < wd.taps; ++d)
      for (i64 t = 0; t < wh.taps; ++t, ++i) {
        const bool there = d >= wd.lo && d < wd.hi && t >= wh.lo && t < wh.hi;
        job.rows[i] = there ? b.x + wd.at(d) * p.x_stride[0] * bytes + wh.at(t) * row : b.x;
        job.masks[i] = there ? b.mask + wd.at(d) * p.aux_stride[0] + wh.at(t) * p.aux_stride[1] : b.zeros;
        job.step[i] = there ? h.stride * row : 0;
        job.mask_step[i] = there ? h.stride * p.aux_stride[1] : 0;
      }
    job.y = b.y + (oh - b.oh0) * b.y_step;
    job.padding = b.padding ? b.padding + (oh - b.oh0) * b.padding_step : nullptr;
    run(job);
  }
}

}  // namespace
}  // namespace anypool
