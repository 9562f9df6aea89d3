// The forward engine: windows of any kind over the canonical view (outer, d, h, w, inner), for any reduction.
//
// For every output row, input rows are merged over d and h into one padded row that stays in the L1 cache, and that row
// is merged over w. Each step is `merge_rows`; the steps differ only in where their rows lie. Adjoints run here too: a
// gradient of a sum is a sum over the transposed windows.
#pragma once
#include "geometry.hpp"
#include "rows.hpp"

namespace anypool {
namespace {

struct Arena {  // with base 0 it only measures
  uintptr_t base;
  i64 used = 0;
  char* take(i64 bytes) {
    char* p = reinterpret_cast<char*>(base + uintptr_t(used));
    used += round_up(bytes + 64, 64);
    return p;
  }
};

constexpr i64 kBlock = 1024;            // taps merged at once in a window longer than a tile
constexpr int kSlots = 8;               // rows that may be alive at once without a cache of rows
constexpr int kLevels = 124;            // doubling levels and recursion depth
constexpr i64 kCacheBytes = 384 << 10;  // what cached rows may take of the L2 cache
constexpr i64 kOffsetTable = 4096;

class Engine {
  struct Shape {  // of a merge: rows x width elements
    i64 rows, width;
  };

  const Plan& p_;
  const Kernel& k_;
  const Buffers buf_;
  Arena arena_;
  const bool pair_;
  const i64 in_bytes_, out_bytes_;

  // Decided once per call.
  bool direct_;                  // rows are merged where they lie in the input
  bool row_doubling_;            // h windows by doubling
  bool cache_rows_;              // loaded rows are kept for the next output row
  bool column_doubling_, tree_;  // w windows by doubling; one output at a time
  i64 cols_, cb_max_;            // columns and inner elements of a tile, at most
  i64 ring_;                     // cached rows
  int levels_h_ = 0, levels_w_ = 0;
  Row line_, phases_, out_, spare_[2];
  Row slot_[kSlots], load_[kSlots], tree_row_[2][kLevels];
  Row level_w_[kLevels];
  char *ring_base_, *level_h_base_, *aux_row_, *post_row_;
  Convert load_fn_, store_fn_;
  i64* ring_tag_;
  i64* level_h_tag_;
  double* divisor_w_;
  i64* offset_of_code_ = nullptr;
  Source identity_;
  i64 row_bytes_ = 0;
  int next_slot_ = 0, next_load_ = 0;
  int depth_d_;  // where in tree_row_ the rows for d begin

  // The current tile.
  i64 c0_, cb_, ow0_, ow1_, w_lo_, w_hi_, q_base_;  // q_base_: input column of line_[0]
  const char* x_;
  i64 od_ = 0;
  Window wd_{};

 public:
  Engine(const Plan& plan, const Kernel& kernel, const Buffers& buffers, char* scratch)
      : p_(plan),
        k_(kernel),
        buf_(buffers),
        arena_{uintptr_t(scratch)},
        pair_(kernel.b_bytes != 0),
        in_bytes_(size_of(plan.in)),
        out_bytes_(size_of(plan.out)) {
    load_fn_ = converter(p_.in, p_.acc);
    store_fn_ = converter(p_.acc, p_.out);
    decide();
    allocate();
    if (scratch) prepare();
  }
  i64 scratch_bytes() const { return arena_.used; }

  void run(i64 begin, i64 end) {
    const i64 tiles = ceil_div(p_.axis[2].n_out, p_.tile_w), blocks = ceil_div(p_.axis[1].n_out, p_.rows_block);
    const i64 chunks = ceil_div(p_.inner, p_.tile_c), depth = p_.axis[0].n_out;
    for (i64 task = begin; task < end; ++task) {
      i64 rest = task;
      const i64 tile = rest % tiles;
      rest /= tiles;
      const i64 block = rest % blocks;
      rest /= blocks;
      od_ = rest % depth;
      rest /= depth;
      const i64 chunk = rest % chunks;
      run_tile(rest / chunks, chunk, block * p_.rows_block, tile * p_.tile_w);
    }
  }

 private:
  // ---- set-up ------------------------------------------------------------------------------------------------------

