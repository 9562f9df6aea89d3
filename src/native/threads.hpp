// Where work runs: on PyTorch's own pool if PyTorch is loaded, else on a small pool of ours.
#pragma once
#include <cstdint>

namespace anypool {

// The number of threads a large call would use now.
int thread_count();
// "pytorch" or "anypool": whose pool that is.
const char* thread_pool_name();

// Calls work(begin, end, part) for consecutive ranges that cover [0, n), on at most `threads` threads, at once where
// possible. Returns when all have.
using Work = void (*)(void* context, int64_t begin, int64_t end, int part);
void parallel_ranges(int64_t n, int threads, Work work, void* context);

}  // namespace anypool
