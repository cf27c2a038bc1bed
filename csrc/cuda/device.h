#ifndef STOPGRAD_CUDA_DEVICE_H_
#define STOPGRAD_CUDA_DEVICE_H_

#include <cstddef>

// CUDA's cudaStream_t, so that adapters need none of its headers.
struct CUstream_st;

namespace stopgrad {

// What a CUDA kernel borrows from its caller, on the device that is current in the calling thread.
// Kernels have no stream and no memory of their own.
class Device {
 public:
  virtual ~Device() = default;

  // Where all work is enqueued, in order. Nothing waits for it.
  virtual CUstream_st* stream() const = 0;

  // Memory for work on the stream, aligned to 256 bytes, which nobody else gets before what the
  // kernel enqueues is done; nullptr if there is none.
  virtual void* Allocate(size_t bytes) = 0;

  // Whether products of float32 may round their factors to TF32.
  virtual bool allows_tf32() const = 0;

  // Whether the same call must give the same bits in every process: nothing is chosen by a clock.
  virtual bool deterministic() const = 0;
};

}  // namespace stopgrad

#endif  // STOPGRAD_CUDA_DEVICE_H_