  void decide() {
    const Axis &h = p_.axis[1], &w = p_.axis[2];
    cb_max_ = lower(p_.tile_c, p_.inner);
    direct_ = p_.lift == Lift::none && in_bytes_ == k_.a_bytes && p_.in == p_.acc &&
              (p_.inner == 1 ? p_.x_stride[2] == 1 || w.n_in == 1 : p_.x_stride[3] == 1);
    const auto doubles = [](const Axis& a) {
      i64 log = a.kernel > 1 ? 64 - __builtin_clzll(uint64_t(a.kernel)) : 1;
      return a.kind == AxisKind::sliding && a.kernel > 6 && a.n_out > 1 && a.stride * (log + 1) < a.kernel;
    };
    column_doubling_ = doubles(w);
    tree_ = !column_doubling_ && (w.kind != AxisKind::sliding || (p_.inner == 1 && (w.n_out < 8 || w.stride > 8)));
    cols_ = tile_columns();
    const i64 reach = (h.kernel - 1) * h.dilation + 1;
    row_bytes_ =
        round_up(cols_ * cb_max_ * k_.a_bytes + 64, 64) + (pair_ ? round_up(cols_ * cb_max_ * k_.b_bytes + 64, 64) : 0);
    int levels = 0;
    while ((i64(2) << levels) <= h.kernel) ++levels;
    row_doubling_ = doubles(h) && (levels + 1) * reach * row_bytes_ <= 4 * kCacheBytes;
    levels_h_ = row_doubling_ ? levels : 0;
    if (column_doubling_)
      while ((i64(2) << levels_w_) <= w.kernel) ++levels_w_;
    const bool overlap = h.kind == AxisKind::transposed || h.stride < reach;
    cache_rows_ =
        row_doubling_ || (overlap && reach * row_bytes_ <= kCacheBytes && (!direct_ || p_.axis[0].kernel > 1));
    ring_ = cache_rows_ ? reach : 0;
  }

  // Columns of the padded row that a tile of tile_w outputs needs; a window too long for that is merged in blocks.
  i64 tile_columns() const {
    const Axis& w = p_.axis[2];
    const i64 reach = (w.kernel - 1) * w.dilation + 1;
    if (blocked()) return kBlock * w.dilation;
    if (w.kind == AxisKind::transposed) return (p_.tile_w - 1) / w.stride + 2 * (w.kernel * w.dilation / w.stride + 2);
    if (w.kind == AxisKind::sliding) return (lower(p_.tile_w, w.n_out) - 1) * w.stride + reach;
    i64 most = 0;
    for (i64 o = 0; o < w.n_out; o += p_.tile_w) {
      const i64 last = lower(o + p_.tile_w, w.n_out) - 1;
      most = higher(most, w.first[last] + (w.count[last] - 1) * w.dilation + 1 - w.first[o]);
    }
    return most;
  }
  bool blocked() const { return tree_ && p_.axis[2].kind != AxisKind::transposed && p_.axis[2].kernel > 4 * kBlock; }

  Row take_row(i64 n) {
    Row r{arena_.take(n * k_.a_bytes), nullptr};
    if (pair_) r.b = arena_.take(n * k_.b_bytes);
    return r;
  }

  void allocate() {
    const i64 n = cols_ * cb_max_;
    const i64 n_out = higher(lower(p_.tile_w, p_.axis[2].n_out) * cb_max_, n);
    line_ = take_row(n);
    phases_ = take_row(n + 2 * p_.axis[2].stride * 16);
    out_ = take_row(n_out);
    for (auto& r : spare_) r = take_row(n_out);
    Row id = take_row(n);
    identity_ = {id.a, id.b, 0, 0};
    for (auto& r : slot_) r = take_row(n);
    for (auto& r : load_) r = take_row(n);
    int depth[3];
    for (int a = 0; a < 3; ++a) {
      depth[a] = 1;
      while ((i64(1) << depth[a]) < p_.axis[a].kernel) ++depth[a];
    }
    // Rows over d are merged while a merge over h is under way; the one over w comes after both.
    depth_d_ = depth[1] > depth[2] ? depth[1] : depth[2];
    for (auto& side : tree_row_)
      for (int d = 0; d < depth_d_ + depth[0]; ++d) side[d] = take_row(n_out);
    for (int l = 0; l <= levels_w_; ++l) level_w_[l] = l && column_doubling_ ? take_row(n) : line_;
    ring_base_ = arena_.take(ring_ * row_bytes_);
    ring_tag_ = reinterpret_cast<i64*>(arena_.take(ring_ * sizeof(i64)));
    level_h_base_ = arena_.take(levels_h_ * ring_ * row_bytes_);
    level_h_tag_ = reinterpret_cast<i64*>(arena_.take(levels_h_ * ring_ * sizeof(i64)));
    aux_row_ = arena_.take(n * sizeof(double));
    post_row_ = arena_.take(n_out * sizeof(double));
    divisor_w_ = reinterpret_cast<double*>(arena_.take(n_out * sizeof(double)));
    const i64 taps = p_.axis[0].kernel * p_.axis[1].kernel * p_.axis[2].kernel;
    if (p_.code == Code::index && taps <= kOffsetTable)
      offset_of_code_ = reinterpret_cast<i64*>(arena_.take(taps * sizeof(i64)));
  }

