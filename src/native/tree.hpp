// One window: its taps merged in the order of summation, wherever their rows lie.
#pragma once
#include "merge.hpp"
#include "scratch.hpp"

namespace anypool {
namespace {

struct Shape {  // of a merge: rows x width elements
  i64 rows, width;
};
struct Target {
  Row row;
  i64 pitch;
  Row odd = {};  // set: columns are de-interleaved, the even ones into `row`
};

inline Row advance(const Kernel& k, Row r, i64 i) {
  return {r.a + i * k.a_bytes, k.b_bytes ? r.b + i * k.b_bytes : nullptr};
}
inline void set(Source& s, const char* a, const char* b, i64 add, i64 pitch) {
  s.a = a, s.b = b, s.add = add, s.pitch = pitch;
}
// Element i of a row of scratch, as a source.
inline void set_at(Source& s, const Kernel& k, const Row& r, i64 i, i64 add, i64 pitch = 0) {
  set(s, r.a + i * k.a_bytes, k.b_bytes ? r.b + i * k.b_bytes : nullptr, add, pitch);
}
inline Row take_row(Arena& arena, const Kernel& k, i64 n) {
  char* a = arena.take(n * k.a_bytes);
  return {a, k.b_bytes ? arena.take(n * k.b_bytes) : nullptr};
}

class TreeMerge {
  const Kernel& k_;
  Row left_[64], right_[64];
  Source identity_;

 public:
  // For windows of up to `taps` taps over rows of up to n elements.
  TreeMerge(const Kernel& kernel, Arena& arena, i64 taps, i64 n) : k_(kernel) {
    for (int depth = 0; (i64(kLeaf) << depth) < 2 * taps; ++depth) {
      left_[depth] = take_row(arena, k_, n);
      right_[depth] = take_row(arena, k_, n);
    }
    const Row id = take_row(arena, k_, n);
    if (arena.base) k_.identity(id, 0, n);
    identity_ = {id.a, id.b, 0, 0};
  }

  const Source& identity() const { return identity_; }

  void put(const Target& to, const Source* s, int n, Shape from) const {
    if (to.odd.a) return k_.merge_split(to.row, to.odd, s, n, from.width);
    k_.merge(to.row, to.pitch, s, n, from.rows, from.width);
  }

  // Merge taps [lo, lo + n); row_at(t, source) gives those inside [first, last), the others are absent.
  template <class F>
  void merge(const Target& to, i64 lo, i64 n, i64 first, i64 last, Shape from, F&& row_at, int depth = 0) const {
    while (n > 1) {  // a half that is absent adds nothing
      const i64 half = split_point(n);
      if (lo + half <= first)
        lo += half, n -= half;
      else if (lo + half >= last)
        n = half;
      else
        break;
    }
    if (n <= kLeaf) {
      Source s[kLeaf];
      for (i64 t = 0; t < n; ++t) {
        if (lo + t >= first && lo + t < last)
          row_at(lo + t, s[t]);
        else
          s[t] = identity_;
      }
      return put(to, s, int(n), from);
    }
    const i64 half = split_point(n);
    const Row l = left_[depth], r = right_[depth];
    merge({l, from.width}, lo, half, first, last, from, row_at, depth + 1);
    merge({r, from.width}, lo + half, n - half, first, last, from, row_at, depth + 1);
    Source s[2];
    set(s[0], l.a, l.b, 0, from.width);
    set(s[1], r.a, r.b, 0, from.width);
    put(to, s, 2, from);
  }
};

}  // namespace
}  // namespace anypool
