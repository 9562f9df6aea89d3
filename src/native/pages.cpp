#include "pages.hpp"

#include <sys/mman.h>

#include "geometry.hpp"

namespace anypool {

void ask_for_large_pages(void* memory, i64 bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr i64 kLarge = i64(2) << 20, kSmall = 4096;
  if (bytes < kLarge) return;
  const i64 address = reinterpret_cast<i64>(memory);
  const i64 begin = round_up(address, kLarge), end = (address + bytes) / kLarge * kLarge;
  if (begin >= end) return;
  const auto missing = [](i64 at) {
    unsigned char there = 1;
    return !mincore(reinterpret_cast<void*>(at), size_t(kSmall), &there) && !(there & 1);
  };
  if (missing(begin) || missing(end - kSmall))
    madvise(reinterpret_cast<void*>(begin), size_t(end - begin), MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace anypool
