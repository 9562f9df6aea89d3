#include "token_layouts.hpp"

#include <algorithm>
#include <cstring>

namespace anypool {

namespace {

// The elements of a tensor of any strides, in order, as f(number) -> whether to go on.
template <class T, class F>
bool each(const dlpack::Tensor& t, const F& f) {
  const T* const data = reinterpret_cast<const T*>(static_cast<const char*>(t.data) + t.byte_offset);
  i64 n = 1;
  for (int a = 0; a < t.ndim; ++a) n *= t.shape[a];
  std::vector<i64> at(size_t(t.ndim), 0);
  i64 offset = 0;
  for (i64 i = 0; i < n; ++i) {
    if (!f(data[offset])) return false;
    for (int a = t.ndim - 1; a >= 0; --a) {
      offset += t.strides[a];
      if (++at[size_t(a)] < t.shape[a]) break;
      offset -= t.shape[a] * t.strides[a], at[size_t(a)] = 0;
    }
  }
  return true;
}
template <class F>
bool each_integer(const dlpack::Tensor& t, const F& f) {
  if (t.kind == dlpack::kInt) {
    if (t.bits == 64) return each<int64_t>(t, f);
    if (t.bits == 32) return each<int32_t>(t, f);
    if (t.bits == 16) return each<int16_t>(t, f);
    if (t.bits == 8) return each<int8_t>(t, f);
  }
  return t.kind == dlpack::kUnsigned && t.bits == 8 && each<uint8_t>(t, f);
}
bool is_integer(const dlpack::Tensor& t) {
  return t.kind == dlpack::kInt || (t.kind == dlpack::kUnsigned && t.bits == 8);
}

class Reader {
  const dlpack::Tensor& x_;
  FoundRuns& runs_;

  bool leads(const dlpack::Tensor& given, int others) const {
    if (given.ndim != x_.ndim - 2 + others) return false;
    return std::equal(x_.shape, x_.shape + x_.ndim - 2, given.shape);
  }
  i64 sequences() const {
    i64 n = 1;
    for (int a = 0; a < x_.ndim - 2; ++a) n *= x_.shape[a];
    return n;
  }
  i64 length() const { return x_.shape[x_.ndim - 2]; }

  void one(i64 part, i64 start, i64 count) {
    runs_.part.push_back(part), runs_.start.push_back(start), runs_.count.push_back(count);
    runs_.bounds.push_back(i64(runs_.count.size()));
    ++runs_.outputs;
  }
  void reserve(i64 n) {
    for (auto* v : {&runs_.part, &runs_.start, &runs_.count, &runs_.bounds}) v->reserve(size_t(n) + 1);
  }

 public:
  Reader(const dlpack::Tensor& x, FoundRuns& runs) : x_(x), runs_(runs) { runs.bounds.push_back(0); }

  bool whole() {
    const i64 n = sequences();
    reserve(n);
    for (i64 p = 0; p < n; ++p) one(p, 0, length());
    return true;
  }
  bool lengths(const dlpack::Tensor& given, bool padded_left) {
    if (!leads(given, 0)) return false;
    reserve(sequences());
    return each_integer(given, [&](i64 n) {
      if (n < 0 || n > length()) return false;
      one(runs_.outputs, padded_left ? length() - n : 0, n);
      return true;
    });
  }
  bool offsets(const dlpack::Tensor& given) {
    if (x_.ndim != 2 || given.ndim != 1 || !given.shape[0]) return false;
    reserve(given.shape[0]);
    i64 before = -1;
    return each_integer(given,
                        [&](i64 at) {
                          if (before < 0) return before = at, at == 0;
                          if (at < before || at > length()) return false;
                          one(0, before, at - before);
                          return before = at, true;
                        }) &&
           before == length();
  }
  bool segment_ids(const dlpack::Tensor& given, i64 segments) {
    if (x_.ndim != 2 || given.ndim != 1 || given.shape[0] != length()) return false;
    constexpr i64 kMost = 1 << 20;  // more are not made before they have been looked into
    i64 row = 0, begun = 0, id = 0;
    const auto close = [&](i64 next) {  // of the segments from id on
      for (; id < next; ++id, begun = row) one(0, begun, row - begun);
    };
    const bool sorted = each_integer(given, [&](i64 at) {
      if (at < id || at >= kMost || (segments >= 0 && at >= segments)) return false;
      close(at);
      return ++row, true;
    });
    if (!sorted || segments > kMost) return false;
    close(segments >= 0 ? segments : row ? id + 1 : 0);
    return true;
  }
  bool spans(const dlpack::Tensor& given) {
    if (!leads(given, 2) || given.shape[given.ndim - 1] != 2) return false;
    const i64 each_of = given.shape[given.ndim - 2];
    reserve(sequences() * each_of);
    i64 start = -1;
    return each_integer(given, [&](i64 at) {
      if (at < 0 || at > length()) return false;
      if (start < 0) return start = at, true;
      if (at < start) return false;
      one(runs_.outputs / each_of, start, at - start);
      return start = -1, true;
    });
  }
  bool mask(const dlpack::Tensor& given) {
    if (!leads(given, 1) || given.shape[given.ndim - 1] != length()) return false;
    if (given.kind == dlpack::kBool || (is_integer(given) && given.bits == 8)) return mask_of<uint8_t>(given);
    if (is_integer(given)) {
      if (given.bits == 64) return mask_of<int64_t>(given);
      return given.bits == 32 ? mask_of<int32_t>(given) : mask_of<int16_t>(given);
    }
    if (given.kind == dlpack::kBrainFloat) return given.bits == 16 && mask_of<uint16_t>(given, 0x3f80);  // 1 as bits
    if (given.kind != dlpack::kFloat) return false;
    if (given.bits == 64) return mask_of<double>(given);
    return given.bits == 32 ? mask_of<float>(given) : given.bits == 16 && mask_of<uint16_t>(given, 0x3c00);
  }

