// What does not count: rows in which it is replaced, and results of which it was left out.
#pragma once
#include "elements.hpp"
#include "leave_out.hpp"

namespace anypool {
namespace {

template <class T>
bool any_equal_in(const T* row, i64 step, i64 n, T value) {
  T found = 0;
  if (step == 1)
    for (i64 i = 0; i < n; ++i) found |= T(row[i] == value);
  else
    for (i64 i = 0; i < n; ++i) found |= T(row[i * step] == value);
  return found;
}

template <class T>
i64 find_in(const T* row, i64 step, i64 from, i64 n, T value) {
  constexpr i64 kBlock = 256;
  for (; from < n; from += kBlock) {
    const i64 end = lower(from + kBlock, n);
    if (!any_equal_in(row + from * step, step, end - from, value)) continue;
    while (row[from * step] != value) ++from;
    return from;
  }
  return n;
}

i64 find(const void* row, i64 bytes, i64 step, i64 from, i64 n, uint64_t bits) {
  switch (bytes) {
    case 1: return find_in(static_cast<const uint8_t*>(row), step, from, n, uint8_t(bits));
    case 2: return find_in(static_cast<const uint16_t*>(row), step, from, n, uint16_t(bits));
    case 4: return find_in(static_cast<const uint32_t*>(row), step, from, n, uint32_t(bits));
    default: return find_in(static_cast<const uint64_t*>(row), step, from, n, bits);
  }
}

template <class A, class Count>
void divide_row(const Finishing& job, const FinishingRow& row, A* out) {
  const A* state = static_cast<const A*>(row.state);
  const A* padding = static_cast<const A*>(row.padding);
  const Count* counts = static_cast<const Count*>(row.counts);
  if (job.by_constant) {
    const A by = A(job.constant);
    for (i64 i = 0; i < row.n; ++i) out[i] = state[i] / by;
  } else if (padding) {
    for (i64 i = 0; i < row.n; ++i) out[i] = state[i] / (A(counts[i]) + padding[i]);
  } else {
    for (i64 i = 0; i < row.n; ++i) out[i] = state[i] / A(counts[i]);
  }
}

template <class T, class Count>
void fill_empty(const Finishing& job, const FinishingRow& row) {
  const Count* counts = static_cast<const Count*>(row.counts);
  T* y = static_cast<T*>(row.y);
  const T empty = T(job.empty);
  if (job.y_step == 1)
    for (i64 i = 0; i < row.n; ++i) y[i] = counts[i] ? y[i] : empty;
  else
    for (i64 i = 0; i < row.n; ++i)
      if (!counts[i]) y[i * job.y_step] = empty;
}

template <class Count>
void finish_row(const Finishing& job, const FinishingRow& row) {
  if (job.divides) {
    const bool there = job.state == job.out && job.y_step == 1;
    void* out = there ? row.y : row.state;
    if (job.state == DType::f64)
      divide_row<double, Count>(job, row, static_cast<double*>(out));
    else
      divide_row<float, Count>(job, row, static_cast<float*>(out));
    if (!there) converter(job.state, job.out)(row.y, job.y_step, row.state, 1, row.n);
  }
  if (!any_equal_in(static_cast<const Count*>(row.counts), 1, row.n, Count(0))) return;
  switch (size_of(job.out)) {
    case 1: return fill_empty<uint8_t, Count>(job, row);
    case 2: return fill_empty<uint16_t, Count>(job, row);
    case 4: return fill_empty<uint32_t, Count>(job, row);
    default: return fill_empty<uint64_t, Count>(job, row);
  }
}

void finish(const Finishing& job, const FinishingRow& row) {
  job.short_counts ? finish_row<uint8_t>(job, row) : finish_row<int32_t>(job, row);
}

}  // namespace
}  // namespace anypool
