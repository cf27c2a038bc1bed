#ifndef STOPGRAD_CUDA_LIBRARY_H_
#define STOPGRAD_CUDA_LIBRARY_H_

#include <string>
#include <vector>

#include "core/export.h"

namespace stopgrad::cuda {

// What there is to run on. Text is empty where there is nothing, and then `..._missing` says why.
struct LibraryInfo {
  std::vector<std::string> devices;
  std::string devices_missing;
  int driver = 0;   // the CUDA version that the driver knows, 1000 major + 10 minor; 0: no driver
  int runtime = 0;  // that of the runtime in this library
  std::string cublas_lt;  // version and path
  std::string cublas_lt_missing;
};
STOPGRAD_EXPORT LibraryInfo GetLibraryInfo();

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_LIBRARY_H_
