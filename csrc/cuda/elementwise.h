#ifndef STOPGRAD_CUDA_ELEMENTWISE_H_
#define STOPGRAD_CUDA_ELEMENTWISE_H_

#include <cstdint>

#include "core/activation.h"
#include "core/dtype.h"
#include "core/export.h"
#include "core/selection.h"
#include "core/status.h"
#include "cuda/device.h"

namespace stopgrad::cuda {

// z = x + bias,  y = f(z) over dense [rows, cols]. bias and z may be null; x may be y or z.
struct BiasActivation {
  DType dtype;
  Activation activation;
  int64_t rows;
  int64_t cols;
  const void* x;
  const void* bias;
  void* z;
  void* y;
};
STOPGRAD_EXPORT Status Enqueue(const BiasActivation& work, Device& device);

// dz = w dy f'(saved),  dbias = scale sum_i dz[i], in one pass over the rows of dy, which lie
// `row_stride` apart; dz is dense. dz and dbias may be null. The arrays are in device memory. A sum
// is taken in an order that depends on the shape and the arrays' alignment alone.
struct DyPass {
  DType dtype;
  Activation activation;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  const void* dy;
  const void* saved;
  const int64_t* places;  // of the rows, in elements; null: one behind the other
  const uint8_t* active;  // 0 for each row that is zeros, whatever is there; null: all are active
  const double* weights;  // w of the rows; null where all are 1
  void* dz;
  void* dbias;  // [bias_cols]
  int64_t bias_cols;
  int64_t first_col;  // of dbias, where dy's first column goes
  double bias_scale;
  const Selection* bias_region;  // of dbias, which is zeros elsewhere
};
Status Enqueue(const DyPass& pass, Device& device);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_ELEMENTWISE_H_
