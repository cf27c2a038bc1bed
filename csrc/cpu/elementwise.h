#ifndef STOPGRAD_CPU_ELEMENTWISE_H_
#define STOPGRAD_CPU_ELEMENTWISE_H_

#include <cstdint>

#include "core/activation.h"
#include "core/dtype.h"
#include "core/export.h"

namespace stopgrad::cpu {

// Loops over rows x cols elements with `row_stride` elements from one row to the next.
// "Accumulator" is the dtype's in core/dtype.h; bias, y, z, dy and dz are of the dtype itself.

// z = accumulator + bias,  y = f(z). bias and z may be null. The accumulator may be y's own memory
// where the types are the same.
using EpilogueLoop = void (*)(const void* accumulator, const void* bias, void* z, void* y,
                              int64_t rows, int64_t cols, int64_t row_stride);

// dz = dy f'(saved);  sums[j] += sum_i dz[i, j], in the accumulator type. dz and sums may be null.
using ActivationGradientLoop = void (*)(const void* dy, const void* saved, void* dz, void* sums,
                                        int64_t rows, int64_t cols, int64_t row_stride);

// From a 16-bit type to float32.
using WidenLoop = void (*)(const void* from, float* to, int64_t count);

// c[j] += factor * b[j], for the integer products.
using AddScaledLoop = void (*)(const void* b, const void* factor, void* c, int64_t count);

// The loops compiled for one instruction set; null where a dtype has no such loop.
struct ElementwiseLoops {
  const char* target;
  EpilogueLoop epilogue[kNumDTypes][kNumActivations];
  ActivationGradientLoop activation_gradient[kNumDTypes][kNumActivations];
  WidenLoop widen[kNumDTypes];
  AddScaledLoop add_scaled[kNumDTypes];
};

// Those for the processor this runs on.
STOPGRAD_EXPORT const ElementwiseLoops& GetElementwiseLoops();

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_ELEMENTWISE_H_
