#ifndef STOPGRAD_CUDA_DEVICE_KIND_H_
#define STOPGRAD_CUDA_DEVICE_KIND_H_

#include <string>

#include "core/status.h"

namespace stopgrad::cuda {

// What is known of a device. It does not change, and asking the driver takes milliseconds.
struct DeviceKind {
  int ordinal;
  int major;  // of its compute capability
  int minor;
  std::string name;  // with the compute capability, on one line: what an algorithm was chosen for

  // What NVIDIA recommends for cublasLt.
  size_t workspace_bytes() const { return major >= 9 ? 32 << 20 : 4 << 20; }
};

// A device, without making it current or anything on it.
Status KindOf(int ordinal, const DeviceKind** kind);

// The device that is current in this thread.
Status CurrentDevice(const DeviceKind** kind);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_DEVICE_KIND_H_
