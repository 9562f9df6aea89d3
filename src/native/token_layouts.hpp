// Which rows each output sees, from what a caller gives to say so: `anypool.runs`, where it is right. What is wrong with it
// otherwise, that module says.
#pragma once
#include <vector>

#include "dlpack.hpp"
#include "tokens.hpp"

namespace anypool {

// In the order of `anypool.tokens.LAYOUTS`.
enum class Layout : int { mask, lengths, offsets, segment_ids, spans, whole };

// Memory for PartRuns.
struct FoundRuns {
  i64 outputs = 0;
  std::vector<i64> bounds, part, start, count;
  std::vector<i64> skipped;  // tokens that a prefix left out, if there is one
  PartRuns get() const { return {outputs, bounds.data(), part.data(), start.data(), count.data()}; }
};

struct LayoutOptions {
  bool padded_left;
  i64 segments;  // -1: as many as the ids need
  i64 prefix;    // -1: none
};

// Of x, (…, length, dim). False if what is given does not fit.
bool find_runs(Layout layout, const dlpack::Tensor* given, const dlpack::Tensor& x, const LayoutOptions& options,
               FoundRuns& runs);

}  // namespace anypool
