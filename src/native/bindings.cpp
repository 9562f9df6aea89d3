// Bindings, and nothing else: a Recipe is made from plain numbers and run on addresses. Python has validated both.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.hpp"
#include "dispatch.hpp"
#include "masks.hpp"
#include "threads.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using anypool::i64;
using Numbers = std::vector<i64>;

namespace {

// kind, n_in, n_out, kernel, stride, dilation, pad, pad_hi, then for a table: firsts and counts.
anypool::Axis read_axis(const Numbers& v, std::vector<i64>& tables) {
  anypool::Axis a{static_cast<anypool::AxisKind>(v.at(0)),
                  v.at(1),
                  v.at(2),
                  v.at(3),
                  v.at(4),
                  v.at(5),
                  v.at(6),
                  v.at(7),
                  nullptr,
                  nullptr};
  if (a.kind == anypool::AxisKind::table) {
    a.first = reinterpret_cast<const i64*>(tables.size());  // an offset, until the tables have their place
    tables.insert(tables.end(), v.begin() + 8, v.begin() + 8 + 2 * a.n_out);
  }
  return a;
}
void place_tables(anypool::Axis& a, const std::vector<i64>& tables) {
  if (a.kind != anypool::AxisKind::table) return;
  a.first = tables.data() + reinterpret_cast<size_t>(a.first);
  a.count = a.first + a.n_out;
}
// Strides of the outer axes, then of d, h, w, inner.
void read_strides(const Numbers& v, int n_outer, i64* outer, i64* inner) {
  for (int a = 0; a < n_outer; ++a) outer[a] = v.at(a);
  for (int a = 0; a < 4; ++a) inner[a] = v.at(n_outer + a);
}

}  // namespace

NB_MODULE(_native, m) {
  // PyTorch's operator registry and its autograd graphs may outlive the interpreter's last look for leaks.
  nb::set_leak_warnings(false);
  bind_tokens(m);
  nb::class_<anypool::Recipe>(m, "Recipe")
      .def(
          "__init__",
          [](anypool::Recipe* self, const Numbers& choices, double divisor_value, double p,
             const std::vector<Numbers>& axes, const std::vector<Numbers>& forward_axes, const Numbers& outer,
             i64 inner, const std::vector<Numbers>& strides, bool backward, const std::vector<uint64_t>& masking) {
            if (outer.size() > anypool::kMaxOuter || axes.size() != 3 || forward_axes.size() != 3 ||
                strides.size() != 5 || choices.size() != 9 || (!masking.empty() && masking.size() != 3))
              throw nb::value_error("not a plan");
            new (self) anypool::Recipe();
            anypool::Plan& q = self->plan;
            q = {};
            q.in = static_cast<anypool::DType>(choices[0]);
            q.acc = static_cast<anypool::DType>(choices[1]);
            q.out = static_cast<anypool::DType>(choices[2]);
            q.code = static_cast<anypool::Code>(choices[3]);
            q.merge = static_cast<anypool::Merge>(choices[4]);
            q.lift = static_cast<anypool::Lift>(choices[5]);
            q.finish = static_cast<anypool::Finish>(choices[6]);
            q.divisor = static_cast<anypool::Divisor>(choices[7]);
            q.aux = static_cast<anypool::DType>(choices[8]);
            q.divisor_value = divisor_value;
            q.p = p;
            for (int a = 0; a < 3; ++a) {
              q.axis[a] = read_axis(axes[a], self->tables);
              q.forward[a] = read_axis(forward_axes[a], self->tables);
            }
            for (int a = 0; a < 3; ++a) place_tables(q.axis[a], self->tables), place_tables(q.forward[a], self->tables);
            q.n_outer = static_cast<int32_t>(outer.size());
            for (int a = 0; a < q.n_outer; ++a) q.outer[a] = outer[a];
            q.inner = inner;
            read_strides(strides[0], q.n_outer, q.x_outer, q.x_stride);
            read_strides(strides[1], q.n_outer, q.y_outer, q.y_stride);
            read_strides(strides[2], q.n_outer, q.code_outer, q.code_stride);
            read_strides(strides[3], q.n_outer, q.aux_outer, q.aux_stride);
            read_strides(strides[4], q.n_outer, q.post_outer, q.post_stride);
            self->backward = backward;
            masking.empty() ? self->prepare() : self->prepare({masking[0], masking[1], masking[2]});
          },
          "choices"_a, "divisor_value"_a, "p"_a, "axes"_a, "forward_axes"_a, "outer"_a, "inner"_a, "strides"_a,
          "backward"_a, "masking"_a = std::vector<uint64_t>{})
      .def(
          "run",
          [](const anypool::Recipe& self, nb::handle x, nb::handle y, nb::handle code, nb::handle aux, nb::handle post,
             uint64_t empty) {
            const anypool::Buffers buffers{data_of(x), data_of(y), data_of(code), data_of(aux), data_of(post), empty};
            if (self.bytes < (64 << 10)) return self.run(buffers);
            nb::gil_scoped_release release;
            self.run(buffers);
          },
          "x"_a, "y"_a, "code"_a = nb::none(), "aux"_a = nb::none(), "post"_a = nb::none(), "empty"_a = 0,
          "Run on ndarrays, or the addresses of elements, of the shapes and strides the recipe was made for.")
      .def_prop_ro("threads", &anypool::Recipe::threads)
      .def_prop_ro("way", &anypool::Recipe::way)
      .def_ro("bytes", &anypool::Recipe::bytes)
      .def_ro("tasks", &anypool::Recipe::tasks)
      .def_ro("scratch", &anypool::Recipe::scratch);
  bind_calls(m);
  m.def(
      "leave_out",
      [](nb::handle x, nb::handle mask, nb::handle y, nb::handle valid, const std::vector<Numbers>& axes, i64 bytes,
         uint64_t none, uint64_t largest) {
        std::vector<anypool::MaskAxis> read;
        for (const Numbers& a : axes) read.push_back({a.at(0), a.at(1), a.at(2), a.at(3)});
        const anypool::LeaveOutRow arrays{data_of(x), static_cast<const uint8_t*>(data_of(mask)), data_of(y),
                                          static_cast<uint8_t*>(data_of(valid))};
        nb::gil_scoped_release release;
        anypool::leave_out(arrays, std::move(read), {0, bytes, 0, 0, none, largest});
      },
      "x"_a, "mask"_a, "y"_a, "valid"_a.none(), "axes"_a, "bytes"_a, "none"_a, "largest"_a,
      "Write x into y, and none where mask is False; an axis is (elements, steps of x, of mask, of y).");
  m.def("data_pointer", [](nb::handle array) { return reinterpret_cast<uintptr_t>(data_of(array)); });
  m.def("isa", &anypool::chosen_level, "The instruction-set level that runs; empty if the one asked for cannot.");
  m.def("isa_built", &anypool::built_levels);
  m.def("thread_count", &anypool::thread_count);
  m.def("thread_pool", [] { return std::string(anypool::thread_pool_name()); });
}