  void prepare() {
    k_.identity({const_cast<char*>(identity_.a), const_cast<char*>(identity_.b)}, 0, cols_ * cb_max_);
    if (offset_of_code_) {
      const i64 taps = p_.axis[0].kernel * p_.axis[1].kernel * p_.axis[2].kernel;
      for (i64 c = 0; c < taps; ++c) offset_of_code_[c] = offset_of(c);
    }
  }

  // ---- one tile ----------------------------------------------------------------------------------------------------

  static i64 outer_offset(const Plan& p, const i64* strides, i64 outer) {
    i64 offset = 0;
    for (int a = p.n_outer - 1; a >= 0; --a) {
      offset += (outer % p.outer[a]) * strides[a];
      outer /= p.outer[a];
    }
    return offset;
  }

  void run_tile(i64 outer, i64 chunk, i64 oh0, i64 ow0) {
    const Axis& w = p_.axis[2];
    c0_ = chunk * p_.tile_c;
    cb_ = lower(p_.tile_c, p_.inner - c0_);
    ow0_ = ow0;
    ow1_ = lower(ow0 + p_.tile_w, w.n_out);
    const i64 x_at = outer_offset(p_, p_.x_outer, outer) + c0_ * p_.x_stride[3];
    x_ = static_cast<const char*>(buf_.x) + x_at * in_bytes_;
    outer_ = outer;
    wd_ = window_of(p_.axis[0], od_);
    if (!blocked()) place_tile();
    if (p_.finish == Finish::divide && p_.divisor != Divisor::constant)
      for (i64 o = ow0_; o < ow1_; ++o) divisor_w_[o - ow0_] = double(divisor_of(p_.forward[2], o, p_.divisor));
    const i64 oh1 = lower(oh0 + p_.rows_block, p_.axis[1].n_out);
    for (i64 oh = oh0; oh < oh1; ++oh) {
      if (tree_)
        each_window(oh);
      else {
        vertical(oh);
        horizontal(oh);
      }
      if (!stored_) finish_and_store(oh);
    }
  }
  i64 outer_ = 0;
  bool stored_ = false;

  // The input columns this tile sees; forget rows cached for other columns.
  void place_columns(i64 lo, i64 hi, i64 base) {
    w_lo_ = lo, w_hi_ = hi, q_base_ = base;
    for (i64 i = 0; i < ring_; ++i) ring_tag_[i] = -1;
    for (i64 i = 0; i < levels_h_ * ring_; ++i) level_h_tag_[i] = INT64_MIN;
  }
  void place_tile() {
    const Axis& w = p_.axis[2];
    if (w.kind == AxisKind::sliding) {
      const i64 start = ow0_ * w.stride - w.pad, end = (ow1_ - 1) * w.stride - w.pad + (w.kernel - 1) * w.dilation + 1;
      place_columns(lower(higher(start, 0), w.n_in), higher(lower(end, w.n_in), 0), start);
      k_.identity(line_, 0, (w_lo_ - start) * cb_);
      k_.identity(line_, (w_hi_ - start) * cb_, (end - start) * cb_);
    } else {
      i64 lo = w.n_in, hi = 0;
      for (i64 o = ow0_; o < ow1_; ++o) {
        const Window v = window_of(w, o);
        if (v.lo == v.hi) continue;
        lo = lower(lo, v.at(v.lo));
        hi = higher(hi, v.at(v.hi - 1) + 1);
      }
      place_columns(lo, higher(lo, hi), lo);
    }
  }

  // ---- rows: d and h -----------------------------------------------------------------------------------------------

  // Rows of the input as merges over d and h see them: in one piece where they lie so, else column by column.
  Shape shape() const {
    const i64 cols = w_hi_ - w_lo_;
    if (!direct_ || p_.inner == 1 || (cb_ == p_.inner && p_.x_stride[2] == p_.inner)) return {1, cols * cb_};
    return {cols, cb_};
  }

