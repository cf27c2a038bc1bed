#ifndef STOPGRAD_TESTS_CUDA_HOOKS_H_
#define STOPGRAD_TESTS_CUDA_HOOKS_H_

#include <cstdint>
#include <string>

namespace stopgrad::cuda::emulation {

// What tests set and read.
struct Hooks {
  int compute_capability = 9;    // the major number of the device's
  bool capturing = false;        // what cudaStreamIsCapturing says
  bool others_capture = false;   // other threads do, in the mode that forbids calls that wait
  std::string failing_call;      // the call that fails next, and how
  int calls_before_failing = 0;  // of that call, which do not fail
  int error = 0;
  int64_t launches = 0;
  int64_t synchronizations = 0;
  int64_t locked_blocks = 0;  // of host memory
  int64_t bytes_in_use = 0;
  int64_t most_bytes_in_use = 0;
  int64_t writes_outside = 0;  // of an allocation, found when it was freed
};
extern Hooks hooks;

}  // namespace stopgrad::cuda::emulation

#endif  // STOPGRAD_TESTS_CUDA_HOOKS_H_
