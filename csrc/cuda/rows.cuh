#ifndef STOPGRAD_CUDA_ROWS_CUH_
#define STOPGRAD_CUDA_ROWS_CUH_

// What the kernels over rows of elements have in common. A complex row is a row of twice as many
// real numbers there, since nothing mixes their parts.

#include <cstdint>

#include "core/dtype.h"
#include "core/status.h"
#include "cuda/storage.cuh"

namespace stopgrad::cuda {

// Rows of which a thread has the loads in flight before it computes the first.
constexpr int kRowsInFlight = 4;

inline bool IsAligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kBytesPerAccess == 0;
}

// Calls `function` with the real type that elements of the dtype consist of, in device storage, and
// with how many of them.
template <typename Function>
Status VisitReal(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat:
      return function(float(), 1);
    case DType::kDouble:
      return function(double(), 1);
    case DType::kHalf:
      return function(Half(), 1);
    case DType::kBFloat16:
      return function(BFloat16(), 1);
    case DType::kComplex64:
      return function(float(), 2);
    case DType::kComplex128:
      return function(double(), 2);
    default:
      return InvalidArgument("integers run on the CPU only");
  }
}

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_ROWS_CUH_
