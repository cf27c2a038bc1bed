#ifndef STOPGRAD_CORE_PLAN_H_
#define STOPGRAD_CORE_PLAN_H_

#include <string_view>

#include "core/activation.h"
#include "core/problem.h"
#include "core/product.h"

namespace stopgrad {

// Which results of the backward pass are asked for. `z` is dZ, the gradient of the pre-activation.
struct GradientNeeds {
  bool a = false;
  bool b = false;
  bool bias = false;
  bool z = false;
};

// The gradient scale of each operand.
struct GradientScales {
  double a = 1;
  double b = 1;
  double bias = 1;
};

// The member of that name, "a", "b", "bias" or "z"; nullptr if there is none.
STOPGRAD_EXPORT bool* FindNeed(std::string_view name, GradientNeeds* needs);
STOPGRAD_EXPORT double* FindScale(std::string_view name, GradientScales* scales);

struct GradientProduct {
  Product product;
  double alpha = 1;
  bool runs = false;  // otherwise the result, if it is needed, is zero
};

// What the backward pass has to do. One pass over dY gives dZ and the column sums of dBias; then
// the products read dZ.
struct GradientPlan {
  bool pass_over_dy = false;
  bool writes_dz = false;
  bool sums_bias = false;
  GradientProduct a;
  GradientProduct b;
};

// `problem` may be null where neither dA nor dB is needed. A scale of 0 leaves out the work.
STOPGRAD_EXPORT GradientPlan MakePlan(const MatMulProblem* problem, Activation activation,
                                      const GradientNeeds& needs, const GradientScales& scales);

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_PLAN_H_
