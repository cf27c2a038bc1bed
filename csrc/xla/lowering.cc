#include "xla/lowering.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "xla/activations.h"
#include "xla/hlo/builder/lib/arithmetic.h"
#include "xla/hlo/builder/lib/constants.h"
#include "xla/hlo/builder/lib/matrix.h"
#include "xla/shape_util.h"

namespace stopgrad::xla_ops {

namespace {

using xla::PrimitiveType;
using xla::XlaBuilder;

PrimitiveType StoredType(DType dtype) {
  switch (dtype) {
    case DType::kFloat:
      return xla::F32;
    case DType::kDouble:
      return xla::F64;
    case DType::kHalf:
      return xla::F16;
    case DType::kBFloat16:
      return xla::BF16;
    case DType::kComplex64:
      return xla::C64;
    case DType::kComplex128:
      return xla::C128;
    case DType::kInt32:
      return xla::S32;
    case DType::kInt64:
      return xla::S64;
  }
  __builtin_unreachable();
}

// The type of sums and activations.
PrimitiveType WideType(DType dtype) {
  return dtype == DType::kHalf || dtype == DType::kBFloat16 ? xla::F32 : StoredType(dtype);
}

XlaOp Convert(XlaOp x, PrimitiveType type) { return xla::ConvertElementType(x, type); }

// What the dimensions of an array stand for: 0, 1, ... are Y's batch dimensions.
constexpr int64_t kM = -1;
constexpr int64_t kN = -2;
constexpr int64_t kK = -3;
using Labels = std::vector<int64_t>;

// An array without the batch dimensions that are 1, which are broadcast.
struct Labeled {
  XlaOp op;
  Labels labels;

  int64_t DimOf(int64_t label) const {
    return std::find(labels.begin(), labels.end(), label) - labels.begin();
  }
};

// The labels of an operand's dimensions, all of them. `batch` is its own, filled with ones in front
// to Y's rank.
Labels LabelsOf(const Shape& shape, size_t batch_rank, int64_t row, int64_t column) {
  Labels labels;
  const size_t rank = shape.size() - 2;
  for (size_t i = 0; i < rank; ++i) labels.push_back(batch_rank - rank + i);
  labels.push_back(row);
  labels.push_back(column);
  return labels;
}

bool IsDropped(int64_t label, int64_t extent) { return label >= 0 && extent == 1; }

Labeled DropOnes(XlaOp op, const Shape& shape, const Labels& labels) {
  Labeled labeled{op, {}};
  Shape kept;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (IsDropped(labels[i], shape[i])) continue;
    labeled.labels.push_back(labels[i]);
    kept.push_back(shape[i]);
  }
  if (kept.size() < shape.size()) labeled.op = xla::Reshape(op, kept);
  return labeled;
}

// The sum of products over all labels that the result does not have, in the wide type.
XlaOp Multiply(DType dtype, DotOptions dots, Labeled x, Labeled y, const Labels& labels) {
  // Einsum wants labels that are not negative.
  const auto shifted = [](Labels labels) {
    for (int64_t& label : labels) label += 3;
    return labels;
  };
  // A dot's rows are those of its first factor: in this order there is nothing to transpose.
  const int64_t row = labels[labels.size() - 2];
  if (x.DimOf(row) == static_cast<int64_t>(x.labels.size())) std::swap(x, y);
  const PrimitiveType wide = WideType(dtype);
  std::optional<PrimitiveType> sum_type;
  if (wide != StoredType(dtype)) sum_type = wide;
  if (sum_type && dots.widens_factors) {
    x.op = Convert(x.op, wide);
    y.op = Convert(y.op, wide);
  }
  return xla::Einsum(x.op, shifted(x.labels), y.op, shifted(y.labels), shifted(labels),
                     dots.precision, sum_type);
}

int64_t RowLabel(Layout layout, bool of_a) {
  if (of_a) return layout == Layout::kNormal ? kM : kK;
  return layout == Layout::kNormal ? kK : kN;
}
int64_t ColumnLabel(Layout layout, bool of_a) {
  if (of_a) return layout == Layout::kNormal ? kK : kM;
  return layout == Layout::kNormal ? kN : kK;
}

Labels LabelsOfOperand(const MatMulProblem& problem, bool of_a) {
  const Layout layout = of_a ? problem.layout_a : problem.layout_b;
  return LabelsOf(of_a ? problem.shape_a : problem.shape_b, problem.batch.size(),
                  RowLabel(layout, of_a), ColumnLabel(layout, of_a));
}

Labels LabelsOfY(const MatMulProblem& problem) {
  return LabelsOf(problem.ShapeOfY(), problem.batch.size(), kM, kN);
}

Labels WithoutOnes(const Labels& labels, const Shape& shape) {
  Labels kept;
  for (size_t i = 0; i < labels.size(); ++i) {
    if (!IsDropped(labels[i], shape[i])) kept.push_back(labels[i]);
  }
  return kept;
}

XlaOp ReshapeUnlessEqual(XlaOp op, const Shape& shape, size_t rank) {
  return rank == shape.size() ? op : xla::Reshape(op, shape);
}

// The elements along a dimension that a region selects.
struct Chosen {
  const Selection& selection;
  std::optional<XlaOp> indices;  // instead of the selection's list

