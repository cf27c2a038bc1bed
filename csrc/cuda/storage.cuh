#ifndef STOPGRAD_CUDA_STORAGE_CUH_
#define STOPGRAD_CUDA_STORAGE_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>

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

// What one access of a thread moves, where rows are aligned for it.
constexpr int kBytesPerAccess = 16;
template <typename Storage>
constexpr int kPerAccess = kBytesPerAccess / static_cast<int>(sizeof(Storage));

template <typename Storage, int size>
struct alignas(size * sizeof(Storage)) Vector {
  Storage values[size];
};

template <typename Storage, int size>
__device__ Vector<Storage, size> Read(const Storage* from) {
  return *reinterpret_cast<const Vector<Storage, size>*>(from);
}
template <typename Storage, int size>
__device__ void Write(const Vector<Storage, size>& values, Storage* to) {
  *reinterpret_cast<Vector<Storage, size>*>(to) = values;
}

template <typename Storage, int size, typename Number>
__device__ void Load(const Vector<Storage, size>& vector, Number (&numbers)[size]) {
#pragma unroll
  for (int i = 0; i < size; ++i) numbers[i] = Load(vector.values[i]);
}

// Two numbers of 16 bits are one conversion.
__device__ inline __half2 Pair(float first, float second, Half) {
  return __floats2half2_rn(first, second);
}
__device__ inline __nv_bfloat162 Pair(float first, float second, BFloat16) {
  return __floats2bfloat162_rn(first, second);
}

template <typename Storage, int size, typename Number>
__device__ void Store(const Number (&numbers)[size], Vector<Storage, size>* vector) {
  if constexpr (sizeof(Storage) == 2 && size % 2 == 0) {
#pragma unroll
    for (int i = 0; i < size; i += 2) {
      const auto pair = Pair(numbers[i], numbers[i + 1], Storage());
      std::memcpy(&vector->values[i], &pair, sizeof pair);
    }
  } else {
#pragma unroll
    for (int i = 0; i < size; ++i) Store(numbers[i], &vector->values[i]);
  }
}

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_STORAGE_CUH_
