#include "dispatch.hpp"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "geometry.hpp"
#include "levels.hpp"
#include "masked.hpp"
#include "pages.hpp"
#include "threads.hpp"

namespace anypool {

#define ANYPOOL_DECLARE(level) extern const KernelTable kKernels_##level;
ANYPOOL_LEVELS(ANYPOOL_DECLARE)
#undef ANYPOOL_DECLARE

namespace {

const KernelTable* const kTables[] = {// best first
#define ANYPOOL_LIST(level) &kKernels_##level,
                                      ANYPOOL_LEVELS(ANYPOOL_LIST)
#undef ANYPOOL_LIST
};

bool cpu_runs(const std::string& level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (level == "x86_64_v4")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && cpu_runs("x86_64_v3");
  if (level == "x86_64_v3")
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
           cpu_runs("x86_64_v2");
  if (level == "x86_64_v2") return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
#endif
  return level == "baseline";
}

const KernelTable* choose() {
  const char* wanted = std::getenv("ANYPOOL_ISA");
  for (const KernelTable* t : kTables)
    if (cpu_runs(t->name) && (!wanted || !*wanted || std::string(wanted) == t->name)) return t;
  return nullptr;
}

// Scratch is kept per thread, so that small calls allocate nothing; a large one gives its memory back.
struct Scratch {
  std::unique_ptr<char[]> memory;
  i64 size = 0;
  char* get(i64 bytes) {
    if (bytes > size) {
      memory.reset(new char[size_t(bytes) + 64]);
      size = bytes;
    }
    return reinterpret_cast<char*>(round_up(reinterpret_cast<i64>(memory.get()), 64));
  }
  void trim() {
    if (size > (i64(8) << 20)) memory.reset(), size = 0;
  }
};

thread_local Scratch kept_scratch;

// Of stride 1, the outputs that saw an input are a window that slides, too.
void make_sliding(Plan& p, Axis& a) {
  if (a.kind != AxisKind::transposed) return;
  p.adjoint = true;
  const i64 reach = (a.kernel - 1) * a.dilation, pad = reach - a.pad;
  if (a.stride != 1 || pad < 0) return;
  a.kind = AxisKind::sliding;
  a.pad = pad, a.pad_hi = a.n_out - a.n_in + reach - pad;
}

// Where rows have one element, the axis before is taken for the row: kernels look for neighbours along a row.
void join_single_columns(Plan& p) {
  const auto single = [](const Axis& a) {
    return a.kind == AxisKind::sliding && a.n_in == 1 && a.n_out == 1 && a.kernel == 1 && a.pad == 0;
  };
  for (int i = 0; i < 2 && p.inner == 1 && single(p.axis[2]) && single(p.forward[2]); ++i) {
    for (Axis* axes : {p.axis, p.forward}) std::rotate(axes, axes + 2, axes + 3);
    for (i64* strides : {p.x_stride, p.y_stride, p.code_stride, p.aux_stride, p.post_stride})
      std::rotate(strides, strides + 2, strides + 3);
  }
}

// Whether the elements of a result lie one behind the other from the first on, in whatever order.
bool dense_result(const Plan& p, bool backward) {
  i64 n = p.inner, reach = (p.inner - 1) * p.y_stride[3];
  bool forwards = true;
  const auto add = [&](i64 size, i64 stride) {
    n *= size, reach += (size - 1) * stride;
    forwards &= stride >= 0 || size <= 1;
  };
  for (int a = 0; a < p.n_outer; ++a) add(p.outer[a], p.y_outer[a]);
  for (int a = 0; a < 3; ++a) add(backward ? p.axis[a].n_in : p.axis[a].n_out, p.y_stride[a]);
  return forwards && reach == n - 1;
}

}  // namespace

std::vector<std::string> built_levels() {
  std::vector<std::string> names;
  for (const KernelTable* t : kTables) names.emplace_back(t->name);
  return names;
}
const KernelTable* chosen_kernels() {
  static const KernelTable* const table = choose();
  return table;
}
std::string chosen_level() { return chosen_kernels() ? chosen_kernels()->name : ""; }

std::string Recipe::way() const {
  if (!tasks) return "nothing to do";
  if (masked) return "masked " + masked->way();
  if (backward) return plan.planes ? "from codes, planes at once" : "from codes";
  if (plan.group) return std::to_string(plan.group) + " planes at once";
  return kernels->way(plan);
}

int Recipe::threads() const {
  const i64 useful = std::min(tasks, bytes / kBytesPerThread);
  return useful <= 1 ? 1 : static_cast<int>(std::min(useful, i64(thread_count())));
}

void Recipe::prepare() {
  kernels = chosen_kernels();
  Plan& p = plan;
  for (Axis& a : p.axis) make_sliding(p, a);
  join_single_columns(p);
  const i64 outer = outer_size(p);
  const Axis &d = p.axis[0], &h = p.axis[1], &w = p.axis[2];
  const i64 n_in = elements_of(p, &Axis::n_in), n_out = elements_of(p, &Axis::n_out), result = backward ? n_in : n_out;
  bytes = n_in * size_of(p.in) + n_out * size_of(p.out);
  written = dense_result(p, backward) ? result : 0;

  if (result == 0) return;  // nothing to write

  // A tile's rows should fit the L1 cache a few times over: 8 KB of accumulators each.
  const i64 acc = size_of(p.acc), budget = (i64(8) << 10) / acc;
  const i64 columns = backward ? w.n_in : w.n_out, rows = backward ? h.n_in : h.n_out,
            planes = backward ? d.n_in : d.n_out;
  const i64 reach = (w.kernel - 1) * w.dilation + 1,
            step = w.kind == AxisKind::sliding ? w.stride : std::max<i64>(1, w.n_in / std::max<i64>(1, w.n_out));
  p.tile_c = p.inner == 1 ? 1 : std::min(p.inner, std::max<i64>(64, budget / 8));
  if (p.inner <= budget && std::min(reach, w.n_in) * p.inner <= 4 * budget) p.tile_c = p.inner;
  const i64 fit = std::max<i64>(budget / p.tile_c, 2 * reach);
  p.tile_w = backward ? std::max<i64>(1, w.n_in)
                      : std::clamp<i64>((fit - std::min(fit, reach)) / step + 1, 1, std::max<i64>(1, columns));
  const bool whole_rows = !backward && kernels->whole_rows(p);
  if (whole_rows) {  // no lines, unless they would leave the L1 (with channels: the L2) cache before they are used
    p.tile_c = p.inner;
    const i64 row = i64(p.inner > 1 ? 128 : p.lift == Lift::none ? 16 : 4) << 10;
    p.tile_w = std::clamp<i64>(row / size_of(p.in) / p.inner / step, 1, std::max<i64>(1, columns));
  }
  if (!backward && columns > p.tile_w) p.tile_w = ceil_div(columns, ceil_div(columns, p.tile_w));

  // Rows are cut only where there is too little else to share out; each cut merges a window's overlap twice.
  const i64 others = outer * planes * ceil_div(p.inner, p.tile_c) * (backward ? 1 : ceil_div(columns, p.tile_w));
  const i64 wanted = 16;
  i64 blocks = others >= wanted ? 1 : std::min(rows, ceil_div(wanted, std::max<i64>(1, others)));
  const i64 window_rows = (h.kernel - 1) * h.dilation + 1;
  if (!backward && blocks > 1) blocks = std::min(blocks, std::max<i64>(1, h.n_in / (2 * window_rows)));
  p.rows_block = std::max<i64>(1, ceil_div(std::max<i64>(rows, 1), std::max<i64>(1, blocks)));
  tasks = others * ceil_div(rows, p.rows_block);

  // Rows that fill few vectors: several planes at once, if they and their results fit the L2 cache; those of a fused
  // kernel only if it takes longer than putting them side by side.
  const i64 lane = std::max<i64>(4, acc), group = 64 / lane;
  const i64 plane = d.n_in * h.n_in * w.n_in + d.n_out * h.n_out * w.n_out;
  const i64 narrow = !whole_rows ? 48 : w.kernel == 2 ? 8 : 16;
  const bool small = p.inner == 1 && w.n_in < narrow && group * plane * lane <= (i64(192) << 10);
  if (!backward && small && p.lift < Lift::over_power && p.n_outer && p.outer[p.n_outer - 1] >= group) {
    p.group = group;
    p.tile_w = w.n_out, p.rows_block = h.n_out;
    tasks = outer / p.outer[p.n_outer - 1] * (p.outer[p.n_outer - 1] / group);
  }
  p.planes = kernels->planes(p, backward);
  if (p.planes) p.group = 0, tasks = outer * p.planes;
  scratch = kernels->scratch_bytes(p, backward);
}

void Recipe::prepare(const Masking& masking) {
  prepare();
  if (!tasks) return;
  masked = std::make_shared<Masked>(*this, masking);
  tasks = masked->tasks, scratch = masked->scratch;
}

void Recipe::run(const Buffers& buffers) const {
  if (!tasks) return;
  ask_for_large_pages(buffers.y, written * size_of(plan.out));
  if (!backward && buffers.code) ask_for_large_pages(buffers.code, written * size_of(type_of(plan.code)));
  struct Context {
    const Recipe* recipe;
    const Buffers* buffers;
  } context{this, &buffers};
  parallel_ranges(
      tasks, threads(),
      [](void* p, i64 begin, i64 end, int) {
        const Context& c = *static_cast<Context*>(p);
        const Recipe& r = *c.recipe;
        char* memory = kept_scratch.get(r.scratch);
        if (r.masked)
          r.masked->run(*c.buffers, begin, end, memory);
        else
          (r.backward ? r.kernels->select_backward : r.kernels->forward)(r.plan, *c.buffers, begin, end, memory);
        kept_scratch.trim();
      },
      &context);
}

}  // namespace anypool
