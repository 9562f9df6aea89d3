#include "masks.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "dispatch.hpp"
#include "geometry.hpp"
#include "levels.hpp"
#include "threads.hpp"

namespace anypool {

#define ANYPOOL_DECLARE(level) extern const MaskKernels kMaskKernels_##level;
ANYPOOL_LEVELS(ANYPOOL_DECLARE)
#undef ANYPOOL_DECLARE

const MaskKernels& mask_kernels() {
  static const MaskKernels* const table = [] {
    const std::string level = chosen_level();
#define ANYPOOL_FIND(name) \
  if (level == #name) return &kMaskKernels_##name;
    ANYPOOL_LEVELS(ANYPOOL_FIND)
#undef ANYPOOL_FIND
    return static_cast<const MaskKernels*>(nullptr);
  }();
  if (!table) throw std::runtime_error("no kernels for this CPU");
  return *table;
}

namespace {

constexpr i64 kChunk = 1 << 14;  // elements of a row taken at once

struct Rows {
  const LeaveOutRow& arrays;
  const std::vector<MaskAxis>& axes;  // the last is along the rows
  const LeaveOut& job;
  const MaskKernels& kernels;

  void run(i64 begin, i64 end) const {
    const i64 n = axes.back().n, chunks = ceil_div(n, kChunk);
    for (i64 task = begin; task < end; ++task) {
      const i64 from = task % chunks * kChunk;
      i64 rest = task / chunks, x = from * axes.back().x, mask = from * axes.back().mask, y = from;
      for (size_t a = axes.size() - 1; a-- > 0;) {
        const i64 i = rest % axes[a].n;
        rest /= axes[a].n;
        x += i * axes[a].x, mask += i * axes[a].mask, y += i * axes[a].y;
      }
      LeaveOut part = job;
      part.n = std::min(kChunk, n - from);
      kernels.leave_out(part,
                        {static_cast<const char*>(arrays.x) + x, arrays.mask + mask,
                         static_cast<char*>(arrays.y) + y * job.bytes, arrays.valid ? arrays.valid + y : nullptr});
    }
  }
};

}  // namespace

void leave_out(const LeaveOutRow& arrays, std::vector<MaskAxis> axes, LeaveOut job) {
  i64 elements = 1;
  for (const MaskAxis& a : axes) elements *= a.n;
  if (!elements) return;
  axes.insert(axes.begin(), MaskAxis{1, 0, 0, elements});
  std::stable_sort(axes.begin(), axes.end(), [](const MaskAxis& a, const MaskAxis& b) { return a.y > b.y; });
  std::vector<MaskAxis> merged;
  for (const MaskAxis& a : axes) {
    if (a.n == 1 && !merged.empty()) continue;
    MaskAxis* slow = merged.empty() ? nullptr : &merged.back();
    if (slow && (slow->n == 1 || (slow->x == a.x * a.n && slow->mask == a.mask * a.n && slow->y == a.y * a.n)))
      *slow = {slow->n * a.n, a.x, a.mask, a.y};
    else
      merged.push_back(a);
  }
  job.x_step = merged.back().x / job.bytes;
  job.mask_step = merged.back().mask;
  const Rows rows{arrays, merged, job, mask_kernels()};
  const i64 tasks = elements / merged.back().n * ceil_div(merged.back().n, kChunk);
  const i64 useful = std::min(tasks, elements * job.bytes / kBytesPerThread);
  parallel_ranges(
      tasks, int(std::clamp<i64>(useful, 1, thread_count())),
      [](void* p, i64 begin, i64 end, int) { static_cast<const Rows*>(p)->run(begin, end); }, const_cast<Rows*>(&rows));
}

}  // namespace anypool
