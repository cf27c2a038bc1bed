#include <algorithm>

#include "cuda/activation_functions.cuh"
#include "cuda/elementwise.h"
#include "cuda/launch.cuh"
#include "cuda/memory.h"
#include "cuda/rows.cuh"
#include "cuda/storage.cuh"

namespace stopgrad::cuda {

namespace {

template <typename Storage, int size, Activation activation>
struct DyPassKernel {
  using Number = typename Math<Storage>::Number;
  using Function = ActivationFunction<activation, Math<Storage>>;
  using Values = Vector<Storage, size>;
  static constexpr int kResidentBlocks = kResidentPasses<Storage>;

  RowBlocks blocks;
  int64_t cols;
  int64_t row_stride;
  int64_t place_scale;  // what to multiply the places with
  const Storage* dy;
  const Storage* saved;
  const int64_t* places;
  const uint8_t* active;
  const double* weights;
  Storage* dz;
  Number* partial;  // [blocks, cols]: the sum of each block's rows

  __device__ void operator()() const {
    const int64_t col = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * size;
    const bool any = col < cols;
    Number sums[size] = {};
    const int64_t end = any ? blocks.End() : 0;
    for (int64_t row = blocks.Begin(); row < end; row += kRowsInFlight * blockDim.y) {
      // What is not read is zeros, and so is what comes of it: no derivative is infinite at 0.
      Values dys[kRowsInFlight] = {}, saveds[kRowsInFlight] = {};
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        const int64_t r = row + u * int64_t(blockDim.y);
        if (r >= end || (active != nullptr && !active[r])) continue;
        const int64_t place = (places != nullptr ? places[r] * place_scale : r * row_stride) + col;
        dys[u] = Read<Storage, size>(dy + place);
        if constexpr (activation != Activation::kLinear) {
          saveds[u] = Read<Storage, size>(saved + place);
        }
      }
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        const int64_t r = row + u * int64_t(blockDim.y);
        if (r >= end) break;
        Number values[size];
        Load(dys[u], values);
        if (weights != nullptr) {
          const auto weight = Number(weights[r]);
          for (Number& value : values) value *= weight;
        }
        if constexpr (activation != Activation::kLinear) {
          Number at[size];
          Load(saveds[u], at);
          for (int i = 0; i < size; ++i) values[i] *= Function::Derivative(at[i]);
        }
        for (int i = 0; i < size; ++i) sums[i] += values[i];
        if (dz == nullptr) continue;
        Values results;
        Store(values, &results);
        Write(results, dz + r * cols + col);
      }
    }
    if (partial == nullptr) return;

    // A tree over the block's threads below each other.
    __shared__ Number shared[size][kThreads];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    for (int i = 0; i < size; ++i) shared[i][thread] = sums[i];
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) {
        for (int i = 0; i < size; ++i) shared[i][thread] += shared[i][thread + half * blockDim.x];
      }
    }
    if (threadIdx.y != 0 || !any) return;
    for (int i = 0; i < size; ++i) partial[blockIdx.y * cols + col + i] = shared[i][thread];
  }
};

// dbias[j] = scale sum_i partial[i, j], for the columns of a region, in double.
template <typename Storage>
struct SumPartialsKernel {
  using Number = typename Math<Storage>::Number;
  static constexpr int kResidentBlocks = 1;

  const Number* partial;
  Storage* dbias;
  int64_t blocks;
  int64_t cols;       // of partial
  int64_t first_col;  // of dbias, where partial begins
  int64_t count;      // how many columns
  int parts;          // real numbers in an element
  int64_t begin, step;
  const int64_t* list;
  double scale;

  __device__ void operator()() const {
    __shared__ double shared[kThreads];
    const int64_t index = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t element = index / parts;
    const int64_t col =
        index < count
            ? (list != nullptr ? list[element] : begin + element * step) * parts + index % parts
            : first_col;
    double sum = 0;
    for (int64_t i = threadIdx.y; i < blocks; i += blockDim.y) {
      sum += partial[i * cols + col - first_col];
    }
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    shared[thread] = sum;
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) shared[thread] += shared[thread + half * blockDim.x];
    }
    if (threadIdx.y == 0 && index < count) {
      Store(Number(shared[thread] * scale), &dbias[col]);
    }
  }
};

