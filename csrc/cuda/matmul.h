#ifndef STOPGRAD_CUDA_MATMUL_H_
#define STOPGRAD_CUDA_MATMUL_H_

#include <cublasLt.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"
#include "cuda/device.h"

namespace stopgrad::cuda {

// A batch of matrices in memory as cublasLt sees them, column by column: neighbouring columns are
// `ld` elements apart, neighbouring matrices `stride`.
struct MatmulFactor {
  const void* data = nullptr;
  cublasOperation_t operation = CUBLAS_OP_N;
  int64_t ld = 0;
  int64_t stride = 0;
};

// D = alpha op(A) op(B) + beta D,  op(A): m x k,  op(B): k x n,  none of them empty.
struct Matmul {
  DType dtype;
  int64_t m;
  int64_t n;
  int64_t k;
  int64_t batch = 1;
  double alpha = 1;
  double beta = 0;
  MatmulFactor a;
  MatmulFactor b;
  void* d = nullptr;
  int64_t ldd = 0;
  int64_t stride_d = 0;
  bool repeats = true;  // false where the sizes come from numbers, and will be others the next time
};

// Where the results of a product go.
struct MatmulOutputs {
  void* d = nullptr;
  void* aux = nullptr;   // of D's shape
  void* bias = nullptr;  // a gradient
};
// One way to get them.
struct MatmulWay {
  // What cublasLt does with the product.
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  bool writes_aux = false;  // the product goes to aux, and `then` makes D of it
  // What kernels of ours do afterwards; null where there is nothing to do. It is also called with
  // scratch memory, to find out which way is the fastest.
  std::function<Status(const MatmulOutputs&)> then;
};
// What else is to be done with D, or with a factor.
struct MatmulEpilogue {
  const void* bias = nullptr;  // read
  void* bias_gradient = nullptr;
  void* aux = nullptr;
  int64_t aux_stride = 0;
  std::vector<MatmulWay> ways{{}};  // first those that leave more to cublasLt, if it can
};

// Enqueues the product by the algorithm that was fastest when a product like it first ran. The
// candidates, unless SetSearch says otherwise cublasLt's best eight for each way, are then timed,
// which waits for the device and writes to scratch memory only; none is begun after 40 ms. Nothing
// is timed where results must not depend on it, the stream is being captured, the sizes do not
// repeat, or many others were timed before: then cublasLt's first proposal for the first way runs.
Status Enqueue(const Matmul& matmul, const MatmulEpilogue& epilogue, Device& device);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_MATMUL_H_
