// CUDA's kernel language on the CPU, for the tests. Included before everything else in a .cu file
// that a C++ compiler compiles.
#ifndef STOPGRAD_TESTS_CUDA_EMULATION_H_
#define STOPGRAD_TESTS_CUDA_EMULATION_H_

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <functional>

#include "core/status.h"

namespace stopgrad::cuda::emulation {

struct Thread {
  uint3 thread, block;
  dim3 block_dim, grid_dim;
};
extern Thread current;

// Runs the blocks of a grid one after the other. The threads of a block take turns, each running
// until it ends or waits for the others.
void RunGrid(const std::function<void()>& kernel, dim3 grid, dim3 block);
void WaitForBlock();

// An error that was asked for in the name of a call, or that the launch deserves.
cudaError_t ErrorOfLaunch(dim3 grid, dim3 block);

}  // namespace stopgrad::cuda::emulation

#define threadIdx (::stopgrad::cuda::emulation::current.thread)
#define blockIdx (::stopgrad::cuda::emulation::current.block)
#define blockDim (::stopgrad::cuda::emulation::current.block_dim)
#define gridDim (::stopgrad::cuda::emulation::current.grid_dim)
#undef __shared__
#define __shared__ static
inline void __syncthreads() { stopgrad::cuda::emulation::WaitForBlock(); }

inline double normcdf(double x) { return 0.5 * std::erfc(-x * 0.70710678118654752440); }

#include "cuda/launch.cuh"

namespace stopgrad::cuda {

template <typename Kernel>
Status Launch(const char* name, const Kernel& kernel, dim3 grid, dim3 block, cudaStream_t) {
  const cudaError_t error = emulation::ErrorOfLaunch(grid, block);
  if (error == cudaSuccess) emulation::RunGrid([&kernel] { kernel(); }, grid, block);
  return ToStatus(error, name);
}

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_TESTS_CUDA_EMULATION_H_
