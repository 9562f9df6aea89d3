#include "masked.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "geometry.hpp"
#include "masks.hpp"

namespace anypool {
namespace {

// Bytes of inputs: they should stay in the L1 cache from one pass to the next. But kernels for whole planes work out much
// for each call, and those that look at the mask themselves copy nothing.
constexpr i64 kUnitBytes = 24 << 10, kLargeUnitBytes = 128 << 10;
constexpr int kFewTies = 32;

i64 last_outer(const Plan& p) { return p.n_outer ? p.outer[p.n_outer - 1] : 1; }
i64 last_stride(const Plan& p, const i64* strides) { return p.n_outer ? strides[p.n_outer - 1] : 0; }

// Whether counts fit into bytes.
bool few_taps(const Plan& p) { return p.axis[0].kernel * p.axis[1].kernel * p.axis[2].kernel <= 255; }

// The inputs that outputs [first, last) see.
std::array<i64, 2> seen_by(const Axis& a, i64 first, i64 last) {
  i64 begin = a.n_in, end = 0;
  for (i64 o = first; o < last; ++o) {
    const Window w = window_of(a, o);
    if (w.lo == w.hi) continue;
    begin = std::min(begin, w.at(w.lo)), end = std::max(end, w.at(w.hi - 1) + 1);
  }
  return {std::min(begin, end), end};
}
// The most inputs that `step` outputs in a row see.
i64 most_seen(const Axis& a, i64 step) {
  i64 most = 0;
  for (i64 o = 0; o < a.n_out; o += step) {
    const auto [begin, end] = seen_by(a, o, std::min(o + step, a.n_out));
    most = std::max(most, end - begin);
  }
  return most;
}

// Axes from slow to fast, with the steps of several arrays; what lies without gaps in each of them is one axis. The last
// array is scratch: elements of a row lie side by side there.
template <size_t Arrays>
class Nest {
  using Steps = std::array<i64, Arrays>;
  struct Level {
    i64 n;
    Steps step;
  };
  Level levels_[5];
  int n_ = 0;

