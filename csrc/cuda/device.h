#ifndef STOPGRAD_CUDA_DEVICE_H_
#define STOPGRAD_CUDA_DEVICE_H_

#include <cstddef>

#include "core/plan.h"

// CUDA's cudaStream_t, so that adapters need none of its headers.
struct CUstream_st;

namespace stopgrad {

// On a GPU products are so fast that a gathered element, a few bytes of traffic, costs as much as
// hundreds of operations, and some launches more as much as billions: an H100 does 700 of them in a
// picosecond, in bfloat16, and moves 3.3 bytes.
inline constexpr GatherCosts kGpuGatherCosts{4000, 800, 400, 2e9};

// What decides whether a product is filled up (filling.h), in seconds.
struct FillingCosts {
  double per_flop;  // of the product as it is
  double per_filled_flop;
  double per_byte;  // that a pass over a matrix reads or writes
  double per_pass;
};
// On an H200, in 16 bits: cublasLt reached 120 to 140 TFLOP/s on matrices of odd rows, and 500 to
// 710 on others; our copies of such rows moved 1.2 TB/s.
inline constexpr FillingCosts kGpuFillingCosts{7.7e-15, 1.7e-15, 0.8e-12, 5e-6};

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

  // The same, for what can be done without: does not try hard.
  virtual void* TryAllocate(size_t bytes) { return Allocate(bytes); }

  // Memory that what is enqueued next may use until it is done, and then whoever asks for it next:
  // one block serves all, as work is done in order.
  void* Scratch(size_t bytes, bool tries_hard = true) {
    if (bytes > scratch_bytes_) {
      scratch_ = tries_hard ? Allocate(bytes) : TryAllocate(bytes);
      scratch_bytes_ = scratch_ != nullptr ? bytes : 0;
    }
    return scratch_;
  }

  // Whether products of float32 may round their factors to TF32.
  virtual bool allows_tf32() const = 0;

  // What it costs to leave rows out of a product by gathering the others.
  virtual GatherCosts gather_costs() const { return kGpuGatherCosts; }

  // What it costs to fill up a product, and saves.
  virtual FillingCosts filling_costs() const { return kGpuFillingCosts; }

  // Whether the same call must give the same bits in every process: nothing is chosen by a clock.
  virtual bool deterministic() const = 0;

 private:
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
};

}  // namespace stopgrad

#endif  // STOPGRAD_CUDA_DEVICE_H_
