#ifndef STOPGRAD_CUDA_STATUS_H_
#define STOPGRAD_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include <string>

#include "core/status.h"

namespace stopgrad::cuda {

// The status of a call to the CUDA runtime, which `call` names in the message.
inline Status ToStatus(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return Status();
  const StatusCode code =
      error == cudaErrorMemoryAllocation ? StatusCode::kResourceExhausted : StatusCode::kInternal;
  return Status(code, std::string(call) + ": " + cudaGetErrorString(error) + " (" +
                          cudaGetErrorName(error) + ")");
}

inline Status OutOfMemory(const char* what, size_t bytes) {
  return Status(StatusCode::kResourceExhausted, "no memory on the GPU for " + std::string(what) +
                                                    ": " + std::to_string(bytes) + " bytes");
}

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_STATUS_H_
