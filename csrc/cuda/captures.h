#ifndef STOPGRAD_CUDA_CAPTURES_H_
#define STOPGRAD_CUDA_CAPTURES_H_

#include <cuda_runtime_api.h>

namespace stopgrad::cuda {

// While other threads may be capturing a graph, CUDA refuses calls that could wait for one, and
// ends their capture. While this lives, it does not: what is called then waits for no stream but
// the caller's, and only where that is not captured.
class LeavesCapturesAlone {
 public:
  LeavesCapturesAlone() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~LeavesCapturesAlone() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  LeavesCapturesAlone(const LeavesCapturesAlone&) = delete;
  LeavesCapturesAlone& operator=(const LeavesCapturesAlone&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_CAPTURES_H_
