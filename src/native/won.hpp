// What inputs that lie side by side have won: the sum of what the outputs got that saw them, and whose winners they are.
#pragma once
#include "lanes.hpp"

namespace anypool {
namespace {

// An output that saw an input: how far from a given place its gradient and its code lie, and by which tap it saw.
struct SeenAt {
  i64 at;
  uint8_t code;
};

template <class T, class A>
class Won {
  using V = Vec<A, kLanes<A>>;
  using Codes = Vec<uint8_t, kLanes<A>>;
  using Memory = Lanes<T, A, kLanes<A>>;
  using Mask = LaneMask<A, kLanes<A>>;

 public:
  static constexpr int L = kLanes<A>;

  // Of Many vectors of inputs, which `seen` outputs saw from where `grad` and `code` point to on; sums begin with 0.0.
  template <int Many>
  static ANYPOOL_INLINE void vectors(const T* grad, const uint8_t* code, const SeenAt* seen, int n, T* to) {
    V sum[Many] = {};
    for (int s = 0; s < n; ++s) {
      const SeenAt one = seen[s];
      for (int m = 0; m < Many; ++m)
        sum[m] = Mask::where_equal(load<Codes>(code + m * L + one.at), one.code)
                     .add(sum[m], Memory::load(grad + m * L + one.at));
    }
    for (int m = 0; m < Many; ++m) Memory::store(to + m * L, sum[m]);
  }
  // Of `inputs` of them, at most as many as a vector has. inside(at) tells which of the outputs from there on exist.
  template <class F>
  static ANYPOOL_INLINE void part(const T* grad, const uint8_t* code, const SeenAt* seen, int n, T* to, i64 inputs,
                                  F&& inside) {
    V sum{};
    for (int s = 0; s < n; ++s) {
      const SeenAt one = seen[s];
      const Part exist(inside(one.at));
      if (exist.empty()) continue;
      sum = Mask::where_equal(load_bits<uint8_t, L>(code + one.at, exist), one.code)
                .add(sum, Memory::load_part(grad + one.at, exist, V{}));
    }
    Memory::store_part(to, sum, Part(Inside{0, inputs}));
  }
};

}  // namespace
}  // namespace anypool
