// Small planes, several at once: their elements are put side by side, which makes them the inner elements of a
// channels-last array, and the engine runs on that. A row of 7 fills no vector; 16 planes do, whatever their size.
#pragma once
#include "engine.hpp"
#include "transpose.hpp"

namespace anypool {
namespace {

class PlaneGroups {
  const Plan& p_;
  Plan inside_;
  Arena arena_;
  const i64 group_, n_in_, n_out_;
  char *x_, *y_, *code_, *row_;
  Engine engine_;  // on groups
  Engine single_;  // on the planes that are left over

 public:
  static void* operator new(size_t, char* at) { return at; }  // <new> would bring a symbol that all levels share
  static i64 elements(const Plan& p, bool in) {
    i64 n = 1;
    for (const Axis& a : p.axis) n *= in ? a.n_in : a.n_out;
    return n;
  }

  PlaneGroups(const Plan& plan, char* scratch)
      : p_(plan),
        inside_(inside(plan)),
        arena_{uintptr_t(scratch)},
        group_(plan.group),
        n_in_(elements(plan, true)),
        n_out_(elements(plan, false)),
        x_(arena_.take(group_ * n_in_ * size_of(inside_.in))),
        y_(arena_.take(group_ * n_out_ * size_of(inside_.out))),
        code_(arena_.take(plan.code == Code::none ? 0 : group_ * n_out_ * 8)),
        row_(arena_.take(group_ * higher(n_in_, n_out_) * 8)),
        engine_(inside_, kernel_of(inside_), scratch ? arena_.take(0) : nullptr),
        single_(plan, kernel_of(plan), scratch ? arena_.take(0) + engine_.scratch_bytes() + 64 : nullptr) {}
  i64 scratch_bytes() const { return arena_.used + engine_.scratch_bytes() + single_.scratch_bytes() + 256; }

  // A task is a group of planes along the last outer axis; the last task of each run also does what is left over.
  void run(const Buffers& buffers, i64 begin, i64 end) {
    const i64 last_axis = p_.outer[p_.n_outer - 1], groups = last_axis / group_;
    for (i64 task = begin; task < end; ++task) {
      const i64 first = task / groups * last_axis + task % groups * group_;
      run_group(buffers, first);
      const i64 left = task % groups == groups - 1 ? last_axis % group_ : 0;
      const i64 tasks_of_plane = single_.tasks_of_plane();
      single_.run(buffers, (first + group_) * tasks_of_plane, (first + group_ + left) * tasks_of_plane);
    }
  }

 private:
  // The plan of a group: a channels-last array of accumulators with `group` channels.
  static Plan inside(const Plan& p) {
    Plan q = p;
    const i64 width = size_of(p.acc);
    q.acc = width < 4 ? DType::i32 : p.acc;
    q.in = q.acc;
    q.out = p.acc < DType::f16 && p.out >= DType::f16 ? DType::f64 : q.acc;
    q.code = p.code == Code::none || p.code == Code::index ? p.code : width == 8 ? Code::i64 : Code::i32;
    q.group = 0;
    q.n_outer = 0;
    q.inner = p.group;
    const auto strides = [&](i64* s, bool in) {
      s[3] = 1, s[2] = p.group;
      s[1] = s[2] * (in ? p.axis[2].n_in : p.axis[2].n_out);
      s[0] = s[1] * (in ? p.axis[1].n_in : p.axis[1].n_out);
    };
    strides(q.x_stride, true);
    strides(q.y_stride, false);
    strides(q.code_stride, false);
    q.tile_c = p.group;
    q.tile_w = p.axis[2].n_out;
    q.rows_block = p.axis[1].n_out;
    return q;
  }

  // f(offset of the row in the plane, rows so far, elements) for each contiguous row of a plane.
  template <class F>
  void each_row(const i64* stride, bool in, F&& f) const {
    const auto size = [&](int a) { return in ? p_.axis[a].n_in : p_.axis[a].n_out; };
    const i64 w = size(2), h = size(1), d = size(0);
    const bool rows_follow = stride[2] == 1 && (h == 1 || stride[1] == w) && (d == 1 || stride[0] == w * h);
    if (rows_follow) return f(0, 0, d * h * w);
    for (i64 i = 0; i < d; ++i)
      for (i64 j = 0; j < h; ++j) f(i * stride[0] + j * stride[1], (i * h + j) * w, w);
  }

  void gather(const char* from, i64 outer) {
    const i64 bytes = size_of(inside_.in), from_bytes = size_of(p_.in), plane = p_.x_outer[p_.n_outer - 1];
    const char* x = from + outer_offset(p_, p_.x_outer, outer) * from_bytes;
    each_row(p_.x_stride, true, [&](i64 at, i64 done, i64 n) {
      const char* src = x + at * from_bytes;
      i64 pitch = plane;
      if (p_.in != inside_.in || p_.x_stride[2] != 1) {
        const Convert copy = converter(p_.in, inside_.in);
        for (i64 g = 0; g < group_; ++g) copy(row_ + g * n * bytes, 1, src + g * plane * from_bytes, p_.x_stride[2], n);
        src = row_, pitch = n;
      }
      transpose(bytes, x_ + done * group_ * bytes, group_, src, pitch, group_, n);
    });
  }
  void scatter(char* to, DType to_type, const char* from, DType from_type, const i64* outer_stride, const i64* stride,
               i64 outer) {
    const i64 bytes = size_of(from_type), to_bytes = size_of(to_type), plane = outer_stride[p_.n_outer - 1];
    char* y = to + outer_offset(p_, outer_stride, outer) * to_bytes;
    each_row(stride, false, [&](i64 at, i64 done, i64 n) {
      const char* src = from + done * group_ * bytes;
      if (to_type == from_type && stride[2] == 1)
        return transpose(bytes, y + at * to_bytes, plane, src, group_, n, group_);
      const Convert copy = converter(from_type, to_type);
      transpose(bytes, row_, n, src, group_, n, group_);
      for (i64 g = 0; g < group_; ++g) copy(y + (at + g * plane) * to_bytes, stride[2], row_ + g * n * bytes, 1, n);
    });
  }

  void run_group(const Buffers& buffers, i64 outer) {
    gather(static_cast<const char*>(buffers.x), outer);
    const Buffers inside{x_, y_, code_, nullptr, nullptr};
    engine_.run(inside, 0, p_.axis[0].n_out);
    scatter(static_cast<char*>(buffers.y), p_.out, y_, inside_.out, p_.y_outer, p_.y_stride, outer);
    if (p_.code == Code::none) return;
    const DType lane = inside_.code == Code::i32 ? DType::i32 : DType::i64;
    scatter(static_cast<char*>(buffers.code), type_of(p_.code), code_, lane, p_.code_outer, p_.code_stride, outer);
  }
};

}  // namespace
}  // namespace anypool