  // The elements (d, h, w_lo.. w_hi, c0..) as a row of A, lifted.
  Source input_row(i64 d, i64 h, Row* into, i64 add) {
    const i64 at = d * p_.x_stride[0] + h * p_.x_stride[1] + w_lo_ * p_.x_stride[2];
    const char* src = x_ + at * in_bytes_;
    if (direct_) return {src, nullptr, add, p_.x_stride[2]};
    if (!into) into = &load_[next_load_++ % kSlots];
    const i64 cols = w_hi_ - w_lo_;
    copy_columns(load_fn_, into->a, k_.a_bytes, cb_, 1, src, in_bytes_, p_.x_stride[2], p_.x_stride[3], cols);
    if (p_.lift != Lift::none) lift(*into, d, h, cols * cb_);
    return {into->a, k_.coded ? nullptr : into->b, add, cb_};
  }
  // cols x cb_ elements, as few rows as the strides allow.
  void copy_columns(Convert copy, char* dst, i64 dst_bytes, i64 dst_w, i64 dst_c, const char* src, i64 src_bytes,
                    i64 src_w, i64 src_c, i64 cols) const {
    if (p_.inner == 1) return copy(dst, dst_w, src, src_w, cols);
    if (dst_c == 1 && src_c == 1 && dst_w == cb_ && src_w == cb_) return copy(dst, 1, src, 1, cols * cb_);
    for (i64 j = 0; j < cols; ++j) copy(dst + j * dst_w * dst_bytes, dst_c, src + j * src_w * src_bytes, src_c, cb_);
  }

  void lift(Row row, i64 d, i64 h, i64 n) {
    if (k_.b_bytes && !k_.coded)
      return lift_scaled(reinterpret_cast<double*>(row.a), reinterpret_cast<double*>(row.b), d, h, n);
    const auto on = [&](auto* v) {
      p_.lift == Lift::over_divisor ? lift_over_divisor(v, d, h) : lift_powers(v, n, p_.lift, p_.p);
    };
    p_.acc == DType::f32 ? on(reinterpret_cast<float*>(row.a)) : on(reinterpret_cast<double*>(row.a));
  }
  void lift_scaled(double* v, double* exponent, i64 d, i64 h, i64 n) {
    if (p_.lift == Lift::exp) {
      for (i64 i = 0; i < n; ++i) scale(v[i], exponent[i], 1.0, v[i] * (p_.p * kLog2E));
      return;
    }
    const double* y = neighbour_row(buf_.aux, p_.in, p_.aux_outer, p_.aux_stride, d, h, w_lo_, w_hi_ - w_lo_, aux_row_);
    for (i64 i = 0; i < n; ++i) {
      const double g = v[i], t = p_.lift == Lift::over_exp ? -p_.p * kLog2E * y[i] : (1 - p_.p) * log2(fabs(y[i]));
      if (g == 0 || (y[i] == 0 && p_.lift == Lift::over_power))
        v[i] = 0, exponent[i] = ScaledSum::kZeroExponent;
      else
        scale(v[i], exponent[i], g, t);
    }
  }
  template <class T>
  void lift_over_divisor(T* v, i64 d, i64 h) {
    double dh = p_.divisor_value;
    if (p_.divisor != Divisor::constant) dh = rows_divisor(d, h);
    for (i64 j = w_lo_; j < w_hi_; ++j) {
      const T by = T(p_.divisor == Divisor::constant ? dh : dh * double(divisor_of(p_.forward[2], j, p_.divisor)));
      for (i64 c = 0; c < cb_; ++c) *v++ /= by;
    }
  }
  double rows_divisor(i64 d, i64 h) const {
    return double(divisor_of(p_.forward[0], d, p_.divisor)) * double(divisor_of(p_.forward[1], h, p_.divisor));
  }
  // A row of an array that lies beside the input or the output, as doubles.
  const double* neighbour_row(const void* base, DType type, const i64* outer, const i64* stride, i64 d, i64 h, i64 w,
                              i64 cols, char* into) {
    double* out = reinterpret_cast<double*>(into);
    const i64 at = outer_offset(p_, outer, outer_) + d * stride[0] + h * stride[1] + w * stride[2] + c0_ * stride[3];
    copy_columns(converter(type, DType::f64), into, 8, cb_, 1, static_cast<const char*>(base) + at * size_of(type),
                 size_of(type), stride[2], stride[3], cols);
    return out;
  }