  bool all() const { return selection.all() && !indices; }
};

Shape ShapeOf(XlaOp op) {
  const auto shape = op.builder()->GetShape(op);
  if (!shape.ok()) return {};
  const auto dims = shape->dimensions();
  return Shape(dims.begin(), dims.end());
}

XlaOp IndicesOf(const Chosen& chosen, XlaBuilder* builder) {
  if (chosen.indices) return *chosen.indices;
  return xla::ConstantR1<int64_t>(builder, chosen.selection.list);
}

bool IsRun(const Chosen& chosen) {
  return !chosen.indices && chosen.selection.kind == Selection::Kind::kRun;
}

XlaOp Take(XlaOp x, int64_t dim, const Chosen& chosen) {
  if (chosen.all()) return x;
  Shape sizes = ShapeOf(x);
  if (sizes.empty()) return x;  // an error that the builder reports
  if (IsRun(chosen)) {
    const Selection& run = chosen.selection;
    const int64_t end = run.count == 0 ? run.begin : run.At(run.count - 1) + 1;
    return xla::SliceInDim(x, run.begin, end, run.step, dim);
  }
  xla::GatherDimensionNumbers numbers;
  for (int64_t i = 0; i < static_cast<int64_t>(sizes.size()); ++i) {
    if (i != dim) numbers.add_offset_dims(i);
  }
  numbers.add_collapsed_slice_dims(dim);
  numbers.add_start_index_map(dim);
  numbers.set_index_vector_dim(1);
  sizes[dim] = 1;
  return xla::Gather(x, IndicesOf(chosen, x.builder()), numbers, sizes,
                     /*indices_are_sorted=*/true);
}

// Takes' counterpart: x at the chosen places of `extent` zeros.
XlaOp Place(XlaOp x, int64_t dim, const Chosen& chosen, int64_t extent) {
  if (chosen.all()) return x;
  Shape sizes = ShapeOf(x);
  if (sizes.empty()) return x;
  XlaBuilder* const builder = x.builder();
  const auto x_shape = builder->GetShape(x);
  const PrimitiveType type = x_shape->element_type();
  if (IsRun(chosen)) {
    const Selection& run = chosen.selection;
    xla::PaddingConfig padding = xla::MakeNoPaddingConfig(sizes.size());
    auto* const of_dim = padding.mutable_dimensions(dim);
    const int64_t end = run.count == 0 ? run.begin : run.At(run.count - 1) + 1;
    of_dim->set_edge_padding_low(run.begin);
    of_dim->set_interior_padding(run.step - 1);
    of_dim->set_edge_padding_high(extent - end);
    return xla::Pad(x, xla::Zero(builder, type), padding);
  }
  xla::ScatterDimensionNumbers numbers;
  for (int64_t i = 0; i < static_cast<int64_t>(sizes.size()); ++i) {
    if (i != dim) numbers.add_update_window_dims(i);
  }
  numbers.add_inserted_window_dims(dim);
  numbers.add_scatter_dims_to_operand_dims(dim);
  numbers.set_index_vector_dim(1);
  sizes[dim] = extent;
  return xla::Scatter(xla::Broadcast(xla::Zero(builder, type), sizes), IndicesOf(chosen, builder),
                      x, xla::CreateScalarAddComputation(type, builder), numbers,
                      /*indices_are_sorted=*/true, /*unique_indices=*/true);
}

// compute(operands) times a scale that is known when the program runs; where it is 0, zeros, and
// nothing is computed.
using Compute = std::function<XlaOp(const std::vector<XlaOp>& operands)>;
XlaOp Scaled(XlaOp scale, const std::vector<XlaOp>& operands, const Compute& compute) {
  XlaBuilder* const builder = scale.builder();
  return builder->ReportErrorOrReturn([&]() -> absl::StatusOr<XlaOp> {
    const XlaOp tuple = xla::Tuple(builder, operands);
    auto tuple_shape = builder->GetShape(tuple);
    if (!tuple_shape.ok()) return tuple_shape.status();

    const auto product_builder = builder->CreateSubBuilder("product");
    const XlaOp all = xla::Parameter(product_builder.get(), 0, *tuple_shape, "operands");
    std::vector<XlaOp> parts;
    for (size_t i = 0; i < operands.size(); ++i) parts.push_back(xla::GetTupleElement(all, i));
    const XlaOp product = compute(parts);
    auto shape = product_builder->GetShape(product);
    if (!shape.ok()) return shape.status();
    auto product_computation = product_builder->Build(product);
    if (!product_computation.ok()) return product_computation.status();

    const auto zeros_builder = builder->CreateSubBuilder("zeros");
    xla::Parameter(zeros_builder.get(), 0, xla::ShapeUtil::MakeTupleShape({}), "nothing");
    auto zeros_computation = zeros_builder->Build(xla::Zeros(zeros_builder.get(), *shape));
    if (!zeros_computation.ok()) return zeros_computation.status();

    return xla::Conditional(xla::Ne(scale, xla::ZerosLike(scale)), tuple, *product_computation,
                            xla::Tuple(builder, {}), *zeros_computation);
  });
}

}  // namespace

