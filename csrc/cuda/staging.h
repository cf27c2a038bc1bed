#ifndef STOPGRAD_CUDA_STAGING_H_
#define STOPGRAD_CUDA_STAGING_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "core/status.h"

namespace stopgrad::cuda {

// Enqueues a copy of host memory, which may change once this returns, to the current device. Goes
// through page-locked memory of the process: from any other, CUDA makes the host wait for the
// stream where there are more than 64 KiB. Not while the stream is captured: a graph would read the
// page-locked memory again, when others use it.
Status CopyFromHost(void* to, const void* from, size_t bytes, cudaStream_t stream);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_STAGING_H_