  // Merge taps [lo, lo + n) into dst; row_at(t) gives the source of a tap that lies inside [first, last).
  template <class F>
  void merge_taps(Row dst, i64 dst_pitch, i64 lo, i64 n, i64 first, i64 last, F&& row_at, Shape from, int depth = 0) {
    while (n > 1) {  // a half that lies in the padding adds nothing
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
      for (i64 t = 0; t < n; ++t) s[t] = lo + t >= first && lo + t < last ? row_at(lo + t) : identity_;
      return k_.merge(dst, dst_pitch, s, int(n), from.rows, from.width);
    }
    const i64 half = split_point(n);
    Row l = tree_row_[0][depth], r = tree_row_[1][depth];
    merge_taps(l, from.width, lo, half, first, last, row_at, from, depth + 1);
    merge_taps(r, from.width, lo + half, n - half, first, last, row_at, from, depth + 1);
    Source s[2] = {{l.a, l.b, 0, from.width}, {r.a, r.b, 0, from.width}};
    k_.merge(dst, dst_pitch, s, 2, from.rows, from.width);
  }

  Row ring_row(char* base, i64 slot) const {
    char* a = base + slot * row_bytes_;
    return {a, pair_ ? a + round_up(cols_ * cb_max_ * k_.a_bytes + 64, 64) : nullptr};
  }

  // Input row h merged over the d window.
  Source plane_row(i64 h) {
    const i64 unit = p_.axis[1].kernel * p_.axis[2].kernel;
    Row* into = nullptr;
    Row cached;
    if (cache_rows_) {
      const i64 slot = h % ring_;
      cached = ring_row(ring_base_, slot);
      into = &cached;
      if (wd_.hi - wd_.lo == 1) {
        if (direct_ || ring_tag_[slot] != h) {
          ring_tag_[slot] = h;
          return input_row(wd_.at(wd_.lo), h, into, wd_.lo * unit);
        }
        return {cached.a, k_.coded ? nullptr : cached.b, wd_.lo * unit, cb_};
      }
      if (ring_tag_[slot] == h) return {cached.a, cached.b, 0, cb_};
      ring_tag_[slot] = h;
    } else {
      into = &slot_[next_slot_++ % kSlots];
      if (wd_.hi - wd_.lo == 1) return input_row(wd_.at(wd_.lo), h, into, wd_.lo * unit);
    }
    merge_taps(
        *into, shape().width, 0, wd_.taps, wd_.lo, wd_.hi,
        [&](i64 t) { return input_row(wd_.at(t), h, nullptr, t * unit); }, shape(), depth_d_);
    return {into->a, into->b, 0, cb_};
  }
  // The merge of 2^level rows from row `h` on, `dilation` apart; rows in the padding add nothing.
  Source doubled_row(int level, i64 h) {
    const Axis& a = p_.axis[1];
    const i64 unit = a.kernel > 0 ? p_.axis[2].kernel : 0;
    if (level == 0) {
      if (h < 0 || h >= a.n_in) return {};
      return plane_row(h);
    }
    const i64 slot = (level - 1) * ring_ + floor_mod(h, ring_);
    Row row = ring_row(level_h_base_, slot);
    if (level_h_tag_[slot] == h) return {row.a, row.b, 0, cb_};
    const i64 half = i64(1) << (level - 1);
    Source s[2] = {doubled_row(level - 1, h), doubled_row(level - 1, h + half * a.dilation)};
    s[1].add += half * unit;
    if (!s[0].a || !s[1].a) return s[0].a ? s[0] : s[1];
    level_h_tag_[slot] = h;
    k_.merge(row, shape().width, s, 2, shape().rows, shape().width);
    return {row.a, row.b, 0, cb_};
  }

  void vertical_doubling(Row dst, i64 start) {
    const Axis& a = p_.axis[1];
    const i64 unit = p_.axis[2].kernel;
    const Shape shape = this->shape();
    Source sum{};
    i64 taps = a.kernel;
    int spare = 0;
    for (int level = 0; taps; ++level) {  // from the last, smallest piece to the first
      if (!(taps >> level & 1)) continue;
      taps -= i64(1) << level;
      Source piece = doubled_row(level, start + taps * a.dilation);
      if (!piece.a) continue;
      piece.add += taps * unit;
      if (!sum.a) {
        sum = piece;
        continue;
      }
      Source s[2] = {piece, sum};
      Row to = spare_[spare ^= 1];
      k_.merge(to, shape.width, s, 2, shape.rows, shape.width);
      sum = {to.a, to.b, 0, cb_};
    }
    if (!sum.a) return k_.identity(dst, 0, shape.rows * shape.width);
    k_.merge(dst, shape.width, &sum, 1, shape.rows, shape.width);
  }

