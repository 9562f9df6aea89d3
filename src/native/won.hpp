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

  // What an output gave that saw the inputs by this tap: to all of them, or to those whose output exists.
  static ANYPOOL_INLINE void add(V& sum, const T* grad, const uint8_t* code, uint8_t tap) {
    sum = Mask::where_equal(load<Codes>(code), tap).add(sum, Memory::load(grad));
  }
  static ANYPOOL_INLINE void add(V& sum, const T* grad, const uint8_t* code, uint8_t tap, const Part& exist) {
    sum = Mask::where_equal(load_bits<uint8_t, L>(code, exist), tap).add(sum, Memory::load_part(grad, exist, V{}));
  }

  // Of Many vectors of inputs, which `seen` outputs saw from where `grad` and `code` point to on; sums begin with 0.0.
  template <int Many>
  static ANYPOOL_INLINE void vectors(const T* grad, const uint8_t* code, const SeenAt* seen, int n, T* to) {
    V sum[Many] = {};
    for (int s = 0; s < n; ++s) {
      const SeenAt one = seen[s];
      for (int m = 0; m < Many; ++m) add(sum[m], grad + m * L + one.at, code + m * L + one.at, one.code);
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
      if (!exist.empty()) add(sum, grad + one.at, code + one.at, one.code, exist);
    }
    Memory::store_part(to, sum, Part(Inside{0, inputs}));
  }
};

}  // namespace
}  // namespace anypool
