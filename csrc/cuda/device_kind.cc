#include "cuda/device_kind.h"

#include <cuda_runtime_api.h>

#include <map>
#include <memory>
#include <mutex>

#include "cuda/status.h"

namespace stopgrad::cuda {

Status CurrentDevice(const DeviceKind** kind) {
  int ordinal = 0;
  if (Status status = ToStatus(cudaGetDevice(&ordinal), "cudaGetDevice"); !status.ok()) {
    return status;
  }
  return KindOf(ordinal, kind);
}

Status KindOf(int ordinal, const DeviceKind** kind) {
  static std::mutex mutex;
  static auto* kinds = new std::map<int, std::unique_ptr<DeviceKind>>;
  std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<DeviceKind>& known = (*kinds)[ordinal];
  if (known == nullptr) {
    cudaDeviceProp properties;
    Status status =
        ToStatus(cudaGetDeviceProperties(&properties, ordinal), "cudaGetDeviceProperties");
    if (!status.ok()) return status;
    known = std::make_unique<DeviceKind>();
    known->ordinal = ordinal;
    known->major = properties.major;
    known->minor = properties.minor;
    known->name = std::string(properties.name) + " (compute capability " +
                  std::to_string(properties.major) + "." + std::to_string(properties.minor) + ")";
  }
  *kind = known.get();
  return Status();
}

}  // namespace stopgrad::cuda
