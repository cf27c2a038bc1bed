#ifndef STOPGRAD_CPU_ELEMENTWISE_H_
#define STOPGRAD_CPU_ELEMENTWISE_H_

#include <cstdint>

#include "core/activation.h"
#include "core/dtype.h"

namespace stopgrad::cpu {

// Loops over rows x cols elements with `row_stride` elements from one row to the next.
// "Accumulator" is the dtype's in core/dtype.h; bias, y, z, dy and dz are of the dtype itself.

// z = sums + bias,  y = f(z). bias and z may be null. The sums have rows of their own stride; those
// of a complex dtype are two rows of real numbers for each of z's, the real parts and the imaginary
// ones. They may be y's own memory where the types are the same.
using EpilogueLoop = void (*)(const void* sums, int64_t sums_stride, const void* bias, void* z,
                              void* y, int64_t rows, int64_t cols, int64_t row_stride);

// dz = w dy f'(saved);  sums[j] += sum_i dz[i, j], in the accumulator type. dz and sums may be
// null. A row that is not active is zeros, whatever dy is there.
struct ActivationGradientRows {
  const void* dy;
  const void* saved;
  void* dz;
  void* sums;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;               // of dy and saved
  int64_t dz_stride;                // of dz
  const int64_t* places = nullptr;  // where each row of dy and saved is; instead of the row stride
  const uint8_t* active = nullptr;  // 0 for each row that is zeros
  const double* weights = nullptr;  // w of each row; otherwise 1
};
using ActivationGradientLoop = void (*)(const ActivationGradientRows& rows);

// The loops compiled for one instruction set; null where a dtype has no such loop.
struct ElementwiseLoops {
  EpilogueLoop epilogue[kNumDTypes][kNumActivations];
  ActivationGradientLoop activation_gradient[kNumDTypes][kNumActivations];
};

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_ELEMENTWISE_H_
