#include "core/plan.h"

#include <algorithm>
#include <utility>

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

Shape ShapeOfGradient(Shape operand, bool is_compact, const Selection& rows) {
  if (is_compact) operand[0] = rows.Count(operand[0]);
  return operand;
}

GradientNeeds FindZeros(const GradientPolicy& policy) {
  const bool no_row = policy.rows.given && policy.rows.num_active == 0;
  const Regions& r = policy.regions;
  const auto is_zero = [&](double scale, const Selection& selection) {
    return no_row || scale == 0 || selection.none();
  };
  GradientNeeds zeros;
  zeros.a = is_zero(policy.scales.a, r.a_rows) || r.a_columns.none();
  zeros.b = is_zero(policy.scales.b, r.b_rows) || r.b_columns.none();
  zeros.bias = is_zero(policy.scales.bias, r.bias);
  return zeros;
}

int64_t GradientProducts::Flops(bool is_complex) const {
  int64_t flops = 0;
  for (const Product& product : products) flops += product.Flops(is_complex);
  return flops;
}

namespace {

// The selected rows and columns of op(X), given those of X as it is stored.
struct OperandRegion {
  const Selection& rows;
  const Selection& cols;
  bool compact;
  bool stored_rows_are_cols;

  // Whether the selected elements are all that the result has.
  bool covers() const {
    if (compact) return (stored_rows_are_cols ? rows : cols).all();
    return rows.all() && cols.all();
  }
};

OperandRegion RegionOf(const Selection& stored_rows, const Selection& stored_columns, Layout layout,
                       bool compact) {
  if (layout == Layout::kNormal) return {stored_rows, stored_columns, compact, false};
  return {stored_columns, stored_rows, compact, true};
}

class Planner {
 public:
  Planner(const MatMulProblem& problem, const GradientPolicy& policy, const GatherCosts& costs,
          GradientPlan* plan)
      : problem_(problem), policy_(policy), costs_(costs), plan_(*plan) {}

  // All rows of Y.
  void AddWhole(Product product, const OperandRegion& region, GradientProducts* gradient) {
    // Of an empty product a region may have any number of rows, which nobody needs a list of.
    if (product.Flops(false) == 0) return;
    RestrictRows(region, &product);
    RestrictColumns(region, &product);
    product = Simplify(std::move(product));
    if (product.Flops(false) > 0) gradient->products.push_back(product);
    gradient->zeros_first = !gradient->runs() || !region.covers();
  }

  // Whether a product on the active rows alone costs less than one on all. In the gradient of `a`
  // the result is zeros before its rows are scattered.
  bool GatheringPays(const Product& product, bool of_a) const {
    const double flops = product.Flops(false);
    const double rows = policy_.rows.total();
    const double active = policy_.rows.num_active;
    const double cost = active / rows * flops + active * costs_.row +
                        active * (problem_.n + problem_.k) * costs_.element +
                        (of_a ? rows * problem_.k * costs_.zero : 0) +
                        CountSeparate(product, of_a) * costs_.product;
    return cost < flops;
  }

  // Whether a batch dimension of a gradient's product keeps the active rows of its matrices apart:
  // those of dA where `b` differs, those of dB where dB does. All others become one list of rows.
  static bool Separates(const BatchDim& dim, bool of_a) {
    return dim.extent > 1 && (of_a ? dim.b_stride : dim.c_stride) != 0;
  }

  static int64_t CountSeparate(const Product& product, bool of_a) {
    int64_t count = 1;
    for (const BatchDim& dim : product.batch) count *= Separates(dim, of_a) ? dim.extent : 1;
    return count;
  }

