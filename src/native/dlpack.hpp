// The part of DLPack's exchange interface for C (version 1 of that standard) that is used here: where the elements of a
// tensor lie, told by its library in one call that makes no object. Structures as the standard lays them out.
#pragma once
#include <cstdint>

namespace anypool::dlpack {

struct Tensor {
  void* data;
  int32_t device, device_number;
  int32_t ndim;
  uint8_t kind, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
constexpr int32_t kCpu = 1;
constexpr uint8_t kInt = 0, kUnsigned = 1, kFloat = 2, kBrainFloat = 4, kBool = 6;

struct ExchangeApi {
  uint32_t major, minor;
  ExchangeApi* older;
  void *allocate, *owned_of_object, *object_of_owned;
  int (*tensor_of_object)(void* object, Tensor* found);  // 0, or -1 with an exception of Python's
  void* current_stream;
};
constexpr const char* kCapsule = "dlpack_exchange_api";

}  // namespace anypool::dlpack
