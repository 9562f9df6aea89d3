// The host side of leaving inputs out: arrays of any strides as rows, shared out among threads.
#pragma once
#include <vector>

#include "plan.hpp"

namespace anypool {

// One axis of the arrays; steps are in bytes, those of the results in elements.
struct MaskAxis {
  i64 n, x, mask, y;
};

const MaskKernels& mask_kernels();

// y, and valid if it is not null, lie without gaps, in the order of their steps.
void leave_out(const LeaveOutRow& arrays, std::vector<MaskAxis> axes, LeaveOut job);

}  // namespace anypool
