#ifndef STOPGRAD_PYTHON_DLPACK_H_
#define STOPGRAD_PYTHON_DLPACK_H_

#include <cstdint>

// The part of DLPack's binary interface, version 0.8, that arrays are handed over by:
// https://dmlc.github.io/dlpack/latest/c_api.html
struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};
constexpr int32_t kDLCUDA = 2;

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};
enum DLDataTypeCode : uint8_t { kDLInt = 0, kDLFloat = 2, kDLBfloat = 4, kDLComplex = 5 };

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: row by row
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor* self);
};

#endif  // STOPGRAD_PYTHON_DLPACK_H_
