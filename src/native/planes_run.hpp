// Kernels that take whole planes, without the engine.
#pragma once
#include "scratch.hpp"

namespace anypool {
namespace {

// What runs a range of tasks, of which each plane has so many, and the scratch it takes; null: there is none.
struct PlanesRun {
  void (*run)(const Plan&, const Buffers&, i64 begin, i64 end, char* scratch) = nullptr;
  i64 (*scratch_bytes)(const Plan&) = nullptr;
  i64 tasks = 1;
  const char* way = "planes at once";
};

// Whether all that happens to elements, no channels innermost, is that the largest or the smallest are chosen.
inline bool selects_alone(const Plan& p) {
  return p.inner == 1 && !p.adjoint && p.lift == Lift::none && p.finish == Finish::none && p.code == Code::none &&
         p.out == p.in && (p.merge == Merge::max || p.merge == Merge::min);
}

// By an object that is made from a plan and scratch memory.
template <class Planes>
PlanesRun planes_run() {
  return {[](const Plan& p, const Buffers& b, i64 begin, i64 end, char* scratch) {
            Arena arena{uintptr_t(scratch)};
            Planes(p, arena).run(b, begin, end);
          },
          [](const Plan& p) {
            Arena arena{0};
            Planes planes(p, arena);
            return arena.used;
          }};
}

}  // namespace
}  // namespace anypool
