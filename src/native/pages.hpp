// Pages of memory that is about to be written.
#pragma once
#include "plan.hpp"

namespace anypool {

// Where a result has never been written, the system hands out its memory page by page, each zeroed: on a virtual machine
// 1.4 us for 4 KB, ten times as long as it takes to write them, and 40 us for 2 MB at once. So those are asked for, as NumPy
// does for its arrays; PyTorch and the C library do not. Memory below 2 MB, or that is there, stays as it is.
void ask_for_large_pages(void* memory, i64 bytes);

}  // namespace anypool
