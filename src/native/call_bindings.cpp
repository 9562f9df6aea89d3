// Calls on PyTorch's tensors that differ in their data alone, from the arguments to the result: looked up, allocated and run
// without Python. Whatever is not known, or not plain, is left to Python, which says so by asking for it to be known.
#include <nanobind/nanobind.h>

#include "bindings.hpp"
#include "dispatch.hpp"
#include "known_calls.hpp"
#include "tensors.hpp"
#include "token_layouts.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace anypool;

namespace {

nb::object left_to_python() { return nb::borrow(Py_NotImplemented); }

// What every call has to do with.
class Calls {
 protected:
  Tensors tensors_;
  nb::object asked_for_;

  Calls(Tensors tensors, nb::object asked_for) : tensors_(std::move(tensors)), asked_for_(std::move(asked_for)) {}

  // The backend that was asked for: a plan made without it must not serve with it.
  nb::object asked_for() const {
    PyObject* name = PyObject_CallNoArgs(asked_for_.ptr());
    if (!name) throw nb::python_error();
    return nb::steal(name);
  }
  // Whether x is a tensor that lies in the memory of this machine and of whose pooling nobody has to be told.
  bool view(nb::handle x, dlpack::Tensor& at) const {
    if (!tensors_.is_tensor(x) || (tensors_.records() && tensors_.requires_grad(x))) return false;
    // Last, as nothing may run in between that lets another thread change the tensor.
    return tensors_.unwatched() && !tensors_.negated(x) && tensors_.view(x, at);
  }
};

struct Window {
  nb::object function, owner;  // kept alive
  const Recipe* recipe;
  nb::object shape, strides;
  uintptr_t mask;  // of an address that is not aligned
};

class WindowCalls : Calls {
  KnownCalls<Window> known_;

  Given given(nb::handle function, nb::handle args, nb::handle kwargs, nb::handle asked_for) const {
    Given given(reinterpret_cast<int64_t>(function.ptr()));
    given.add(asked_for.ptr());
    given.add_all(args.ptr(), 1);
    if (PyDict_Size(kwargs.ptr())) given.add_all(kwargs.ptr());
    return given;
  }

 public:
  WindowCalls(Tensors tensors, nb::object asked_for) : Calls(std::move(tensors), std::move(asked_for)) {}

  nb::object run(nb::handle function, nb::handle args, nb::handle kwargs) const {
    const nb::handle x = PyTuple_GetItem(args.ptr(), 0);
    dlpack::Tensor at;
    if (!view(x, at)) return left_to_python();
    const nb::object asked = asked_for();
    const auto found = known_.find(at, given(function, args, kwargs, asked));
    const auto address = reinterpret_cast<uintptr_t>(at.data) + at.byte_offset;
    if (!found || address & found->mask) return left_to_python();
    nb::object y = tensors_.empty(x, found->shape, found->strides);
    dlpack::Tensor to;
    if (!y.is_valid() || !tensors_.view(y, to)) return left_to_python();
    const Buffers buffers{reinterpret_cast<void*>(address), static_cast<char*>(to.data) + to.byte_offset, nullptr,
                          nullptr, nullptr};
    if (found->recipe->bytes < (64 << 10)) {
      found->recipe->run(buffers);
    } else {
      nb::gil_scoped_release release;
      found->recipe->run(buffers);
    }
    return y;
  }
  void add(nb::handle function, nb::handle args, nb::handle kwargs, nb::object recipe, nb::object shape,
           nb::object strides, uint64_t mask) {
    const nb::handle x = PyTuple_GetItem(args.ptr(), 0);
    dlpack::Tensor at;
    if (!tensors_.is_tensor(x) || !tensors_.view(x, at)) return;
    const nb::object asked = asked_for();
    known_.add(at, given(function, args, kwargs, asked),
               {nb::borrow(function), recipe, nb::cast<const Recipe*>(recipe), shape, strides, uintptr_t(mask)});
  }
  void clear() { known_.clear(); }
};

struct TokenCall {
  nb::object owner;
  const TokenRecipe* recipe;
  LayoutOptions options;
};

class TokenCalls : Calls {
  KnownCalls<TokenCall> known_;
  int64_t large_;  // bytes of a result whose memory has to be asked for

