// Compiled once per instruction-set level, as kernels.cpp is: what takes whole planes.
#include "filled_planes.hpp"
#include "flat_planes.hpp"
#include "lane_planes.hpp"
#include "level.hpp"
#include "narrow_planes.hpp"
#include "whole_planes.hpp"
#include "wide_rows.hpp"

namespace anypool {
namespace {

PlanesRun planes_run_of(const Plan& p) {
  if (const PlanesRun run = whole_run_of(p); run.run) return run;
  if (const PlanesRun run = filled_run_of(p); run.run) return run;
  if (const PlanesRun run = flat_run_of(p); run.run) return run;
  if (const PlanesRun run = narrow_run_of(p); run.run) return run;
  if (const PlanesRun run = lane_run_of(p); run.run) return run;
  return wide_run_of(p);
}

i64 tasks(const Plan& p) {
  const PlanesRun found = planes_run_of(p);
  return found.run ? found.tasks : 0;
}
const char* way(const Plan& p) { return planes_run_of(p).way; }
i64 scratch_bytes(const Plan& p) { return planes_run_of(p).scratch_bytes(p); }
void run(const Plan& p, const Buffers& b, i64 begin, i64 end, char* scratch) {
  planes_run_of(p).run(p, b, begin, end, scratch);
}

}  // namespace

extern const PlaneKernels ANYPOOL_NAME(kPlaneKernels_, ANYPOOL_LEVEL);
const PlaneKernels ANYPOOL_NAME(kPlaneKernels_, ANYPOOL_LEVEL) = {tasks, way, scratch_bytes, run};

}  // namespace anypool
