#ifndef STOPGRAD_CUDA_STORAGE_CUH_
#define STOPGRAD_CUDA_STORAGE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/float16.h"

namespace stopgrad::cuda {

// Between storage and accumulator, by the device's own conversions: to nearest, ties to even.
__device__ inline float Load(float value) { return value; }
__device__ inline double Load(double value) { return value; }
__device__ inline float Load(Half value) { return __half2float(__ushort_as_half(value.bits)); }
__device__ inline float Load(BFloat16 value) {
  return __bfloat162float(__ushort_as_bfloat16(value.bits));
}

__device__ inline void Store(float value, float* result) { *result = value; }
__device__ inline void Store(double value, double* result) { *result = value; }
__device__ inline void Store(float value, Half* result) {
  result->bits = __half_as_ushort(__float2half_rn(value));
}
__device__ inline void Store(float value, BFloat16* result) {
  result->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// What one access of a thread moves.
constexpr int kBytesPerAccess = 16;

template <typename Storage>
struct alignas(kBytesPerAccess) Vector {
  static constexpr int kSize = kBytesPerAccess / sizeof(Storage);
  Storage values[kSize];
};

// The columns of a row that a thread works on: neighbours, which it moves in one access, or where
// rows are not aligned for that, as many with those of the other threads in between.
template <typename Storage>
struct ThreadColumns {
  static constexpr int kSize = Vector<Storage>::kSize;

  bool aligned;
  int64_t first;
  int64_t cols;

  __device__ ThreadColumns(int64_t cols, bool aligned)
      : aligned(aligned),
        first(int64_t(blockIdx.x) * blockDim.x * kSize + threadIdx.x * (aligned ? kSize : 1)),
        cols(cols) {}

  // Aligned columns are all inside if the first one is.
  __device__ bool any() const { return first < cols; }
  __device__ int64_t At(int i) const { return first + i * (aligned ? 1 : int64_t(blockDim.x)); }
  __device__ bool Has(int i) const { return At(i) < cols; }

  __device__ Vector<Storage> Read(const Storage* row) const {
    if (aligned) return *reinterpret_cast<const Vector<Storage>*>(row + first);
    Vector<Storage> values{};
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (Has(i)) values.values[i] = row[At(i)];
    }
    return values;
  }
  __device__ void Write(const Vector<Storage>& values, Storage* row) const {
    if (aligned) {
      *reinterpret_cast<Vector<Storage>*>(row + first) = values;
      return;
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (Has(i)) row[At(i)] = values.values[i];
    }
  }
};

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_STORAGE_CUH_
