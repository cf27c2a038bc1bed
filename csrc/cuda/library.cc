#include "cuda/library.h"

#include <cuda_runtime_api.h>

#include "cuda/cublas_lt.h"
#include "cuda/device_kind.h"
#include "cuda/status.h"

namespace stopgrad::cuda {

namespace {

std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

LibraryInfo GetLibraryInfo() {
  LibraryInfo info;
  cudaRuntimeGetVersion(&info.runtime);
  cudaDriverGetVersion(&info.driver);
  int count = 0;
  if (info.driver == 0) {
    info.devices_missing = "there is no NVIDIA driver";
  } else if (info.driver / 1000 < info.runtime / 1000) {
    info.devices_missing = "the NVIDIA driver knows CUDA " + VersionText(info.driver) +
                           " and the kernels were built with " + VersionText(info.runtime) +
                           "; install a newer driver";
  } else if (const Status status = ToStatus(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
             !status.ok()) {
    info.devices_missing = status.message();
  }
  for (int device = 0; device < count; ++device) {
    const DeviceKind* kind = nullptr;
    if (KindOf(device, &kind).ok()) info.devices.push_back(kind->name);
  }
  const CublasLt* lt = nullptr;
  const Status status = OpenCublasLt(&lt);
  if (status.ok()) {
    info.cublas_lt = std::to_string(lt->GetVersion()) + ", " + lt->path;
  } else {
    info.cublas_lt_missing = status.message();
  }
  return info;
}

}  // namespace stopgrad::cuda
