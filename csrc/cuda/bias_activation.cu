#include "cuda/activation_functions.cuh"
#include "cuda/elementwise.h"
#include "cuda/launch.cuh"
#include "cuda/rows.cuh"
#include "cuda/storage.cuh"

namespace stopgrad::cuda {

namespace {

template <typename Storage, int size, Activation activation>
struct BiasActivationKernel {
  using Number = typename Math<Storage>::Number;
  using Function = ActivationFunction<activation, Math<Storage>>;
  static constexpr int kResidentBlocks = kResidentPasses<Storage>;

  RowBlocks blocks;
  int64_t cols;
  const Storage* x;
  const Storage* bias;
  Storage* z;
  Storage* y;

  __device__ void operator()() const {
    const int64_t col = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * size;
    if (col >= cols) return;
    Number bias_values[size];
    if (bias != nullptr) {
      Load(Read<Storage, size>(bias + col), bias_values);
    } else {
      for (Number& value : bias_values) value = Number(-0.0);  // which changes nothing, not even 0
    }
    const int64_t end = blocks.End();
    for (int64_t row = blocks.Begin(); row < end; row += kRowsInFlight * blockDim.y) {
      Vector<Storage, size> xs[kRowsInFlight];
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        const int64_t r = row + u * int64_t(blockDim.y);
        if (r < end) xs[u] = Read<Storage, size>(x + r * cols + col);
      }
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        const int64_t r = row + u * int64_t(blockDim.y);
        if (r >= end) break;
        Number numbers[size];
        Load(xs[u], numbers);
        for (int i = 0; i < size; ++i) numbers[i] += bias_values[i];
        Vector<Storage, size> results;
        if (z != nullptr) {
          Store(numbers, &results);
          Write(results, z + r * cols + col);
        }
        for (Number& number : numbers) number = Function::Value(number);
        Store(numbers, &results);
        Write(results, y + r * cols + col);
      }
    }
  }
};

template <typename Storage, int size, Activation activation>
Status EnqueueTyped(const BiasActivation& work, Device& device) {
  BiasActivationKernel<Storage, size, activation> kernel{};
  const dim3 block = BlockOver(CeilDiv(work.cols, size));
  const int64_t blocks_along_row = CeilDiv(work.cols, int64_t(size) * block.x);
  kernel.blocks =
      RowBlocks(work.rows, block, RowsPerThread(work.rows, block, blocks_along_row, /*most=*/8));
  kernel.cols = work.cols;
  kernel.x = static_cast<const Storage*>(work.x);
  kernel.bias = static_cast<const Storage*>(work.bias);
  kernel.z = static_cast<Storage*>(work.z);
  kernel.y = static_cast<Storage*>(work.y);
  const dim3 grid(blocks_along_row, kernel.blocks.count());
  return Launch("the kernel of bias and activation", kernel, grid, block, device.stream());
}

}  // namespace

Status Enqueue(const BiasActivation& work, Device& device) {
  if (work.rows == 0 || work.cols == 0) return Status();
  return VisitReal(work.dtype, [&](auto storage, int parts) {
    using Storage = decltype(storage);
    BiasActivation real = work;
    real.cols *= parts;
    const bool aligned = real.cols % kPerAccess<Storage> == 0 && IsAligned(work.x) &&
                         IsAligned(work.bias) && IsAligned(work.z) && IsAligned(work.y);
    return VisitActivation(work.activation, [&](auto activation) {
      return aligned ? EnqueueTyped<Storage, kPerAccess<Storage>, activation()>(real, device)
                     : EnqueueTyped<Storage, 1, activation()>(real, device);
    });
  });
}

}  // namespace stopgrad::cuda