  // Rows of output row oh, merged over d and h, into dst (w_hi - w_lo columns).
  void merge_h(Row dst, i64 oh) {
    const Axis& a = p_.axis[1];
    const Window wh = window_of(a, oh);
    if (wh.lo == wh.hi || wd_.lo == wd_.hi) return k_.identity(dst, 0, (w_hi_ - w_lo_) * cb_);
    if (row_doubling_) return vertical_doubling(dst, wh.start);
    const i64 unit = p_.axis[2].kernel;
    merge_taps(
        dst, shape().width, 0, wh.taps, wh.lo, wh.hi,
        [&](i64 t) {
          Source s = plane_row(wh.at(t));
          s.add += t * unit;
          return s;
        },
        shape());
  }
  void vertical(i64 oh) { merge_h(at(line_, (w_lo_ - q_base_) * cb_), oh); }

  Row at(Row r, i64 i) const { return {r.a + i * k_.a_bytes, pair_ ? r.b + i * k_.b_bytes : nullptr}; }
  Source source(Row r, i64 i, i64 add, i64 pitch = 0) const {
    r = at(r, i);
    return {r.a, r.b, add, pitch};
  }

  // ---- columns: w ----------------------------------------------------------------------------------------------------

  // Where the merged row may go: straight into the output if nothing is left to be done with it.
  Row target(i64 oh, i64& pitch) {
    stored_ = !pair_ && p_.finish == Finish::none && p_.out == p_.acc && !any_transposed() &&
              (p_.inner == 1 ? p_.y_stride[2] == 1 || ow1_ - ow0_ == 1 : p_.y_stride[3] == 1);
    if (!stored_) {
      pitch = cb_;
      return out_;
    }
    pitch = p_.inner == 1 ? 1 : p_.y_stride[2];
    return {static_cast<char*>(buf_.y) + y_offset(oh) * k_.a_bytes, nullptr};
  }
  i64 y_offset(i64 oh) const {
    return outer_offset(p_, p_.y_outer, outer_) + od_ * p_.y_stride[0] + oh * p_.y_stride[1] + ow0_ * p_.y_stride[2] +
           c0_ * p_.y_stride[3];
  }
  bool any_transposed() const {
    for (const Axis& a : p_.axis)
      if (a.kind == AxisKind::transposed) return true;
    return false;
  }

  void horizontal(i64 oh) {
    const Axis& w = p_.axis[2];
    const i64 n = ow1_ - ow0_;
    i64 pitch;
    Row dst = target(oh, pitch);
    if (column_doubling_) return horizontal_doubling(dst, pitch);
    Shape shape{n, cb_};
    if (p_.inner == 1 && w.stride > 1) {
      const i64 span = (n - 1) * w.stride + (w.kernel - 1) * w.dilation + 1, phase_pitch = span / w.stride + 16;
      split_phases(k_.a_bytes, phases_.a, phase_pitch, line_.a, span, w.stride);
      if (pair_) split_phases(k_.b_bytes, phases_.b, phase_pitch, line_.b, span, w.stride);
      merge_taps(dst, n, 0, w.kernel, 0, w.kernel,
                 [&](i64 t) {
                   const i64 q = t * w.dilation;
                   return source(phases_, q % w.stride * phase_pitch + q / w.stride, t);
                 },
                 {1, n});
      return;
    }
    if (w.stride == 1 && pitch == cb_) shape = {1, n * cb_};
    merge_taps(
        dst, shape.rows == 1 ? shape.width : pitch, 0, w.kernel, 0, w.kernel,
        [&](i64 t) { return source(line_, t * w.dilation * cb_, t, w.stride * cb_); }, shape);
  }