Forward LowerForward(const MatMulProblem& problem, Activation activation, DotOptions dots, XlaOp a,
                     XlaOp b, std::optional<XlaOp> bias) {
  const DType dtype = problem.dtype;
  if (problem.layout_a == Layout::kAdjoint && IsComplex(dtype)) a = xla::Conj(a);
  if (problem.layout_b == Layout::kAdjoint && IsComplex(dtype)) b = xla::Conj(b);
  const Shape shape = problem.ShapeOfY();
  const Labels labels = WithoutOnes(LabelsOfY(problem), shape);
  XlaOp z = Multiply(dtype, dots, DropOnes(a, problem.shape_a, LabelsOfOperand(problem, true)),
                     DropOnes(b, problem.shape_b, LabelsOfOperand(problem, false)), labels);
  z = ReshapeUnlessEqual(z, shape, labels.size());
  if (bias) {
    z = xla::Add(z, Convert(*bias, WideType(dtype)), {static_cast<int64_t>(shape.size()) - 1});
  }
  const PrimitiveType stored = StoredType(dtype);
  return {Convert(Value(activation, z), stored), Convert(z, stored)};
}

GradientLowering::GradientLowering(DType dtype, const MatMulProblem* problem, Activation activation,
                                   DotOptions dots, const LoweredPolicy& policy,
                                   const BackwardOps& ops)
    : dtype_(dtype),
      problem_(problem),
      activation_(activation),
      dots_(dots),
      policy_(policy),
      ops_(ops),
      zeros_(FindZeros(policy.policy)) {}

XlaOp GradientLowering::Lower(const std::string& name) {
  if (name == "a" || name == "b") return LowerFactor(name == "a");
  if (name == "bias") return LowerBias();
  return Convert(WideDz(/*with_rows=*/false), StoredType(dtype_));
}

