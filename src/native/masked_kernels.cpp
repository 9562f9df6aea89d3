// Compiled once per instruction-set level, as kernels.cpp is: what runs where not all inputs count.
#include "level.hpp"
#include "masked_fused.hpp"
#include "masked_rows.hpp"
#include "whole_planes.hpp"

namespace anypool {
namespace {

bool fused(const Plan& p) { return masked_kernel_of(p) != nullptr; }
i64 tasks(const Plan& p) {
  const PlanesRun found = masked_whole_run_of(p);
  return found.run ? found.tasks : 0;
}
void planes(const Plan& p, const Buffers& b, i64 begin, i64 end) {
  masked_whole_run_of(p).run(p, b, begin, end, nullptr);
}

}  // namespace

extern const MaskKernels ANYPOOL_NAME(kMaskKernels_, ANYPOOL_LEVEL);
const MaskKernels ANYPOOL_NAME(kMaskKernels_, ANYPOOL_LEVEL) = {
    ANYPOOL_TEXT(ANYPOOL_LEVEL), fused, masked_block, tasks, planes, leave_out, finish, find,
};

}  // namespace anypool
