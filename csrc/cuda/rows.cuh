#ifndef STOPGRAD_CUDA_ROWS_CUH_
#define STOPGRAD_CUDA_ROWS_CUH_

// What the kernels over rows of elements have in common. A complex row is a row of twice as many
// real numbers there, since nothing mixes their parts.

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/status.h"
#include "cuda/launch.cuh"
#include "cuda/storage.cuh"

namespace stopgrad::cuda {

// Rows of which a thread of a pass has the loads in flight before it computes the first.
constexpr int kRowsInFlight = 2;

// How many blocks of a pass must fit on a multiprocessor: while some compute, others load.
template <typename Storage>
constexpr int kResidentPasses = sizeof(Storage) == 8 ? 2 : 4;

// Which rows a block works on, neighbours, of which each of its threads below each other takes
// every `blockDim.y`-th.
struct RowBlocks {
  int64_t rows;
  int64_t rows_per_block;

  RowBlocks() = default;
  // Blocks whose threads have `rows_per_thread` rows, or more where there would be too many blocks.
  RowBlocks(int64_t rows, dim3 block, int64_t rows_per_thread)
      : rows(rows),
        rows_per_block(block.y *
                       std::max(rows_per_thread, CeilDiv(CeilDiv(rows, block.y), kMaxGridYZ))) {}
  int64_t count() const { return CeilDiv(rows, rows_per_block); }

  __device__ int64_t Begin() const { return blockIdx.y * rows_per_block + threadIdx.y; }
  __device__ int64_t End() const {
    const int64_t end = (blockIdx.y + int64_t(1)) * rows_per_block;
    return end < rows ? end : rows;
  }
};

// How many rows to give to a thread: many make what a block does once a small part, and few make
// enough blocks to keep the device busy.
inline int64_t RowsPerThread(int64_t rows, dim3 block, int64_t blocks_along_row, int64_t most) {
  constexpr int64_t kEnoughBlocks = 1024;
  const int64_t rows_of_threads = CeilDiv(rows, block.y);
  return std::clamp<int64_t>(rows_of_threads * blocks_along_row / kEnoughBlocks, 1, most);
}

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
