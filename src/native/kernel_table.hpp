// Which reductions are instantiated: the table of kernels. A new native trait gets its line here.
#pragma once
#include "merge.hpp"

namespace anypool {
namespace {

// The reduction of a plan; the host only makes plans that this table has.
const Kernel& kernel_of(const Plan& p) {
  const bool max = p.merge == Merge::max;
  if (p.merge == Merge::scaled_sum) return kKernel<ScaledSum>;
  if (p.merge == Merge::sum) {
    switch (p.acc) {
      case DType::f32: return kKernel<Sum<float>>;
      case DType::f64: return kKernel<Sum<double>>;
      case DType::i32: return kKernel<Sum<int32_t>>;
      default: return kKernel<Sum<uint64_t>>;  // signed ones too: they wrap around alike, and defined
    }
  }
#define ANYPOOL_CODED(T, I) return max ? kKernel<SelectCoded<T, I, true>> : kKernel<SelectCoded<T, I, false>>
#define ANYPOOL_SELECT(T) return max ? kKernel<Select<T, true>> : kKernel<Select<T, false>>
  if (p.code != Code::none) {
    switch (p.acc) {
      case DType::f32: ANYPOOL_CODED(float, int32_t);
      case DType::f64: ANYPOOL_CODED(double, int64_t);
      case DType::i32: ANYPOOL_CODED(int32_t, int32_t);
      case DType::u64: ANYPOOL_CODED(uint64_t, int64_t);
      default: ANYPOOL_CODED(int64_t, int64_t);
    }
  }
  switch (p.acc) {
    case DType::u8: ANYPOOL_SELECT(uint8_t);
    case DType::i8: ANYPOOL_SELECT(int8_t);
    case DType::u16: ANYPOOL_SELECT(uint16_t);
    case DType::i16: ANYPOOL_SELECT(int16_t);
    case DType::u32: ANYPOOL_SELECT(uint32_t);
    case DType::i32: ANYPOOL_SELECT(int32_t);
    case DType::u64: ANYPOOL_SELECT(uint64_t);
    case DType::i64: ANYPOOL_SELECT(int64_t);
    case DType::f64: ANYPOOL_SELECT(double);
    default: ANYPOOL_SELECT(float);
  }
#undef ANYPOOL_CODED
#undef ANYPOOL_SELECT
}

}  // namespace
}  // namespace anypool