XlaOp GradientLowering::WideDz(bool with_rows) const {
  const PrimitiveType wide = WideType(dtype_);
  XlaOp dz = Convert(ops_.dy, wide);
  if (activation_ != Activation::kLinear) {
    dz = TimesDerivative(activation_, Convert(*ops_.saved, wide), dz);
  }
  if (!with_rows || !policy_.rows) return dz;
  // They broadcast to Y's dimensions but the last.
  const XlaOp rows = *policy_.rows;
  const Shape shape = ShapeOf(dz);
  Shape of_rows = ShapeOf(rows);
  const bool is_bool = rows.builder()->GetShape(rows).ok() &&
                       rows.builder()->GetShape(rows)->element_type() == xla::PRED;
  Shape kept;
  std::vector<int64_t> dims;
  for (size_t i = 0; i < of_rows.size(); ++i) {
    if (of_rows[i] == 1) continue;
    kept.push_back(of_rows[i]);
    dims.push_back(shape.size() - 1 - of_rows.size() + i);
  }
  const XlaOp weights = kept.size() == of_rows.size() ? rows : xla::Reshape(rows, kept);
  const XlaOp active = is_bool ? weights : xla::Ne(weights, xla::ZerosLike(weights));
  if (!is_bool) dz = xla::Mul(dz, xla::BroadcastInDim(Convert(weights, wide), shape, dims));
  // A row of weight 0 is zeros, whatever dy is there.
  return xla::Select(xla::BroadcastInDim(active, shape, dims), dz, xla::ZerosLike(dz));
}

XlaOp GradientLowering::Dz() {
  if (!dz_) {
    const bool is_dy = activation_ == Activation::kLinear && !policy_.rows;
    dz_ = is_dy ? ops_.dy : Convert(WideDz(/*with_rows=*/true), StoredType(dtype_));
  }
  return *dz_;
}

namespace {

// What the region of an operand selects along its rows or columns.
Chosen Along(RegionAxis::Of of, bool is_rows, const LoweredPolicy& policy) {
  const RegionAxis& axis = *std::find_if(
      std::begin(kRegionAxes), std::end(kRegionAxes),
      [&](const RegionAxis& axis) { return axis.of == of && axis.is_rows == is_rows; });
  return {policy.policy.regions.*axis.selection, policy.IndicesOf(axis)};
}

}  // namespace