  // A product for each matrix whose active rows are apart. In the gradient of `a`, Y's rows are the
  // rows of the first factor, dZ, and of the result; in that of `b`, what is summed over.
  void AddGathered(const Product& product, bool of_a, const OperandRegion& region, bool compact_dz,
                   GradientProducts* gradient) {
    struct Rows {
      std::vector<int64_t>* dz;
      std::vector<int64_t>* other;  // of A, or of dA
      int64_t offset;               // of B, or of dB
    };
    std::vector<Rows> groups(CountSeparate(product, of_a), Rows{nullptr, nullptr, 0});
    const MatrixView& other_view = of_a ? product.c : product.a;
    const int64_t other_stride = of_a ? other_view.row_stride : other_view.col_stride;
    const int64_t rows_per_matrix = std::max<int64_t>(1, problem_.m);
    int64_t num_active = 0;  // before this row
    for (int64_t first = 0; first < policy_.rows.total(); first += rows_per_matrix) {
      int64_t matrix = first / rows_per_matrix;
      int64_t group = 0, group_stride = 1, offset = 0, other = 0;
      for (size_t d = product.batch.size(); d-- > 0;) {
        const BatchDim& dim = product.batch[d];
        const int64_t position = matrix % dim.extent;
        matrix /= dim.extent;
        other += position * (of_a ? dim.c_stride : dim.a_stride);
        if (!Separates(dim, of_a)) continue;
        group += position * group_stride;
        group_stride *= dim.extent;
        offset += position * (of_a ? dim.b_stride : dim.c_stride);
      }
      Rows& rows = groups[group];
      for (int64_t i = 0; i < rows_per_matrix; ++i) {
        if (!policy_.rows.active[first + i]) continue;
        const int64_t row_of_dz = compact_dz ? num_active : first + i;
        ++num_active;
        int64_t row = i;
        if (of_a && !region.rows.all()) {
          const int64_t selected = region.rows.PositionOf(i);
          if (selected < 0) continue;
          if (region.compact && !region.stored_rows_are_cols) row = selected;
        }
        if (rows.dz == nullptr) {
          rows = {&plan_.lists.emplace_back(), &plan_.lists.emplace_back(), offset};
        }
        rows.dz->push_back(row_of_dz * problem_.n);
        rows.other->push_back(other + row * other_stride);
      }
    }
    gradient->zeros_first = of_a || !region.covers();
    Product whole = product;
    whole.batch.clear();
    if (!of_a) RestrictRows(region, &whole);
    RestrictColumns(region, &whole);
    for (const Rows& rows : groups) {
      if (rows.dz == nullptr) {
        gradient->zeros_first = true;
        continue;
      }
      Product part = whole;
      if (of_a) {
        part.m = rows.dz->size();
        Place(*rows.dz, part.a.row_stride, &part.a.offset, &part.a.rows);
        Place(*rows.other, part.c.row_stride, &part.c.offset, &part.c.rows);
        part.b.offset += rows.offset;
      } else {
        part.k = rows.dz->size();
        Place(*rows.other, part.a.col_stride, &part.a.offset, &part.a.cols);
        Place(*rows.dz, part.b.row_stride, &part.b.offset, &part.b.rows);
        part.c.offset += rows.offset;
      }
      if (part.Flops(false) > 0) gradient->products.push_back(part);
    }
    gradient->zeros_first = gradient->zeros_first || !gradient->runs();
  }

 private:
  // Restricts rows (or columns) of a view to those selected.
  void Restrict(const Selection& selection, int64_t stride, int64_t* offset,
                const int64_t** places) {
    if (selection.all()) return;
    if (selection.kind == Selection::Kind::kRun && selection.step == 1) {
      *offset += selection.begin * stride;
      return;
    }
    std::vector<int64_t>& list = plan_.lists.emplace_back(selection.Count(0));
    for (size_t i = 0; i < list.size(); ++i) list[i] = selection.At(i) * stride;
    *places = list.data();
  }

  // The result's rows are those of the first factor, its columns those of the second.
  void RestrictRows(const OperandRegion& region, Product* product) {
    product->m = region.rows.Count(product->m);
    MatrixView &a = product->a, &c = product->c;
    Restrict(region.rows, a.row_stride, &a.offset, &a.rows);
    if (region.compact && !region.stored_rows_are_cols) return;
    Restrict(region.rows, c.row_stride, &c.offset, &c.rows);
  }
  void RestrictColumns(const OperandRegion& region, Product* product) {
    product->n = region.cols.Count(product->n);
    MatrixView &b = product->b, &c = product->c;
    Restrict(region.cols, b.col_stride, &b.offset, &b.cols);
    if (region.compact && region.stored_rows_are_cols) return;
    Restrict(region.cols, c.col_stride, &c.offset, &c.cols);
  }

