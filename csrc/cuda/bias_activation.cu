#include <algorithm>

#include "cuda/activation_functions.cuh"
#include "cuda/elementwise.h"
#include "cuda/launch.cuh"
#include "cuda/rows.cuh"
#include "cuda/storage.cuh"

namespace stopgrad::cuda {

namespace {

template <typename Storage, Activation activation>
struct BiasActivationKernel {
  using Accumulator = typename Math<Storage>::Number;
  using Function = ActivationFunction<activation, Math<Storage>>;

  int64_t rows;
  int64_t cols;
  bool aligned;
  const Storage* x;
  const Storage* bias;
  Storage* z;
  Storage* y;

  __device__ void operator()() const {
    const ThreadColumns<Storage> columns(cols, aligned);
    if (!columns.any()) return;
    Vector<Storage> bias_values{};
    if (bias != nullptr) bias_values = columns.Read(bias);
    const int64_t step = int64_t(gridDim.y) * blockDim.y;
    const int64_t first = int64_t(blockIdx.y) * blockDim.y + threadIdx.y;
    for (int64_t row = first; row < rows; row += step * kRowsInFlight) {
      Vector<Storage> values[kRowsInFlight];
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        const int64_t r = row + u * step;
        if (r < rows) values[u] = columns.Read(x + r * cols);
      }
#pragma unroll
      for (int u = 0; u < kRowsInFlight; ++u) {
        const int64_t r = row + u * step;
        if (r >= rows) break;
        Vector<Storage> sums, results;
#pragma unroll
        for (int i = 0; i < columns.kSize; ++i) {
          Accumulator value = Load(values[u].values[i]);
          if (bias != nullptr) value += Load(bias_values.values[i]);
          Store(value, &sums.values[i]);
          Store(Function::Value(value), &results.values[i]);
        }
        if (z != nullptr) columns.Write(sums, z + r * cols);
        columns.Write(results, y + r * cols);
      }
    }
  }
};

template <typename Storage, Activation activation>
Status EnqueueTyped(const BiasActivation& work, Device& device) {
  constexpr int kSize = Vector<Storage>::kSize;
  BiasActivationKernel<Storage, activation> kernel{};
  kernel.rows = work.rows;
  kernel.cols = work.cols;
  kernel.x = static_cast<const Storage*>(work.x);
  kernel.bias = static_cast<const Storage*>(work.bias);
  kernel.z = static_cast<Storage*>(work.z);
  kernel.y = static_cast<Storage*>(work.y);
  kernel.aligned = work.cols % kSize == 0 && IsAligned(work.x) && IsAligned(work.bias) &&
                   IsAligned(work.z) && IsAligned(work.y);
  const int64_t width = CeilDiv(work.cols, kSize);
  const dim3 block = BlockOver(width);
  const int64_t blocks_of_rows = CeilDiv(work.rows, int64_t(block.y) * kRowsInFlight);
  const dim3 grid(CeilDiv(width, block.x), std::min(blocks_of_rows, kMaxGridYZ));
  return Launch("the kernel of bias and activation", kernel, grid, block, device.stream());
}

}  // namespace

Status Enqueue(const BiasActivation& work, Device& device) {
  if (work.rows == 0 || work.cols == 0) return Status();
  return VisitReal(work.dtype, [&](auto storage, int parts) {
    BiasActivation real = work;
    real.cols *= parts;
    return VisitActivation(work.activation, [&](auto activation) {
      return EnqueueTyped<decltype(storage), activation()>(real, device);
    });
  });
}

}  // namespace stopgrad::cuda