XlaOp GradientLowering::LowerFactor(bool of_a) {
  const MatMulProblem& problem = *problem_;
  const RegionAxis::Of of = of_a ? RegionAxis::Of::kA : RegionAxis::Of::kB;
  const Chosen rows = Along(of, /*is_rows=*/true, policy_);
  const Chosen columns = Along(of, /*is_rows=*/false, policy_);
  const Shape& stored = of_a ? problem.shape_a : problem.shape_b;
  const Labels labels_of_stored = LabelsOfOperand(problem, of_a);
  const bool is_compact = of_a ? policy_.policy.compact_a : policy_.policy.compact_b;
  const size_t row_dim = stored.size() - 2;
  Shape result_shape = stored;
  if (is_compact) {
    result_shape[row_dim] =
        rows.indices ? ShapeOf(*rows.indices)[0] : rows.selection.Count(stored[row_dim]);
  }
  if (of_a ? zeros_.a : zeros_.b) {
    return xla::Broadcast(xla::Zero(ops_.dy.builder(), StoredType(dtype_)), result_shape);
  }

  const Layout layout = of_a ? problem.layout_a : problem.layout_b;
  const Layout other_layout = of_a ? problem.layout_b : problem.layout_a;
  const double known_scale = of_a ? policy_.policy.scales.a : policy_.policy.scales.b;
  const std::optional<XlaOp>& scale = of_a ? policy_.scale_a : policy_.scale_b;
  // op(X) = conj(X^T) for an adjoint layout. The product has the conjugate of the other operand as
  // it is read; the result is stored as this one is.
  const bool is_complex = IsComplex(dtype_);
  const bool conjugates_other = is_complex && other_layout != Layout::kAdjoint;
  const bool conjugates_result = is_complex && layout == Layout::kAdjoint;

  const Compute compute = [&](const std::vector<XlaOp>& operands) {
    const Shape shape_of_y = problem.ShapeOfY();
    Labeled dz = DropOnes(operands[0], shape_of_y, LabelsOfY(problem));
    Labeled other =
        DropOnes(conjugates_other ? xla::Conj(operands[1]) : operands[1],
                 of_a ? problem.shape_b : problem.shape_a, LabelsOfOperand(problem, !of_a));
    // Nothing of the program around a conditional can be used in it but its operands.
    size_t next = 2;
    const auto inside = [&](const Chosen& chosen) {
      return Chosen{chosen.selection,
                    chosen.indices ? std::optional<XlaOp>(operands[next++]) : std::nullopt};
    };
    const Chosen rows_inside = inside(rows);
    const Chosen columns_inside = inside(columns);
    // A region's rows and columns are those of one factor each.
    const auto restrict = [&](int64_t label, const Chosen& chosen) {
      Labeled& factor = dz.DimOf(label) < static_cast<int64_t>(dz.labels.size()) ? dz : other;
      factor.op = Take(factor.op, factor.DimOf(label), chosen);
    };
    restrict(labels_of_stored[row_dim], rows_inside);
    restrict(labels_of_stored[row_dim + 1], columns_inside);
    const Labels labels = WithoutOnes(labels_of_stored, stored);
    XlaOp result = Multiply(dtype_, dots_, dz, other, labels);
    if (conjugates_result) result = xla::Conj(result);
    if (scale) {
      result = result * Convert(operands[next], WideType(dtype_));
    } else if (known_scale != 1) {
      result = result * xla::ScalarLike(result, known_scale);
    }
    result = Convert(result, StoredType(dtype_));
    const int64_t row = labels.size() - 2;
    if (!is_compact) result = Place(result, row, rows_inside, stored[row_dim]);
    result = Place(result, row + 1, columns_inside, stored[row_dim + 1]);
    return ReshapeUnlessEqual(result, result_shape, labels.size());
  };
  std::vector<XlaOp> operands{Dz(), of_a ? *ops_.b : *ops_.a};
  for (const Chosen* chosen : {&rows, &columns}) {
    if (chosen->indices) operands.push_back(*chosen->indices);
  }
  if (!scale) return compute(operands);
  operands.push_back(*scale);
  return Scaled(*scale, operands, compute);
}

XlaOp GradientLowering::LowerBias() {
  const Shape shape_of_y = ShapeOf(ops_.dy);
  const int64_t n_dim = static_cast<int64_t>(shape_of_y.size()) - 1;
  XlaBuilder* const builder = ops_.dy.builder();
  if (shape_of_y.empty()) return ops_.dy;
  const PrimitiveType stored = StoredType(dtype_), wide = WideType(dtype_);
  const Shape shape{shape_of_y[n_dim]};
  if (zeros_.bias) return xla::Broadcast(xla::Zero(builder, stored), shape);
  const Chosen columns = Along(RegionAxis::Of::kBias, /*is_rows=*/false, policy_);
  const XlaOp dz = Take(WideDz(/*with_rows=*/true), n_dim, columns);
  std::vector<int64_t> summed(n_dim);
  for (int64_t i = 0; i < n_dim; ++i) summed[i] = i;
  XlaOp sum = xla::Reduce(dz, xla::Zero(builder, wide),
                          xla::CreateScalarAddComputation(wide, builder), summed);
  if (policy_.scale_bias) {
    const XlaOp scale = Convert(*policy_.scale_bias, wide);
    // 0 gives zeros, whatever the sum is.
    sum = xla::Select(xla::Broadcast(xla::Ne(scale, xla::ZerosLike(scale)), ShapeOf(sum)),
                      sum * scale, xla::ZerosLike(sum));
  } else if (policy_.policy.scales.bias != 1) {
    sum = sum * xla::ScalarLike(sum, policy_.policy.scales.bias);
  }
  return Place(Convert(sum, stored), 0, columns, shape[0]);
}

}  // namespace stopgrad::xla_ops
