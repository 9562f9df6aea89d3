// The host side: which instruction-set level runs, how a plan is cut into tasks, where scratch comes from.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "plan.hpp"

namespace anypool {

std::vector<std::string> built_levels();
std::string chosen_level();
const KernelTable* chosen_kernels();  // null if none runs here

// Waking a second thread costs 5-10 us; below this many bytes a thread earns less than that.
constexpr i64 kBytesPerThread = 128 << 10;

class Masked;

// What an input is replaced by that does not count, as bits; a result that may be nothing but such; and the largest
// magnitude of a number where NaNs do not count, else 0.
struct Masking {
  uint64_t none, tied, largest;
};

// A plan with its blocking; made once, run many times, from any thread.
struct Recipe {
  Plan plan;
  const KernelTable* kernels = nullptr;
  bool backward = false;
  i64 tasks = 0;
  i64 scratch = 0;
  i64 bytes = 0;                         // read and written, for the choice of threads
  i64 written = 0;                       // elements of the result, if they lie without gaps
  std::vector<i64> tables;               // windows of `table` axes live here
  std::shared_ptr<const Masked> masked;  // where not all inputs count

  void prepare();
  // Instead: for inputs of which not all count. The strides of aux are then those of the mask; the recipe must not move.
  void prepare(const Masking& masking);
  int threads() const;
  std::string way() const;  // how, in words
  void run(const Buffers& buffers) const;
};

}  // namespace anypool
