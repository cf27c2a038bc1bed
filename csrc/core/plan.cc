#include "core/plan.h"

namespace stopgrad {

bool* FindNeed(std::string_view name, GradientNeeds* needs) {
  if (name == "a") return &needs->a;
  if (name == "b") return &needs->b;
  if (name == "bias") return &needs->bias;
  if (name == "z") return &needs->z;
  return nullptr;
}

double* FindScale(std::string_view name, GradientScales* scales) {
  if (name == "a") return &scales->a;
  if (name == "b") return &scales->b;
  if (name == "bias") return &scales->bias;
  return nullptr;
}

namespace {

GradientProduct PlanProduct(bool needed, double scale, Product (*product)(const MatMulProblem&),
                            const MatMulProblem* problem) {
  if (!needed || scale == 0) return {};
  GradientProduct result{product(*problem), scale, false};
  result.runs = result.product.Flops(false) > 0;
  return result;
}

}  // namespace

GradientPlan MakePlan(const MatMulProblem* problem, Activation activation,
                      const GradientNeeds& needs, const GradientScales& scales) {
  GradientPlan plan;
  plan.a = PlanProduct(needs.a, scales.a, GradientProductA, problem);
  plan.b = PlanProduct(needs.b, scales.b, GradientProductB, problem);
  plan.sums_bias = needs.bias && scales.bias != 0;
  // Where the activation is linear, dZ is dY itself and is written only when asked for.
  plan.writes_dz = needs.z || (activation != Activation::kLinear && (plan.a.runs || plan.b.runs));
  plan.pass_over_dy = plan.writes_dz || plan.sums_bias;
  return plan;
}

}  // namespace stopgrad
