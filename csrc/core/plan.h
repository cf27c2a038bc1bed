#ifndef STOPGRAD_CORE_PLAN_H_
#define STOPGRAD_CORE_PLAN_H_

#include <cstdint>
#include <list>
#include <string_view>
#include <vector>

#include "core/activation.h"
#include "core/problem.h"
#include "core/product.h"
#include "core/selection.h"

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

// What a call asks of its gradients, beside which ones are needed.
struct GradientPolicy {
  GradientScales scales;
  Regions regions;
  RowWeights rows;
  // The result is the selected rows of the operand alone, one behind the other.
  bool compact_a = false;
  bool compact_b = false;
};

// The shape of the gradient of an operand that is stored with `operand`: the same, or where it is
// compact, which takes a matrix, that of the selected rows.
STOPGRAD_EXPORT Shape ShapeOfGradient(Shape operand, bool is_compact, const Selection& rows);

// Which of the gradients are zeros, whatever the tensors hold: their scale is 0, or no row is
// active, or nothing in their region.
STOPGRAD_EXPORT GradientNeeds FindZeros(const GradientPolicy& policy);

// How the gradient of `a` or `b` is computed: zeros, if it is not all covered, and then products
// that each write a part of it; mostly one. Their views of dZ are of dY's memory where dZ is not
// written, and otherwise of the rows that the pass writes.
struct GradientProducts {
  std::vector<Product> products;
  double alpha = 1;
  bool zeros_first = false;
  bool masks_dz = false;      // reads rows of dZ whose weight is 0 as zeros
  bool masks_result = false;  // the result's rows are Y's, and those of weight 0 get zeros

  bool runs() const { return !products.empty(); }
  STOPGRAD_EXPORT int64_t Flops(bool is_complex) const;
};

// What it costs to list a row, to gather or scatter an element of it, to write a zero, and to run a
// product of its own, in floating-point operations of a product. A processor that does 100 of them
// in a nanosecond copies an element of a row that it did not expect in a third of one.
struct GatherCosts {
  double row = 1500;
  double element = 32;
  double zero = 16;
  double product = 1 << 16;
};

// What a device's products can do to dZ as they read it, so that it need not be written for that.
struct ProductAbilities {
  bool compute_dz = false;  // from dY and what is saved
  bool mask_dz = true;      // read rows whose weight is 0 as zeros
  GatherCosts gather_costs;
};

// What the backward pass has to do. One pass over the rows of dY whose weight is not 0 gives dZ and
// the column sums of dBias; then the products read dZ.
struct GradientPlan {
  bool pass_over_dy = false;
  bool writes_dz = false;
  bool sums_bias = false;
  bool compacts_dz = false;  // dZ has these rows alone, one behind the other, else zeros elsewhere
  GradientProducts a;
  GradientProducts b;

  std::list<std::vector<int64_t>> lists;  // what the views point to

  GradientPlan() = default;
  GradientPlan(GradientPlan&&) = default;
  GradientPlan& operator=(GradientPlan&&) = default;
};

// `problem` may be null where neither dA nor dB is needed. Work that a scale of 0, rows of weight 0
// or a region makes superfluous is left out. Rows of weight 0 are left out of a product where that
// saves more than gathering the others costs. Elsewhere all rows are multiplied: those of dZ are
// zeros, written by the pass or read as such, or those of the result become zeros in the end.
// `z` goes with no row weights.
STOPGRAD_EXPORT GradientPlan MakePlan(const MatMulProblem* problem, Activation activation,
                                      const GradientNeeds& needs, const GradientPolicy& policy,
                                      const ProductAbilities& abilities = {});

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_PLAN_H_
