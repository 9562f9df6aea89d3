// What does not count is replaced: one pass over rows of elements of any type, as bits.
#pragma once
#include "plan.hpp"

namespace anypool {
namespace {

// The steps as template parameters: a loop over elements side by side is one that compilers turn into vectors.
template <class T, bool Omit, bool Told, int MaskStep, bool Dense>
void leave_out_row(const LeaveOut& job, const LeaveOutRow& row) {
  const T* __restrict x = static_cast<const T*>(row.x);
  const uint8_t* __restrict mask = row.mask;
  T* __restrict y = static_cast<T*>(row.y);
  uint8_t* __restrict valid = row.valid;
  const T none = T(job.none), largest = T(job.largest), magnitude = T(~T(0)) >> 1;
  const i64 n = job.n, x_step = Dense ? 1 : job.x_step, mask_step = Dense ? MaskStep : job.mask_step;
  for (i64 i = 0; i < n; ++i) {
    const T bits = x[i * x_step];
    bool counts = mask[i * mask_step];
    if constexpr (Omit) counts &= T(bits & magnitude) <= largest;
    if constexpr (Told) valid[i] = counts;
    y[i] = counts ? bits : none;
  }
}

template <class T, bool Omit, bool Told>
void leave_out_rows(const LeaveOut& job, const LeaveOutRow& row) {
  if (job.x_step != 1 || job.mask_step > 1 || job.mask_step < 0)
    return leave_out_row<T, Omit, Told, 0, false>(job, row);
  job.mask_step ? leave_out_row<T, Omit, Told, 1, true>(job, row) : leave_out_row<T, Omit, Told, 0, true>(job, row);
}
template <class T>
void leave_out_rows(const LeaveOut& job, const LeaveOutRow& row) {
  if (job.largest) return leave_out_rows<T, true, true>(job, row);
  row.valid ? leave_out_rows<T, false, true>(job, row) : leave_out_rows<T, false, false>(job, row);
}

void tell_row(const LeaveOut& job, const LeaveOutRow& row) {
  const uint8_t* __restrict mask = row.mask;
  uint8_t* __restrict valid = row.valid;
  const i64 n = job.n, step = job.mask_step;
  if (step == 1)
    for (i64 i = 0; i < n; ++i) valid[i] = mask[i] != 0;
  else
    for (i64 i = 0; i < n; ++i) valid[i] = mask[i * step] != 0;
}

void leave_out(const LeaveOut& job, const LeaveOutRow& row) {
  if (!row.y) return tell_row(job, row);
  switch (job.bytes) {
    case 1: return leave_out_rows<uint8_t>(job, row);
    case 2: return leave_out_rows<uint16_t>(job, row);
    case 4: return leave_out_rows<uint32_t>(job, row);
    default: return leave_out_rows<uint64_t>(job, row);
  }
}

}  // namespace
}  // namespace anypool
