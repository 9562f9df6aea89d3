// Pooling of the inputs that count: by a mask, and without NaNs. A unit is a block of rows, or a few small planes. What
// does not count in it is replaced on the way into scratch memory, windows are merged there as ever, and a second pass,
// over bytes that say what counts, tells how many inputs each window has. A unit stays in a core's cache.
#pragma once
#include <string>
#include <vector>

#include "dispatch.hpp"

namespace anypool {

class Masked {
 public:
  // `of` has the mask's strides as those of aux; it must stay where it is for as long as this is used.
  Masked(const Recipe& of, const Masking& masking);

  i64 tasks = 0;  // units
  i64 scratch = 0;

  std::string way() const;
  void run(const Buffers& buffers, i64 begin, i64 end, char* scratch) const;

 private:
  struct Unit {  // input rows [h0, h1) of input depths [d0, d1) of some planes, and the outputs they give
    i64 outer, planes, d0, d1, h0, h1, od0, od1, oh0, oh1;
  };
  struct Passes {
    Recipe values, counts;
  };
  struct Memory {  // of a unit, in scratch
    char *x, *valid, *state, *counts, *columns, *padding;
    char *values, *totals, *rest;  // of the passes
  };

  Passes passes(i64 planes) const;
  Unit unit(i64 task) const;
  Memory memory(uintptr_t base) const;
  void leave_out(const Buffers& buffers, const Unit& u, const Memory& m, bool copied) const;
  void merge_masked(const Buffers& buffers, const Finishing& job, const Unit& u, const Memory& m, char* y) const;
  void merge_beside(const Buffers& buffers, const Unit& u, const Memory& m) const;
  void merge(const Unit& u, Recipe Passes::* which, const Memory& m, const char* x, char* y) const;
  bool settle_ties(const Buffers& buffers, const Unit& u, const Memory& m, char* y) const;
  bool any_counts(const Buffers& buffers, const Unit& u, const Memory& m, i64 at) const;
  void finish(Finishing job, const Unit& u, const Memory& m, char* y) const;
  template <class A>
  void fill_padding(const Unit& u, A* to) const;

  const Plan& p_;
  const Masking masking_;
  const KernelTable& kernels_;
  const MaskKernels& mask_kernels_;
  const bool divides_, selects_, fused_;
  bool short_counts_;                       // whether counts are bytes
  i64 planes_ = 0;                          // of a unit; 0: it is a block of rows of one
  i64 rows_, in_rows_, in_depths_;          // most of a unit: rows of results, and of inputs
  i64 x_plane_, x_[4], y_plane_, y_[4];     // strides in scratch: of planes, then of d, h, w and inner
  Passes full_, rest_;                      // of a whole unit, of the last ones
  Plan beside_;                             // of the values where they lie, the mask beside them
  i64 beside_tasks_ = 0;                    // of a plane; 0: there is no kernel for that
  std::vector<i64> window_[3], inside_[3];  // elements of each window along an axis: with the padding, and without
  std::vector<uint8_t> zeros_;              // the mask of a row that is missing
  bool padded_ = false;                     // whether some window's padding counts
};

}  // namespace anypool