  // Rows at these places, which are no list where they lie one behind the other.
  static void Place(const std::vector<int64_t>& places, int64_t stride, int64_t* offset,
                    const int64_t** list) {
    for (size_t i = 1; i < places.size(); ++i) {
      if (places[i] != places[i - 1] + stride) {
        *list = places.data();
        return;
      }
    }
    *offset += places[0];
  }

  const MatMulProblem& problem_;
  const GradientPolicy& policy_;
  const GatherCosts& costs_;
  GradientPlan& plan_;
};

bool Sums(const Product& product) {
  return std::any_of(product.batch.begin(), product.batch.end(),
                     [](const BatchDim& dim) { return dim.extent > 1 && dim.sums(); });
}

}  // namespace

GradientPlan MakePlan(const MatMulProblem* problem, Activation activation,
                      const GradientNeeds& needs, const GradientPolicy& policy,
                      const ProductAbilities& abilities) {
  GradientPlan plan;
  const RowWeights& rows = policy.rows;
  const bool has_zeros = rows.has_zeros();
  const GradientNeeds zeros = FindZeros(policy);
  const bool runs_a = needs.a && !zeros.a;
  const bool runs_b = needs.b && !zeros.b;
  const bool is_weighted = !rows.weights.empty();
  const bool is_linear = activation == Activation::kLinear;
  bool masks = false;  // a product runs on all rows
  bool needs_masked_dz = false;
  plan.a.alpha = policy.scales.a;
  plan.b.alpha = policy.scales.b;
  plan.a.zeros_first = needs.a;
  plan.b.zeros_first = needs.b;
  plan.sums_bias = needs.bias && !zeros.bias;

  if (runs_a || runs_b) {
    const MatMulProblem& p = *problem;
    Planner planner(p, policy, abilities.gather_costs, &plan);
    struct Operand {
      bool of_a;
      OperandRegion region;
      Product product;
      GradientProducts* gradient;
      bool gathers = false;
    };
    std::vector<Operand> operands;
    if (runs_a) {
      operands.push_back(
          {true,
           RegionOf(policy.regions.a_rows, policy.regions.a_columns, p.layout_a, policy.compact_a),
           GradientProductA(p), &plan.a});
    }
    if (runs_b) {
      operands.push_back(
          {false,
           RegionOf(policy.regions.b_rows, policy.regions.b_columns, p.layout_b, policy.compact_b),
           GradientProductB(p), &plan.b});
    }
    for (Operand& operand : operands) {
      const Product& product = operand.product;
      // Where `a` is shared by matrices of a batch, its gradient sums over them, row by row.
      const bool is_sum = operand.of_a && Sums(product);
      operand.gathers = has_zeros && !is_sum && planner.GatheringPays(product, operand.of_a);
      if (!has_zeros || operand.gathers) continue;
      masks = true;
      // dZ need not be written for that where rows of the result can become zeros on their way out,
      // or rows of dZ are what is summed over: those are packed row by row.
      if (operand.of_a) {
        operand.gradient->masks_result = !is_sum && p.layout_a == Layout::kNormal &&
                                         operand.region.rows.all() && operand.region.cols.all() &&
                                         p.batch_a == p.batch;
        needs_masked_dz = needs_masked_dz || !operand.gradient->masks_result;
      } else {
        operand.gradient->masks_dz = true;
        needs_masked_dz = needs_masked_dz || !abilities.mask_dz;
      }
    }
    const bool written = is_weighted || needs_masked_dz || (!is_linear && !abilities.compute_dz);
    const bool compacts = written && has_zeros && !masks;
    if (written) plan.a.masks_result = plan.b.masks_dz = false;
    for (const Operand& operand : operands) {
      if (operand.gathers) {
        planner.AddGathered(operand.product, operand.of_a, operand.region, compacts,
                            operand.gradient);
      } else {
        planner.AddWhole(operand.product, operand.region, operand.gradient);
      }
    }
    plan.writes_dz = written && (plan.a.runs() || plan.b.runs());
    plan.compacts_dz = compacts && plan.writes_dz;
  }
  // Where the activation is linear, dZ is dY itself and is written only when asked for.
  plan.writes_dz = plan.writes_dz || needs.z;
  plan.pass_over_dy = plan.writes_dz || plan.sums_bias;
  return plan;
}

}  // namespace stopgrad
