#include "cuda/library.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <sstream>

#include "cuda/cublas_lt.h"
#include "cuda/device_kind.h"
#include "cuda/status.h"

namespace stopgrad::cuda {

namespace {

std::string VersionText(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Whether code for these architectures, as CMake writes them, runs on a device: machine code of the
// same major capability and no larger minor one, or PTX of no larger capability. What is no number
// is not known.
bool RunsOn(const DeviceKind& device) {
  std::istringstream architectures(STOPGRAD_CUDA_ARCHITECTURES);
  std::string word;
  while (architectures >> word) {
    const int number = std::atoi(word.c_str());
    if (number == 0) return true;
    const int capability = 10 * device.major + device.minor;
    const bool has_code = word.find("-virtual") == std::string::npos;
    const bool has_ptx = word.find("-real") == std::string::npos;
    if (has_code && number / 10 == device.major && number <= capability) return true;
    if (has_ptx && number <= capability) return true;
  }
  return false;
}

}  // namespace

int GetDriver() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

LibraryInfo GetLibraryInfo() {
  LibraryInfo info;
  cudaRuntimeGetVersion(&info.runtime);
  info.driver = GetDriver();
  int count = 0;
  if (info.driver == 0) {
    info.devices_missing = "there is no NVIDIA driver";
  } else if (info.driver / 1000 < info.runtime / 1000) {
    info.devices_missing = "the NVIDIA driver knows CUDA " + VersionText(info.driver) +
                           " and the kernels were built with " + VersionText(info.runtime) +
                           "; install a newer driver, 580 or later for CUDA 13";
  } else if (const Status status = ToStatus(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
             !status.ok()) {
    info.devices_missing = status.message();
  }
  for (int device = 0; device < count; ++device) {
    const DeviceKind* kind = nullptr;
    if (!KindOf(device, &kind).ok()) continue;
    info.devices.push_back(kind->name);
    // TensorFlow would place the ops on it all the same.
    if (!RunsOn(*kind)) {
      info.devices_missing = "the kernels were built for " STOPGRAD_CUDA_ARCHITECTURES ", which " +
                             kind->name +
                             " does not run; set CUDAARCHS=" + std::to_string(kind->major) +
                             std::to_string(kind->minor) + " and install again";
    }
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