  void horizontal_doubling(Row dst, i64 pitch) {
    const Axis& w = p_.axis[2];
    const i64 n = ow1_ - ow0_, span = (n - 1) * w.stride + (w.kernel - 1) * w.dilation + 1;
    for (int l = 1; l <= levels_w_; ++l) {
      const i64 half = i64(1) << (l - 1), width = (span - (2 * half - 1) * w.dilation) * cb_;
      Source s[2] = {source(level_w_[l - 1], 0, 0), source(level_w_[l - 1], half * w.dilation * cb_, half)};
      k_.merge(level_w_[l], 0, s, 2, 1, width);
    }
    i64 taps = w.kernel;
    Source sum{};
    int spare = 0;
    for (int level = 0; taps; ++level) {
      if (!(taps >> level & 1)) continue;
      taps -= i64(1) << level;
      const i64 pitch_in = w.stride * cb_;
      Source s[2] = {source(level_w_[level], taps * w.dilation * cb_, taps, pitch_in), sum};
      const bool first = !sum.a;
      if (taps == 0) {  // the outputs proper; before, all columns they are picked from
        const bool whole = w.stride == 1 && pitch == cb_;
        k_.merge(dst, pitch, s, first ? 1 : 2, whole ? 1 : n, whole ? n * cb_ : cb_);
      } else if (first) {
        sum = s[0];
      } else {
        Row to = spare_[spare ^= 1];
        k_.merge(to, 0, s, 2, 1, ((n - 1) * w.stride + 1) * cb_);
        sum = {to.a, to.b, 0, pitch_in};
      }
    }
  }

  // Windows that differ from output to output, or that lie far apart: one at a time.
  void each_window(i64 oh) {
    const Axis& w = p_.axis[2];
    stored_ = false;
    if (!blocked()) vertical(oh);
    for (i64 o = ow0_; o < ow1_; ++o) {
      const Window v = window_of(w, o);
      Row dst = at(out_, (o - ow0_) * cb_);
      if (v.lo == v.hi) {
        k_.identity(dst, 0, cb_);
      } else if (blocked()) {
        merge_blocks(dst, oh, v, 0, v.taps, 0);
      } else {
        merge_columns(dst, v, 0, v.taps, v.lo, v.hi);
      }
    }
  }
  void merge_blocks(Row dst, i64 oh, const Window& v, i64 lo, i64 n, int depth) {
    if (n <= kBlock) {
      const i64 first = higher(lo, v.lo), last = lower(lo + n, v.hi);
      if (first >= last) return k_.identity(dst, 0, cb_);
      place_columns(v.at(first), v.at(last - 1) + 1, v.at(first));
      merge_h(line_, oh);
      return merge_columns(dst, v, lo, n, first, last);
    }
    const i64 half = split_point(n);
    Row l = at(block_row(depth), 0), r = at(block_row(depth), cb_);
    merge_blocks(l, oh, v, lo, half, depth + 1);
    merge_blocks(r, oh, v, lo + half, n - half, depth + 1);
    Source s[2] = {{l.a, l.b, 0, 0}, {r.a, r.b, 0, 0}};
    k_.merge(dst, 0, s, 2, 1, cb_);
  }
  Row block_row(int depth) { return at(phases_, depth * 2 * cb_); }

  void merge_columns(Row dst, const Window& v, i64 lo, i64 n, i64 first, i64 last) {
    if (cb_ > 1) {
      merge_taps(dst, cb_, lo, n, first, last, [&](i64 t) { return source(line_, (v.at(t) - q_base_) * cb_, t); },
                 {1, cb_});
    } else {
      k_.run(dst, source(line_, v.start - q_base_, 0), v.step, lo, n, first, last);
    }
  }

  // ---- output --------------------------------------------------------------------------------------------------------

  void finish_and_store(i64 oh) {
    const i64 n = (ow1_ - ow0_) * cb_;
    DType type = p_.acc;
    char* v = out_.a;
    if (p_.acc < DType::f16 && p_.out >= DType::f16) {  // integers whose result is a float
      converter(p_.acc, DType::f64)(post_row_, 1, v, 1, n);
      type = DType::f64, v = post_row_;
    }
    if (k_.b_bytes && !k_.coded) finish_scaled(reinterpret_cast<double*>(v), oh);
    switch (type) {
      case DType::f32: finish_row(reinterpret_cast<float*>(v), n, oh); break;
      case DType::f64: finish_row(reinterpret_cast<double*>(v), n, oh); break;
      case DType::i32: finish_divide(reinterpret_cast<int32_t*>(v), oh); break;
      case DType::u64: finish_divide(reinterpret_cast<uint64_t*>(v), oh); break;
      case DType::i64: finish_divide(reinterpret_cast<i64*>(v), oh); break;
      default: break;
    }
    copy_columns(type == p_.acc ? store_fn_ : converter(type, p_.out),
                 static_cast<char*>(buf_.y) + y_offset(oh) * out_bytes_, out_bytes_, p_.y_stride[2], p_.y_stride[3], v,
                 size_of(type), cb_, 1, ow1_ - ow0_);
    if (k_.coded) store_codes(oh);
  }

