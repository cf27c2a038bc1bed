#ifndef STOPGRAD_CUDA_CUBLAS_LT_H_
#define STOPGRAD_CUDA_CUBLAS_LT_H_

#include <cublasLt.h>

#include <string>

#include "core/status.h"

namespace stopgrad::cuda {

// The functions of cublasLt, which is opened when the first product runs: the package installs and
// loads without it.
struct CublasLt {
  decltype(&cublasLtCreate) Create;
  decltype(&cublasLtGetVersion) GetVersion;
  decltype(&cublasLtGetStatusName) GetStatusName;
  decltype(&cublasLtMatmul) Matmul;
  decltype(&cublasLtMatmulAlgoCheck) AlgoCheck;
  decltype(&cublasLtMatmulAlgoGetHeuristic) AlgoGetHeuristic;
  decltype(&cublasLtMatmulDescCreate) DescCreate;
  decltype(&cublasLtMatmulDescDestroy) DescDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) DescSetAttribute;
  decltype(&cublasLtMatrixLayoutCreate) LayoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) LayoutDestroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) LayoutSetAttribute;
  decltype(&cublasLtMatmulPreferenceCreate) PreferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) PreferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) PreferenceSetAttribute;

  std::string path;  // of the library

  Status ToStatus(cublasStatus_t status, const char* call) const;
};

// The library, version 12 or 13: the file that the environment variable STOPGRAD_CUBLASLT names, or
// the one that the process has already, or the loader's, or that of NVIDIA's Python packages beside
// this one. Where there is none, an error says what to install.
Status OpenCublasLt(const CublasLt** library);

// The library's handle for a device, which lives as long as the process.
Status HandleFor(const CublasLt& library, int device, cublasLtHandle_t* handle);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_CUBLAS_LT_H_
