// PyTorch's tensors, as far as a call has to know them: nothing is linked to PyTorch, which hands over what it is asked by.
#pragma once
#include <nanobind/nanobind.h>

#include <utility>

#include "dlpack.hpp"

namespace anypool {

namespace nb = nanobind;

class Tensors {
  nb::object type_, silent_, plain_, records_, forward_mode_, requires_grad_, negated_, allocate_;
  const dlpack::ExchangeApi* api_ = nullptr;
  mutable bool careful_ = false;  // a tensor without memory was seen, and saying so took long

  static bool says_nothing(PyObject* result) {
    const nb::object kept = nb::steal(result);
    if (!result) throw nb::python_error();
    const int truth = PyObject_IsTrue(result);
    if (truth < 0) throw nb::python_error();
    return !truth;
  }

 public:
  // The class; its capsule; functions that return nothing while nobody follows what is done; one that says whether a tensor
  // is memory of this machine and no more; one that says whether gradients are recorded; where forward mode has its level.
  Tensors(nb::object type, nb::object capsule, nb::tuple silent, nb::object plain, nb::object records,
          nb::dict forward_mode)
      : type_(std::move(type)),
        silent_(std::move(silent)),
        plain_(std::move(plain)),
        records_(std::move(records)),
        forward_mode_(std::move(forward_mode)),
        requires_grad_(nb::steal(PyUnicode_InternFromString("requires_grad"))),
        negated_(nb::steal(PyUnicode_InternFromString("is_neg"))),
        allocate_(nb::steal(PyUnicode_InternFromString("new_empty_strided"))) {
    if (PyCapsule_IsValid(capsule.ptr(), dlpack::kCapsule))
      api_ = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsule));
    while (api_ && api_->major > 1) api_ = api_->older;
    if (api_ && (api_->major != 1 || !api_->tensor_of_object)) api_ = nullptr;
  }

  bool is_tensor(nb::handle x) const { return api_ && reinterpret_cast<PyObject*>(Py_TYPE(x.ptr())) == type_.ptr(); }

  // Whether nobody follows what is done with tensors: no mode, no tracer, no transform.
  bool unwatched() const {
    const Py_ssize_t n = PyTuple_Size(silent_.ptr());
    for (Py_ssize_t i = 0; i < n; ++i)
      if (!says_nothing(PyObject_CallNoArgs(PyTuple_GetItem(silent_.ptr(), i)))) return false;
    PyObject* level = PyDict_GetItemString(forward_mode_.ptr(), "_current_level");
    return level && PyLong_Check(level) && PyLong_AsLong(level) < 0;
  }

  // Where the elements of a tensor lie, if they lie in the memory of this machine. PyTorch tells of a storage without memory
  // how far into it they would be: no address that small is believed.
  bool view(nb::handle x, dlpack::Tensor& found) const {
    if (careful_ && says_nothing(PyObject_CallFunctionObjArgs(plain_.ptr(), x.ptr(), nullptr))) return false;
    if (api_->tensor_of_object(x.ptr(), &found)) {
      PyErr_Clear();
      careful_ = true;
      return false;
    }
    return found.device == dlpack::kCpu && reinterpret_cast<uintptr_t>(found.data) >> 32 && found.lanes == 1;
  }

  bool records() const { return !says_nothing(PyObject_CallNoArgs(records_.ptr())); }
  bool requires_grad(nb::handle x) const { return !says_nothing(PyObject_GetAttr(x.ptr(), requires_grad_.ptr())); }
  // Whether the elements stand for their negatives, as those of a view of complex numbers may.
  bool negated(nb::handle x) const {
    return !says_nothing(PyObject_CallMethodObjArgs(x.ptr(), negated_.ptr(), nullptr));
  }

  // Memory of PyTorch's for a result of the dtype of x, or nothing if there is an error, which is for others to say.
  nb::object empty(nb::handle x, nb::handle shape, nb::handle strides) const {
    PyObject* y = PyObject_CallMethodObjArgs(x.ptr(), allocate_.ptr(), shape.ptr(), strides.ptr(), nullptr);
    if (!y) PyErr_Clear();
    return nb::steal(y);
  }
};

}  // namespace anypool
