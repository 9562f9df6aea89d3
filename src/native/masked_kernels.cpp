// Compiled once per instruction-set level, as kernels.cpp is: what runs where not all inputs count.
#include "level.hpp"
#include "masked_fused.hpp"
#include "masked_rows.hpp"

namespace anypool {
namespace {

bool fused(const Plan& p) { return masked_kernel_of(p) != nullptr; }

}  // namespace

extern const MaskKernels ANYPOOL_NAME(kMaskKernels_, ANYPOOL_LEVEL);
const MaskKernels ANYPOOL_NAME(kMaskKernels_, ANYPOOL_LEVEL) = {
    ANYPOOL_TEXT(ANYPOOL_LEVEL), fused, masked_block, leave_out, finish, find,
};

}  // namespace anypool