  struct Seen {
    Layout layout = Layout::whole;
    nb::handle given;
    bool one = true;
  };
  static Seen seen(nb::handle layouts) {
    Seen found;
    for (Py_ssize_t i = 0; i < PyTuple_Size(layouts.ptr()); ++i) {
      const nb::handle given = PyTuple_GetItem(layouts.ptr(), i);
      if (given.is_none()) continue;
      found.one = found.layout == Layout::whole;
      found.layout = static_cast<Layout>(i), found.given = given;
    }
    return found;
  }
  Given given(Layout layout, nb::handle what, nb::handle asked_for) const {
    Given given(static_cast<int64_t>(layout));
    given.add(asked_for.ptr());
    given.add_all(what.ptr(), 0);
    return given;
  }
  nb::object result(nb::handle x, const dlpack::Tensor& at, const Seen& seen, i64 outputs, i64 width) const {
    std::vector<i64> shape;
    const bool packed = seen.layout == Layout::offsets || seen.layout == Layout::segment_ids;
    i64 n = 1;
    for (int a = 0; !packed && a < at.ndim - 2; ++a) shape.push_back(at.shape[a]), n *= at.shape[a];
    if (packed || seen.layout == Layout::spans) shape.push_back(packed ? outputs : n ? outputs / n : 0);
    shape.push_back(width);
    const nb::object sizes = nb::steal(PyTuple_New(Py_ssize_t(shape.size())));
    const nb::object strides = nb::steal(PyTuple_New(Py_ssize_t(shape.size())));
    i64 step = 1;
    for (Py_ssize_t a = Py_ssize_t(shape.size()) - 1; a >= 0; --a) {
      PyTuple_SetItem(sizes.ptr(), a, PyLong_FromLongLong(shape[size_t(a)]));
      PyTuple_SetItem(strides.ptr(), a, PyLong_FromLongLong(step));
      step *= std::max<i64>(1, shape[size_t(a)]);
    }
    return tensors_.empty(x, sizes, strides);
  }

 public:
  TokenCalls(Tensors tensors, nb::object asked_for, int64_t large)
      : Calls(std::move(tensors), std::move(asked_for)), large_(large) {}

  nb::object run(nb::handle x, nb::handle layouts, nb::handle what) const {
    dlpack::Tensor at, where;
    const Seen by = seen(layouts);
    if (!by.one || (by.given && (!tensors_.is_tensor(by.given) || tensors_.negated(by.given)))) return left_to_python();
    if (!view(x, at) || at.ndim < 2 || (by.given && !tensors_.view(by.given, where))) return left_to_python();
    const nb::object asked = asked_for();
    const auto found = known_.find(at, given(by.layout, what, asked));
    const auto address = reinterpret_cast<uintptr_t>(at.data) + at.byte_offset;
    if (!found || address & uintptr_t(at.bits / 8 - 1)) return left_to_python();
    const TokenRecipe& recipe = *found->recipe;
    FoundRuns runs;
    if (!find_runs(by.layout, by.given ? &where : nullptr, at, found->options, runs)) return left_to_python();
    if (runs.outputs * recipe.plan.y_row * (at.bits / 8) >= large_) return left_to_python();
    nb::object y = result(x, at, by, runs.outputs, recipe.plan.y_row);
    dlpack::Tensor to;
    if (!y.is_valid() || !tensors_.view(y, to)) return left_to_python();
    {
      nb::gil_scoped_release release;
      recipe.run(reinterpret_cast<void*>(address), static_cast<char*>(to.data) + to.byte_offset, runs.get(), nullptr,
                 runs.skipped.empty() ? nullptr : runs.skipped.data());
    }
    return y;
  }
  void add(nb::handle x, nb::handle layouts, nb::handle what, nb::object recipe, bool padded_left, i64 segments,
           i64 prefix) {
    dlpack::Tensor at;
    if (!tensors_.is_tensor(x) || !tensors_.view(x, at)) return;
    const nb::object asked = asked_for();
    known_.add(at, given(seen(layouts).layout, what, asked),
               {recipe, nb::cast<const TokenRecipe*>(recipe), {padded_left, segments, prefix}});
  }
  void clear() { known_.clear(); }
};

}  // namespace

void bind_calls(nb::module_& m) {
  nb::class_<Tensors>(m, "Tensors")
      .def(nb::init<nb::object, nb::object, nb::typed<nb::tuple, nb::object, nb::ellipsis>, nb::object, nb::object,
                    nb::typed<nb::dict, nb::str, nb::object>>(),
           "type"_a, "capsule"_a.none(), "silent"_a, "plain"_a, "records"_a, "forward_mode"_a);
  nb::class_<WindowCalls>(m, "WindowCalls")
      .def(nb::init<Tensors, nb::object>(), "tensors"_a, "asked_for"_a)
      .def("run", &WindowCalls::run, "function"_a, "args"_a, "kwargs"_a,
           "Return the pooled tensor of a call that is known, or NotImplemented.")
      .def("add", &WindowCalls::add, "function"_a, "args"_a, "kwargs"_a, "recipe"_a, "shape"_a, "strides"_a, "mask"_a)
      .def("clear", &WindowCalls::clear);
  nb::class_<TokenCalls>(m, "TokenCalls")
      .def(nb::init<Tensors, nb::object, int64_t>(), "tensors"_a, "asked_for"_a, "large"_a)
      .def("run", &TokenCalls::run, "x"_a.none(), "layouts"_a, "what"_a,
           "Return the pooled tensor of a call that is known, or NotImplemented.")
      .def("add", &TokenCalls::add, "x"_a, "layouts"_a, "what"_a, "recipe"_a, "padded_left"_a, "segments"_a, "prefix"_a)
      .def("clear", &TokenCalls::clear);
}
