#pragma once
#include <nanobind/nanobind.h>

void bind_tokens(nanobind::module_& m);
void bind_calls(nanobind::module_& m);

// Where an ndarray's elements are: the first field behind the object's header, as NumPy's C interface lays it down
// (PyArrayObject_fields). Asking for it in Python takes 0.5 us, and DLPack knows no bfloat16 of NumPy. An int is the
// address itself: that of a tensor's elements, which PyTorch tells in 0.05 us.
inline void* data_of(nanobind::handle array) {
  if (array.is_none()) return nullptr;
  if (PyLong_Check(array.ptr())) return PyLong_AsVoidPtr(array.ptr());
  return *reinterpret_cast<void**>(reinterpret_cast<char*>(array.ptr()) + sizeof(PyObject));
}
