#ifndef STOPGRAD_CUDA_MEMORY_H_
#define STOPGRAD_CUDA_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "core/export.h"
#include "core/product.h"
#include "core/status.h"
#include "cuda/device.h"

namespace stopgrad::cuda {

STOPGRAD_EXPORT Status EnqueueZeros(void* data, size_t bytes, Device& device);

STOPGRAD_EXPORT Status EnqueueCopy(const void* from, void* to, size_t bytes, Device& device);

// Zeros in the rows, of `row_bytes` each, whose `active` is 0. `active` is in device memory.
Status EnqueueZeroRows(void* data, const uint8_t* active, int64_t rows, int64_t row_bytes,
                       Device& device);

// A copy of host memory on the device, as long as what `device` allocates lives. The host memory
// may change once this returns.
Status Upload(const void* host, size_t bytes, Device& device, const void** copy);

template <typename T>
Status Upload(const std::vector<T>& host, Device& device, const T** copy) {
  const void* data = nullptr;
  Status status = Upload(host.data(), host.size() * sizeof(T), device, &data);
  *copy = static_cast<const T*>(data);
  return status;
}

// Matrices [rows, cols], `count` of them, from one view to another of the same dtype; conjugated
// where one of the views is. The lists of the views are in host memory. Batch strides are in
// elements. The copies have more rows and columns than their sources where `filled_rows` and
// `filled_cols` are more: zeros.
struct Copy {
  DType dtype;
  int64_t rows;
  int64_t cols;
  int64_t filled_rows = 0;
  int64_t filled_cols = 0;
  int64_t count = 1;
  const void* from;
  void* to;
  MatrixView from_view;
  MatrixView to_view;
  int64_t from_stride = 0;
  int64_t to_stride = 0;
};
STOPGRAD_EXPORT Status Enqueue(const Copy& copy, Device& device);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_MEMORY_H_
