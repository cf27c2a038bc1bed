#ifndef STOPGRAD_CUDA_LIBRARY_H_
#define STOPGRAD_CUDA_LIBRARY_H_

#include <string>
#include <vector>

#include "core/export.h"

namespace stopgrad::cuda {

// What there is to run on, found without touching a device. Text is empty where there is nothing,
// and
// `..._missing` says why the kernels cannot run.
struct LibraryInfo {
  std::vector<std::string> devices;
  std::string devices_missing;
  int driver = 0;   // the CUDA version that the driver knows, 1000 major + 10 minor; 0: no driver
  int runtime = 0;  // that of the runtime in this library
  std::string cublas_lt;  // version and path
  std::string cublas_lt_missing;
};
STOPGRAD_EXPORT LibraryInfo GetLibraryInfo();

// The CUDA version that the driver knows, without initializing it; 0 where there is none.
STOPGRAD_EXPORT int GetDriver();

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_LIBRARY_H_
