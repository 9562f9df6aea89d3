// Where work runs: on PyTorch's own pool if PyTorch is loaded, else on a small pool of ours.
#pragma once
#include <cstdint>

namespace anypool {

// The number of threads a large call would use now.
int thread_count();
// "pytorch" or "anypool": whose pool that is.
const char* thread_pool_name();

// Calls work(begin, end, slot) for consecutive ranges that cover [0, n), with at most `threads` of them, at once where
// possible. slot < threads is distinct among the calls of one run. Returns when all have.
using Work = void (*)(void* context, int64_t begin, int64_t end, int slot);
void parallel_ranges(int64_t n, int threads, Work work, void* context);

}  // namespace anypool
