#ifndef STOPGRAD_CPU_OPENBLAS_H_
#define STOPGRAD_CPU_OPENBLAS_H_

#include <complex>
#include <cstdint>
#include <string>

#include "core/export.h"
#include "core/status.h"

namespace stopgrad::cpu {

// The four products of OpenBLAS, opened from the copy beside this library so that its settings
// touch nobody else's OpenBLAS.
struct OpenBlas {
  // CBLAS's ?gemm with 64-bit sizes; alpha and beta by value for real types, by address for
  // complex.
  template <typename Scalar>
  using Gemm = void (*)(int order, int transpose_a, int transpose_b, int64_t m, int64_t n,
                        int64_t k, Scalar alpha, const void* a, int64_t lda, const void* b,
                        int64_t ldb, Scalar beta, void* c, int64_t ldc);
  Gemm<float> sgemm = nullptr;
  Gemm<double> dgemm = nullptr;
  Gemm<const void*> cgemm = nullptr;
  Gemm<const void*> zgemm = nullptr;
  std::string description;  // version and the processor it chose its kernels for
  Status status;            // why it could not be opened, if so
};

// Opens it at the first call.
STOPGRAD_EXPORT const OpenBlas& GetOpenBlas();

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_OPENBLAS_H_