 public:
  void add(i64 n, const Steps& step) {
    if (n == 1) return;
    if (n_) {
      Level& slower = levels_[n_ - 1];
      bool follows = true;
      for (size_t a = 0; a < Arrays; ++a) follows &= slower.step[a] == n * step[a];
      if (follows) {
        slower = {slower.n * n, step};
        return;
      }
    }
    levels_[n_++] = {n, step};
  }
  // f(elements, steps, where they begin) for each row along the fastest axis.
  template <class F>
  void each(F&& f) const {
    const bool rows_lie = n_ && levels_[n_ - 1].step.back() == 1;
    const Level row = rows_lie ? levels_[n_ - 1] : Level{1, {}};
    const int outer = n_ - rows_lie;
    i64 rows = 1;
    for (int l = 0; l < outer; ++l) rows *= levels_[l].n;
    for (i64 r = 0; r < rows; ++r) {
      Steps at{};
      i64 rest = r;
      for (int l = outer - 1; l >= 0; --l) {
        for (size_t a = 0; a < Arrays; ++a) at[a] += rest % levels_[l].n * levels_[l].step[a];
        rest /= levels_[l].n;
      }
      f(row.n, row.step, at);
    }
  }
};

void dense(i64* strides, i64& plane, i64 d, i64 h, i64 w, i64 inner) {
  strides[3] = 1, strides[2] = inner, strides[1] = w * inner, strides[0] = h * strides[1];
  plane = d * strides[0];
}

}  // namespace

Masked::Masked(const Recipe& of, const Masking& masking)
    : p_(of.plan),
      masking_(masking),
      kernels_(*of.kernels),
      mask_kernels_(mask_kernels()),
      divides_(p_.finish == Finish::divide),
      selects_(p_.merge == Merge::max || p_.merge == Merge::min),
      fused_(!masking.largest && mask_kernels_.fused(p_)),
      short_counts_(!p_.planes && few_taps(p_)) {
  const Axis &d = p_.axis[0], &h = p_.axis[1], &w = p_.axis[2];
  const i64 unit = fused_ || p_.planes ? kLargeUnitBytes : kUnitBytes;
  const i64 row = w.n_in * p_.inner * size_of(p_.in), plane = d.n_in * h.n_in * row;
  const i64 outer = outer_size(p_);

  // Rows of a block see each other's inputs: blocks are so high that most are read once.
  const i64 reach = (h.kernel - 1) * h.dilation + 1, depth = most_seen(d, 1);
  const i64 step = std::max<i64>(1, h.kind == AxisKind::sliding ? h.stride : h.n_in / std::max<i64>(1, h.n_out));
  rows_ = std::max((unit / (depth * row) - reach) / step + 1, 4 * ceil_div(reach, step));
  if (plane <= unit || (rows_ >= h.n_out && d.n_out == 1)) {
    planes_ = std::clamp<i64>(std::min(unit / plane, ceil_div(outer, 16)), 1, last_outer(p_));
    if (planes_ > 16) planes_ -= planes_ % 16;  // as many as kernels take at once
    rows_ = h.n_out, in_rows_ = h.n_in, in_depths_ = d.n_in;
    tasks = outer / last_outer(p_) * ceil_div(last_outer(p_), planes_);
  } else {
    rows_ = ceil_div(h.n_out, ceil_div(h.n_out, std::min(rows_, h.n_out)));
    in_rows_ = most_seen(h, rows_), in_depths_ = depth;
    tasks = outer * d.n_out * ceil_div(h.n_out, rows_);
  }
  dense(x_, x_plane_, in_depths_, in_rows_, w.n_in, p_.inner);
  dense(y_, y_plane_, planes_ ? d.n_out : 1, rows_, w.n_out, p_.inner);

  if (divides_ && p_.divisor == Divisor::window)
    for (int a = 0; a < 3; ++a)
      for (i64 o = 0; o < p_.forward[a].n_out; ++o) {
        window_[a].push_back(divisor_of(p_.forward[a], o, Divisor::window));
        inside_[a].push_back(divisor_of(p_.forward[a], o, Divisor::valid));
        padded_ |= window_[a].back() != inside_[a].back();
      }

  if (fused_) zeros_.resize(size_t(w.n_in));
  full_ = passes(std::max<i64>(planes_, 1));
  if (!short_counts_ && !full_.counts.plan.planes && few_taps(p_)) {  // no kernel adds up whole planes of bytes
    short_counts_ = true;
    full_ = passes(std::max<i64>(planes_, 1));
  }
  if (planes_ && !fused_ && !masking.largest) {
    beside_ = p_;
    if (divides_) {
      beside_.finish = Finish::none, beside_.out = p_.acc;
      std::copy(y_, y_ + 4, beside_.y_stride);
      for (i64 a = p_.n_outer - 1, step = y_plane_; a >= 0; step *= p_.outer[a--]) beside_.y_outer[a] = step;
    }
    beside_tasks_ = mask_kernels_.tasks(beside_);
  }
  if (const i64 rest = planes_ ? last_outer(p_) % planes_ : 0) rest_ = passes(rest);
  scratch = i64(reinterpret_cast<uintptr_t>(memory(0).rest)) + std::max(rest_.values.scratch, rest_.counts.scratch);
}

std::string Masked::way() const {
  return (planes_ ? "planes, " : "blocks, ") +
         (fused_ ? "fused rows, masks beside" : full_.values.way() + (beside_tasks_ ? ", masks beside" : ""));
}

Masked::Passes Masked::passes(i64 planes) const {
  Passes made;
  Plan& v = made.values.plan;
  v = p_;
  v.group = v.planes = 0;  // chosen anew
  v.n_outer = 1, v.outer[0] = planes;
  std::copy(x_, x_ + 4, v.x_stride);
  v.x_outer[0] = x_plane_;
  Plan& c = made.counts.plan;
  c = v;
  c.in = DType::u8, c.acc = DType::i32, c.out = short_counts_ ? DType::u8 : DType::i32;
  c.merge = Merge::sum, c.lift = Lift::none;
  c.finish = short_counts_ ? Finish::divide : Finish::none;  // by 1: kernels for means of bytes are faster than sums
  c.divisor = Divisor::constant, c.divisor_value = 1;
  std::copy(y_, y_ + 4, c.y_stride);
  c.y_outer[0] = y_plane_;
  if (divides_) {
    v.finish = Finish::none, v.out = v.acc;
    std::copy(y_, y_ + 4, v.y_stride);
    v.y_outer[0] = y_plane_;
  } else {
    v.y_outer[0] = last_stride(p_, p_.y_outer);
  }
  for (Recipe* pass : {&made.values, &made.counts}) {
    pass->prepare();
    if (planes_) continue;
    pass->plan.planes = pass->plan.group = 0;
    pass->plan.rows_block = rows_;
    pass->scratch = kernels_.scratch_bytes(pass->plan, false);
  }
  return made;
}

Masked::Unit Masked::unit(i64 task) const {
  const Axis &d = p_.axis[0], &h = p_.axis[1];
  if (planes_) {
    const i64 last = last_outer(p_), units = ceil_div(last, planes_), first = task % units * planes_;
    return {task / units * last + first, std::min(planes_, last - first), 0, d.n_in, 0, h.n_in, 0, d.n_out, 0, h.n_out};
  }
  const i64 blocks = ceil_div(h.n_out, rows_), oh0 = task % blocks * rows_, od = task / blocks % d.n_out;
  const i64 oh1 = std::min(oh0 + rows_, h.n_out);
  const auto [d0, d1] = seen_by(d, od, od + 1);
  const auto [h0, h1] = seen_by(h, oh0, oh1);
  return {task / blocks / d.n_out, 1, d0, d1, h0, h1, od, od + 1, oh0, oh1};
}

Masked::Memory Masked::memory(uintptr_t base) const {
  const i64 planes = std::max<i64>(planes_, 1), x = planes * x_plane_, y = planes * y_plane_;
  const auto take = [&](i64 bytes) {
    const uintptr_t here = base;
    base += uintptr_t(round_up(bytes + 64, 64));
    return reinterpret_cast<char*>(here);
  };
  Memory m;
  m.x = take(fused_ || beside_tasks_ ? 0 : x * size_of(p_.in));
  m.valid = take(x);
  m.state = take(divides_ && !fused_ ? y * size_of(p_.acc) : 0);
  m.counts = take(y * (short_counts_ ? 1 : 4));
  m.columns = take(fused_ ? p_.axis[2].n_in + 2 * kBesideColumns : 0);
  m.padding = take(padded_ ? y_plane_ * size_of(p_.acc) : 0);
  m.values = take(full_.values.scratch);
  m.totals = take(full_.counts.scratch);
  m.rest = take(0);
  return m;
}

void Masked::run(const Buffers& buffers, i64 begin, i64 end, char* scratch) const {
  const Memory m = memory(reinterpret_cast<uintptr_t>(scratch));
  kernels_.open(full_.values.plan, m.values);
  kernels_.open(full_.counts.plan, m.totals);
  const Finishing job{p_.acc,           p_.out,         short_counts_, divides_, p_.divisor == Divisor::constant,
                      p_.divisor_value, p_.y_stride[3], buffers.empty};
  for (i64 task = begin; task < end; ++task) {
    const Unit u = unit(task);
    const i64 in_scratch = u.od0 * y_[0] + u.oh0 * y_[1];  // of the unit's first result, if the plane's were there
    char* y = static_cast<char*>(buffers.y) + outer_offset(p_, p_.y_outer, u.outer) * size_of(p_.out);
    if (padded_ && (!planes_ || task == begin))
      p_.acc == DType::f64 ? fill_padding(u, reinterpret_cast<double*>(m.padding))
                           : fill_padding(u, reinterpret_cast<float*>(m.padding));
    if (fused_) {
      merge_masked(buffers, job, u, m, y);
      if (!selects_) continue;
    } else if (beside_tasks_) {
      merge_beside(buffers, u, m);
    } else {
      leave_out(buffers, u, m, true);
      merge(u, &Passes::values, m, m.x, divides_ ? m.state - in_scratch * size_of(p_.acc) : y);
    }
    if (selects_ && settle_ties(buffers, u, m, y)) continue;
    if (fused_ || beside_tasks_) leave_out(buffers, u, m, false);
    merge(u, &Passes::counts, m, m.valid, m.counts - in_scratch * size_of(full_.counts.plan.out));
    finish(job, u, m, y);
  }
}

void Masked::leave_out(const Buffers& buffers, const Unit& u, const Memory& m, bool copied) const {
  Nest<3> nest;
  nest.add(u.planes, {last_stride(p_, p_.x_outer), last_stride(p_, p_.aux_outer), x_plane_});
  const i64 sizes[] = {u.d1 - u.d0, u.h1 - u.h0, p_.axis[2].n_in, p_.inner};
  for (int a = 0; a < 4; ++a) nest.add(sizes[a], {p_.x_stride[a], p_.aux_stride[a], x_[a]});
  const i64 bytes = size_of(p_.in);
  const auto first = [&](const i64* outer, const i64* stride) {
    return outer_offset(p_, outer, u.outer) + u.d0 * stride[0] + u.h0 * stride[1];
  };
  const char* x = static_cast<const char*>(buffers.x) + first(p_.x_outer, p_.x_stride) * bytes;
  const uint8_t* mask = static_cast<const uint8_t*>(buffers.aux) + first(p_.aux_outer, p_.aux_stride);
  nest.each([&](i64 n, const std::array<i64, 3>& step, const std::array<i64, 3>& at) {
    mask_kernels_.leave_out({n, bytes, step[0], step[1], masking_.none, masking_.largest},
                            {x + at[0] * bytes, mask + at[1], copied ? m.x + at[2] * bytes : nullptr,
                             reinterpret_cast<uint8_t*>(m.valid) + at[2]});
  });
}

void Masked::merge_masked(const Buffers& buffers, const Finishing& job, const Unit& u, const Memory& m, char* y) const {
  const i64 bytes = size_of(p_.in), *step = p_.y_stride;
  for (i64 plane = 0; plane < u.planes; ++plane)
    for (i64 od = u.od0; od < u.od1; ++od) {
      const i64 x = outer_offset(p_, p_.x_outer, u.outer + plane),
                mask = outer_offset(p_, p_.aux_outer, u.outer + plane),
                to = plane * last_stride(p_, p_.y_outer) + od * step[0] + u.oh0 * step[1];
      const char* padding = padded_ ? m.padding + (od - u.od0) * y_[0] * bytes : nullptr;
      mask_kernels_.block(
          p_, {static_cast<const char*>(buffers.x) + x * bytes, static_cast<const uint8_t*>(buffers.aux) + mask,
               y + to * bytes, step[1] * bytes, od, u.oh0, u.oh1, zeros_.data(), reinterpret_cast<uint8_t*>(m.columns),
               &job, padding, y_[1] * bytes});
    }
}

void Masked::merge_beside(const Buffers& buffers, const Unit& u, const Memory& m) const {
  Buffers b = buffers;
  if (divides_) b.y = m.state - u.outer * y_plane_ * size_of(p_.acc);
  mask_kernels_.planes(beside_, b, u.outer * beside_tasks_, (u.outer + u.planes) * beside_tasks_);
}

// x is that of a unit, y where the results of the first plane begin, all of them.
void Masked::merge(const Unit& u, Recipe Passes::* which, const Memory& m, const char* x, char* y) const {
  const Plan& p = (full_.*which).plan;
  Buffers b{};
  b.x = x - (u.d0 * x_[0] + u.h0 * x_[1]) * size_of(p.in);
  b.y = y;
  b.rows_alone = !planes_;
  char* opened = which == &Passes::values ? m.values : m.totals;
  if (u.planes < planes_) {
    const Recipe& rest = rest_.*which;
    return kernels_.forward(rest.plan, b, 0, rest.tasks, m.rest);
  }
  if (planes_) return kernels_.forward_opened(p, b, 0, (full_.*which).tasks, opened);
  const i64 chunks = ceil_div(p.inner, p.tile_c), tiles = ceil_div(p.axis[2].n_out, p.tile_w),
            blocks = ceil_div(p.axis[1].n_out, rows_);
  for (i64 chunk = 0; chunk < chunks; ++chunk) {
    const i64 task = ((chunk * p.axis[0].n_out + u.od0) * blocks + u.oh0 / rows_) * tiles;
    kernels_.forward_opened(p, b, task, task + tiles, opened);
  }
}

// A winner that is better than what was left out is one that counts. Where it is not, nothing may have counted: windows
// are looked into one by one, unless they are many. Returns whether all is said.
bool Masked::settle_ties(const Buffers& buffers, const Unit& u, const Memory& m, char* y) const {
  const i64 bytes = size_of(p_.out), sizes[] = {u.od1 - u.od0, u.oh1 - u.oh0, p_.axis[2].n_out, p_.inner};
  Nest<2> nest;
  nest.add(u.planes, {last_stride(p_, p_.y_outer), y_plane_});
  for (int a = 0; a < 4; ++a) nest.add(sizes[a], {p_.y_stride[a], y_[a]});
  y += (u.od0 * p_.y_stride[0] + u.oh0 * p_.y_stride[1]) * bytes;
  int ties = 0;
  nest.each([&](i64 n, const std::array<i64, 2>& step, const std::array<i64, 2>& at) {
    for (i64 i = 0; ties <= kFewTies; ++i, ++ties) {
      i = mask_kernels_.find(y + at[0] * bytes, bytes, step[0], i, n, masking_.tied);
      if (i == n) return;
      if (!any_counts(buffers, u, m, at[1] + i)) std::memcpy(y + (at[0] + i * step[0]) * bytes, &buffers.empty, bytes);
    }
  });
  return ties <= kFewTies;
}

// Whether any input counts of the window whose result has this place in a unit's scratch.
bool Masked::any_counts(const Buffers& buffers, const Unit& u, const Memory& m, i64 at) const {
  const i64 plane = at / y_plane_, d = at % y_plane_ / y_[0], h = at % y_[0] / y_[1], w = at % y_[1] / y_[2],
            c = at % y_[2];
  const Window wd = window_of(p_.axis[0], u.od0 + d), wh = window_of(p_.axis[1], u.oh0 + h),
               ww = window_of(p_.axis[2], w);
  const bool told = masking_.largest != 0;
  const i64* step = told ? x_ : p_.aux_stride;
  const uint8_t* valid =
      told ? reinterpret_cast<const uint8_t*>(m.valid) + plane * x_plane_ - u.d0 * x_[0] - u.h0 * x_[1]
           : static_cast<const uint8_t*>(buffers.aux) + outer_offset(p_, p_.aux_outer, u.outer + plane);
  for (i64 i = wd.lo; i < wd.hi; ++i)
    for (i64 j = wh.lo; j < wh.hi; ++j)
      for (i64 k = ww.lo; k < ww.hi; ++k)
        if (valid[wd.at(i) * step[0] + wh.at(j) * step[1] + ww.at(k) * step[2] + c * step[3]]) return true;
  return false;
}

void Masked::finish(Finishing job, const Unit& u, const Memory& m, char* y) const {
  const i64 out = size_of(p_.out), acc = size_of(p_.acc), count = short_counts_ ? 1 : 4;
  const i64 sizes[] = {u.od1 - u.od0, u.oh1 - u.oh0, p_.axis[2].n_out, p_.inner};
  Nest<3> nest;
  nest.add(u.planes, {last_stride(p_, p_.y_outer), padded_ ? 0 : y_plane_, y_plane_});
  for (int a = 0; a < 4; ++a) nest.add(sizes[a], {p_.y_stride[a], y_[a], y_[a]});
  y += (u.od0 * p_.y_stride[0] + u.oh0 * p_.y_stride[1]) * out;
  nest.each([&](i64 n, const std::array<i64, 3>& step, const std::array<i64, 3>& at) {
    job.y_step = step[0];
    mask_kernels_.finish(job, {n, m.state + at[2] * acc, m.counts + at[2] * count,
                               padded_ ? m.padding + at[1] * acc : nullptr, y + at[0] * out});
  });
}

// How many elements of each window are padding, for the results of one plane.
template <class A>
void Masked::fill_padding(const Unit& u, A* to) const {
  i64 known[2] = {-1, -1};
  const A* like = nullptr;
  for (i64 d = u.od0; d < u.od1; ++d)
    for (i64 h = u.oh0; h < u.oh1; ++h) {
      const i64 window = window_[0][d] * window_[1][h], inside = inside_[0][d] * inside_[1][h];
      A* row = to + (d - u.od0) * y_[0] + (h - u.oh0) * y_[1];
      if (window == known[0] && inside == known[1]) {
        std::copy(like, like + y_[1], row);
        continue;
      }
      known[0] = window, known[1] = inside, like = row;
      for (size_t o = 0; o < window_[2].size(); ++o)
        for (i64 c = 0; c < p_.inner; ++c) *row++ = A(window * window_[2][o] - inside * inside_[2][o]);
    }
}

}  // namespace anypool
