#ifndef STOPGRAD_CUDA_FUSED_MATMUL_H_
#define STOPGRAD_CUDA_FUSED_MATMUL_H_

#include "core/activation.h"
#include "core/export.h"
#include "core/plan.h"
#include "core/problem.h"
#include "core/status.h"
#include "core/tensors.h"
#include "cuda/device.h"

namespace stopgrad::cuda {

// What cpu/fused_matmul.h has for the CPU, enqueued on the device's stream: the formulas stand
// there. The tensors are in device memory; the policy is in the host's and is not read any more
// when these return. Integers are an InvalidArgument. An error names the problem and the device.
STOPGRAD_EXPORT Status FusedMatMul(const MatMulProblem& problem, Activation activation,
                                   const ForwardTensors& tensors, Device& device);

STOPGRAD_EXPORT Status FusedMatMulGradient(DType dtype, int64_t rows, int64_t cols,
                                           const MatMulProblem* problem, Activation activation,
                                           const GradientPolicy& policy,
                                           const BackwardTensors& tensors, Device& device);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_FUSED_MATMUL_H_
