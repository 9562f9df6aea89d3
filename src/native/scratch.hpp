// Scratch memory of one thread: handed out once, never freed. With base 0 it only measures.
#pragma once
#include "geometry.hpp"
#include "reductions.hpp"

namespace anypool {
namespace {

struct Arena {
  uintptr_t base;
  i64 used = 0;
  char* take(i64 bytes) {
    char* p = reinterpret_cast<char*>(base + uintptr_t(used));
    used += round_up(bytes + 64, 64);
    return p;
  }
  template <class T>
  T* take_array(i64 n) {
    return reinterpret_cast<T*>(take(n * i64(sizeof(T))));
  }
};

// The part of the output that one task makes, and the input columns it needs.
struct Tile {
  i64 outer = 0;           // which of the outer elements
  i64 c0 = 0, cb = 0;      // inner elements
  i64 od = 0;              // output position on d
  i64 ow0 = 0, ow1 = 0;    // output columns
  i64 w_lo = 0, w_hi = 0;  // input columns that exist
  i64 base = 0;            // the column at the start of a line; below 0 where padding comes first
  i64 columns() const { return w_hi - w_lo; }
  i64 outputs() const { return ow1 - ow0; }
};
// Where the elements of a tile begin in row (d, h) of an array with these strides, from column w on.
inline i64 tile_offset(const Plan& p, const Tile& t, const i64* outer, const i64* stride, i64 d, i64 h, i64 w) {
  return outer_offset(p, outer, t.outer) + d * stride[0] + h * stride[1] + w * stride[2] + t.c0 * stride[3];
}

}  // namespace
}  // namespace anypool