  template <class T>
  void finish_row(T* v, i64 n, i64 oh) {
    if (p_.finish == Finish::root || p_.finish == Finish::signed_root) finish_roots(v, n, p_.p);
    if (any_transposed())
      for (i64 i = 0; i < n; ++i) v[i] += T(0);  // an input that no window saw: 0.0, not -0.0
    finish_divide(v, oh);
  }
  template <class T>
  void finish_divide(T* v, i64 oh) {
    if (p_.finish != Finish::divide) return;
    const bool constant = p_.divisor == Divisor::constant;
    const double rows = constant ? p_.divisor_value : rows_divisor(od_, oh);
    for (i64 o = 0; o < ow1_ - ow0_; ++o) {
      const double by = constant ? rows : rows * divisor_w_[o];
      for (i64 c = 0; c < cb_; ++c, ++v) {
        if constexpr (kIsFloat<T>)
          *v = *v / T(by);
        else
          *v = divide_half_even(*v, i64(by));
      }
    }
  }

  void finish_scaled(double* v, i64 oh) {
    const i64 cols = ow1_ - ow0_, n = cols * cb_;
    const double* exponent = reinterpret_cast<const double*>(out_.b);
    if (p_.finish == Finish::log) {
      for (i64 i = 0; i < n; ++i) v[i] = (log(v[i]) + exponent[i] * kLn2) / p_.p;
      return;
    }
    const double* x = neighbour_row(buf_.post, p_.out, p_.post_outer, p_.post_stride, od_, oh, ow0_, cols, post_row_);
    for (i64 i = 0; i < n; ++i) {
      if (v[i] == 0) continue;
      if (p_.finish == Finish::times_exp) {
        v[i] *= exp2(exponent[i] + p_.p * kLog2E * x[i]);
      } else if (x[i] == 0 && !(p_.p == 1 && p_.finish == Finish::times_signed_power)) {
        v[i] = 0;
      } else {
        v[i] *= exp2(exponent[i] + (p_.p == 1 ? 0 : (p_.p - 1) * log2(fabs(x[i]))));
        if (p_.finish == Finish::times_power && x[i] < 0) v[i] = -v[i];
      }
    }
  }

  i64 offset_of(i64 code) const {  // from the window's first tap, in the pooled axes of the input
    const i64 kw = p_.axis[2].kernel, kh = p_.axis[1].kernel;
    const i64 tw = code % kw, th = code / kw % kh, td = code / kw / kh;
    return (td * p_.axis[0].dilation * p_.axis[1].n_in + th * p_.axis[1].dilation) * p_.axis[2].n_in +
           tw * p_.axis[2].dilation;
  }

  void store_codes(i64 oh) {
    const i64 cols = ow1_ - ow0_;
    const i64 at = outer_offset(p_, p_.code_outer, outer_) + od_ * p_.code_stride[0] + oh * p_.code_stride[1] +
                   ow0_ * p_.code_stride[2] + c0_ * p_.code_stride[3];
    const DType lane = k_.b_bytes == 4 ? DType::i32 : DType::i64;
    if (p_.code != Code::index) {
      const DType to = p_.code == Code::u8    ? DType::u8
                       : p_.code == Code::u16 ? DType::u16
                       : p_.code == Code::i32 ? DType::i32
                                              : DType::i64;
      copy_columns(converter(lane, to), static_cast<char*>(buf_.code) + at * size_of(to), size_of(to),
                   p_.code_stride[2], p_.code_stride[3], out_.b, k_.b_bytes, cb_, 1, cols);
      return;
    }
    i64* out = static_cast<i64*>(buf_.code) + at;
    const Window wh = window_of(p_.axis[1], oh);
    const i64 row = (wd_.start * p_.axis[1].n_in + wh.start) * p_.axis[2].n_in;
    for (i64 o = 0; o < cols; ++o) {
      const i64 base = row + window_of(p_.axis[2], ow0_ + o).start;
      for (i64 c = 0; c < cb_; ++c) {
        const i64 at_code = o * cb_ + c;
        const i64 k = lane == DType::i32 ? reinterpret_cast<const int32_t*>(out_.b)[at_code]
                                         : reinterpret_cast<const i64*>(out_.b)[at_code];
        out[o * p_.code_stride[2] + c * p_.code_stride[3]] =
            base + (offset_of_code_ ? offset_of_code_[k] : offset_of(k));
      }
    }
  }
};

}  // namespace
}  // namespace anypool