// How many rows a thread sums. Few would make many sums to be added at the end. It depends on the
// shape and the alignment alone, and so do the results.
int64_t RowsToSum(int64_t rows, dim3 block, int64_t blocks_along_row) {
  constexpr int64_t kMostSums = 1024;
  return std::max(RowsPerThread(rows, block, blocks_along_row, /*most=*/16),
                  CeilDiv(CeilDiv(rows, block.y), kMostSums));
}

template <typename Storage, int size, Activation activation>
Status EnqueueTyped(const DyPass& pass, int parts, Device& device) {
  using Number = typename Math<Storage>::Number;
  DyPassKernel<Storage, size, activation> kernel{};
  kernel.cols = pass.cols * parts;
  kernel.row_stride = pass.row_stride * parts;
  kernel.place_scale = parts;
  kernel.dy = static_cast<const Storage*>(pass.dy);
  kernel.saved = static_cast<const Storage*>(pass.saved);
  kernel.places = pass.places;
  kernel.active = pass.active;
  kernel.weights = pass.weights;
  kernel.dz = static_cast<Storage*>(pass.dz);
  const dim3 block = BlockOver(CeilDiv(kernel.cols, size));
  const int64_t blocks_along_row = CeilDiv(kernel.cols, int64_t(size) * block.x);
  kernel.blocks = RowBlocks(pass.rows, block, RowsToSum(pass.rows, block, blocks_along_row));
  const dim3 grid(blocks_along_row, kernel.blocks.count());
  if (pass.dbias != nullptr) {
    const size_t bytes = grid.y * kernel.cols * sizeof(Number);
    kernel.partial = static_cast<Number*>(device.Scratch(bytes));
    if (kernel.partial == nullptr) return OutOfMemory("the sums of a bias gradient", bytes);
  }
  Status status = Launch("the kernel of the pass over dy", kernel, grid, block, device.stream());
  if (!status.ok() || pass.dbias == nullptr) return status;

  const Selection& region = *pass.bias_region;
  SumPartialsKernel<Storage> sum{};
  sum.partial = kernel.partial;
  sum.dbias = static_cast<Storage*>(pass.dbias);
  sum.blocks = grid.y;
  sum.cols = kernel.cols;
  sum.first_col = pass.first_col * parts;
  sum.count = region.Count(pass.bias_cols) * parts;
  sum.parts = parts;
  sum.begin = region.At(0);
  sum.step = region.step;
  sum.scale = pass.bias_scale;
  if (region.kind == Selection::Kind::kList) {
    status = Upload(region.list, device, &sum.list);
    if (!status.ok()) return status;
  }
  const dim3 sum_block = BlockOver(sum.count);
  return Launch("the kernel of a bias gradient", sum, dim3(CeilDiv(sum.count, sum_block.x)),
                sum_block, device.stream());
}

}  // namespace

Status Enqueue(const DyPass& pass, Device& device) {
  if (pass.rows == 0 || pass.cols == 0) return Status();
  return VisitReal(pass.dtype, [&](auto storage, int parts) {
    using Storage = decltype(storage);
    const int64_t strides = pass.cols * parts | pass.row_stride * parts;
    const bool aligned = strides % kPerAccess<Storage> == 0 && IsAligned(pass.dy) &&
                         IsAligned(pass.saved) && IsAligned(pass.dz);
    return VisitActivation(pass.activation, [&](auto activation) {
      return aligned ? EnqueueTyped<Storage, kPerAccess<Storage>, activation()>(pass, parts, device)
                     : EnqueueTyped<Storage, 1, activation()>(pass, parts, device);
    });
  });
}

}  // namespace stopgrad::cuda
