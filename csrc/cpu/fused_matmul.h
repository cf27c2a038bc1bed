#ifndef STOPGRAD_CPU_FUSED_MATMUL_H_
#define STOPGRAD_CPU_FUSED_MATMUL_H_

#include "core/activation.h"
#include "core/export.h"
#include "core/host.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/status.h"
#include "core/tensors.h"

namespace stopgrad::cpu {

// Y = f(op(A) op(B) + bias)
STOPGRAD_EXPORT Status FusedMatMul(const MatMulProblem& problem, Activation activation,
                                   const ForwardTensors& tensors, Host& host);

// dZ = dY f'(saved),  dBias = s_bias sum_rows w dZ,  dA = s_a w dZ op(B)^H,  dB = s_b op(A)^H w dZ,
// with w the row weights, and of these only what is asked for and lies in the regions; the rest of
// a result is zeros. dY is [rows, cols], `problem` may be null where neither dA nor dB is needed.
// `z` has no weights.
STOPGRAD_EXPORT Status FusedMatMulGradient(DType dtype, int64_t rows, int64_t cols,
                                           const MatMulProblem* problem, Activation activation,
                                           const GradientPolicy& policy,
                                           const BackwardTensors& tensors, Host& host);

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_FUSED_MATMUL_H_
