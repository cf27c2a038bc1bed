#ifndef STOPGRAD_CUDA_LAUNCH_CUH_
#define STOPGRAD_CUDA_LAUNCH_CUH_

#include <cuda_runtime.h>

#include <cstdint>

#include "core/status.h"
#include "cuda/status.h"

namespace stopgrad::cuda {

// A kernel is a struct: its members are the parameters, and `operator()` is what a thread does.
// `kResidentBlocks` says how many blocks must fit on a multiprocessor, which limits the registers.
// All have blocks of this many threads, along a row and over several rows.
constexpr int kThreads = 256;
// Of them along a row at most, so that blocks stand over several rows even where those are long.
constexpr int kThreadsAlongRow = 32;

// The largest extent of a grid along y and z.
constexpr int64_t kMaxGridYZ = 65535;

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A block over rows of `width` elements, or groups of elements, each of which gets a thread.
inline dim3 BlockOver(int64_t width) {
  unsigned along_row = 1;
  while (along_row < width && along_row < kThreadsAlongRow) along_row *= 2;
  return dim3(along_row, kThreads / along_row);
}

#ifdef __CUDACC__
#if CUDART_VERSION / 1000 != __CUDACC_VER_MAJOR__
#error "the headers of the CUDA runtime are of another release than nvcc"
#endif

template <typename Kernel>
__global__ void __launch_bounds__(kThreads, Kernel::kResidentBlocks) Run(const Kernel kernel) {
  kernel();
}

// Enqueues the kernel; `name` stands for it in a message.
template <typename Kernel>
Status Launch(const char* name, const Kernel& kernel, dim3 grid, dim3 block, cudaStream_t stream) {
  // Not <<<>>>: its errors have to be asked for, and those of others come with them.
  void* arguments[] = {const_cast<Kernel*>(&kernel)};
  return ToStatus(cudaLaunchKernel(reinterpret_cast<const void*>(&Run<Kernel>), grid, block,
                                   arguments, /*sharedMem=*/0, stream),
                  name);
}
#else
// How the tests run kernels where there is no GPU: block by block, on the CPU.
template <typename Kernel>
Status Launch(const char* name, const Kernel& kernel, dim3 grid, dim3 block, cudaStream_t stream);
#endif

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_LAUNCH_CUH_
