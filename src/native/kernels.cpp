// Compiled once per instruction-set level; exports one table. No STL and no nanobind here, and nothing outside the
// anonymous namespace: see simd.hpp.
#include "flat_gradient.hpp"
#include "level.hpp"
#include "plane_groups.hpp"
#include "select_backward.hpp"

namespace anypool {

extern const PlaneKernels ANYPOOL_NAME(kPlaneKernels_, ANYPOOL_LEVEL);

namespace {

constexpr const PlaneKernels& kPlanes = ANYPOOL_NAME(kPlaneKernels_, ANYPOOL_LEVEL);

using BackwardF32 = SelectBackward<float>;
using BackwardF64 = SelectBackward<double>;

bool fused(const Plan& p) { return fused_choice_of(p).run != nullptr; }
bool whole_rows(const Plan& p) { return fused(p) || PixelSums::applies(p); }
const char* way(const Plan& p) {
  return p.planes                             ? kPlanes.way(p)
         : fused(p)                           ? "fused rows"
         : SpreadRows::applies(p)             ? "spread rows"
         : PixelSums::applies(p)              ? "sums of pixels"
         : TurnedRows::gains(p, kernel_of(p)) ? "turned rows"
                                              : "rows";
}
i64 planes(const Plan& p, bool backward) {
  if (!backward) return kPlanes.tasks(p);
  const PlanesRun found = flat_gradient_of(p);
  return found.run ? found.tasks : 0;
}

// An engine lies at the beginning of its own scratch memory.
template <class T>
struct InScratch {
  static constexpr i64 kBytes = (i64(sizeof(T)) + 63) / 64 * 64;
  static T& at(char* scratch) { return *reinterpret_cast<T*>(scratch); }
};
using Planes = InScratch<PlaneGroups>;
using Rows = InScratch<Engine>;

i64 scratch_bytes(const Plan& p, bool backward) {
  if (p.planes) return backward ? flat_gradient_of(p).scratch_bytes(p) : kPlanes.scratch_bytes(p);
  if (!backward)
    return p.group ? Planes::kBytes + PlaneGroups(p, nullptr).scratch_bytes()
                   : Rows::kBytes + Engine(p, kernel_of(p), nullptr).scratch_bytes();
  return p.acc == DType::f64 ? BackwardF64(p, Buffers{}, nullptr).scratch_bytes()
                             : BackwardF32(p, Buffers{}, nullptr).scratch_bytes();
}
void open(const Plan& p, char* scratch) {
  if (p.planes) return;
  if (p.group)
    new (scratch) PlaneGroups(p, scratch + Planes::kBytes);
  else
    new (scratch) Engine(p, kernel_of(p), scratch + Rows::kBytes);
}
void forward_opened(const Plan& p, const Buffers& b, i64 begin, i64 end, char* scratch) {
  if (p.planes) {
    kPlanes.run(p, b, begin, end, scratch);
  } else if (p.group) {
    Planes::at(scratch).run(b, begin, end);
  } else {
    Rows::at(scratch).run(b, begin, end);
  }
}
void forward(const Plan& p, const Buffers& b, i64 begin, i64 end, char* scratch) {
  open(p, scratch);
  forward_opened(p, b, begin, end, scratch);
}
void select_backward(const Plan& p, const Buffers& b, i64 begin, i64 end, char* scratch) {
  if (p.planes) return flat_gradient_of(p).run(p, b, begin, end, scratch);
  p.acc == DType::f64 ? BackwardF64(p, b, scratch).run(begin, end) : BackwardF32(p, b, scratch).run(begin, end);
}

}  // namespace

extern const KernelTable ANYPOOL_NAME(kKernels_, ANYPOOL_LEVEL);
const KernelTable ANYPOOL_NAME(kKernels_, ANYPOOL_LEVEL) = {
    ANYPOOL_TEXT(ANYPOOL_LEVEL), whole_rows, way, planes, scratch_bytes, forward, open, forward_opened, select_backward,
};

}  // namespace anypool