 private:
  template <class T>
  bool mask_of(const dlpack::Tensor& given, T one = T(1)) {
    const i64 n = sequences(), length = this->length();
    reserve(n);
    std::vector<T> copy;
    const T* row = reinterpret_cast<const T*>(static_cast<const char*>(given.data) + given.byte_offset);
    if (!in_order(given)) {
      copy.reserve(size_t(n * length));
      each<T>(given, [&](T value) { return copy.push_back(value), true; });
      row = copy.data();
    }
    for (i64 p = 0; p < n; ++p, row += length) {
      for (i64 t = 0; t < length;) {
        const i64 begin = end_of(row, t, length, T(0)), end = end_of(row, begin, length, one);
        if (begin == end && end < length) return false;  // neither 0 nor 1
        if (end > begin) runs_.part.push_back(p), runs_.start.push_back(begin), runs_.count.push_back(end - begin);
        t = end;
      }
      runs_.bounds.push_back(i64(runs_.count.size()));
    }
    runs_.outputs = n;
    return true;
  }
  // Where a stretch of equal elements ends.
  template <class T>
  static i64 end_of(const T* row, i64 t, i64 length, T value) {
    T many[64 / sizeof(T)];
    std::fill(std::begin(many), std::end(many), value);
    constexpr i64 step = i64(64 / sizeof(T));
    while (t + step <= length && !std::memcmp(row + t, many, 64)) t += step;
    while (t < length && row[t] == value) ++t;
    return t;
  }
  static bool in_order(const dlpack::Tensor& t) {
    i64 step = 1;
    for (int a = t.ndim - 1; a >= 0; step *= t.shape[a--])
      if (t.shape[a] != 1 && t.strides[a] != step) return false;
    return true;
  }
};

// The first tokens of each output are left out.
void leave_out_prefix(i64 prefix, FoundRuns& runs) {
  runs.skipped.reserve(size_t(runs.outputs));
  for (i64 o = 0; o < runs.outputs; ++o) {
    i64 left = prefix;
    for (i64 r = runs.bounds[size_t(o)]; r < runs.bounds[size_t(o) + 1]; ++r) {
      const i64 cut = std::min(left, runs.count[size_t(r)]);
      runs.start[size_t(r)] += cut, runs.count[size_t(r)] -= cut, left -= cut;
    }
    runs.skipped.push_back(prefix - left);
  }
}

}  // namespace

bool find_runs(Layout layout, const dlpack::Tensor* given, const dlpack::Tensor& x, const LayoutOptions& options,
               FoundRuns& runs) {
  Reader reader(x, runs);
  const auto read = [&] {
    switch (layout) {
      case Layout::mask: return reader.mask(*given);
      case Layout::lengths: return reader.lengths(*given, options.padded_left);
      case Layout::offsets: return reader.offsets(*given);
      case Layout::segment_ids: return reader.segment_ids(*given, options.segments);
      case Layout::spans: return reader.spans(*given);
      case Layout::whole: return reader.whole();
    }
    return false;
  };
  if (!read()) return false;
  if (options.prefix >= 0) leave_out_prefix(options.prefix, runs);
  return true;
}

}  // namespace anypool
