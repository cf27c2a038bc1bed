// The ops and their shape functions.
#include <string>
#include <utility>

#include "tensorflow/core/framework/common_shape_fns.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/op_attributes.h"

namespace stopgrad::tensorflow_ops {

namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

std::string ActivationNames() {
  std::string names;
  for (const ActivationRow& row : kActivations) {
    names += (names.empty() ? "'" : ", '") + std::string(row.name) + "'";
  }
  return "activation: {" + names + "} = 'linear'";
}

std::string AxesAttr(const char* name) {
  std::string names;
  for (const RegionAxis& axis : kRegionAxes) {
    names += (names.empty() ? "'" : ", '") + std::string(axis.name) + "'";
  }
  return std::string(name) + ": list({" + names + "}) = []";
}

std::string LayoutAttr(const char* name) {
  return std::string(name) + ": {'normal', 'transpose', 'adjoint'} = 'normal'";
}

// An operand's shape taken apart; every handle may be unknown.
struct OperandShape {
  ShapeHandle batch;
  DimensionHandle rows;
  DimensionHandle cols;
};

absl::Status TakeApart(InferenceContext* c, const char* name, ShapeHandle shape, Layout layout,
                       OperandShape* operand) {
  if (!c->RankKnown(shape)) {
    *operand = {c->UnknownShape(), c->UnknownDim(), c->UnknownDim()};
    return absl::OkStatus();
  }
  if (c->Rank(shape) < 2) {
    return absl::InvalidArgumentError(
        "`" + std::string(name) +
        "` must have rank 2 or more (a matrix, or a batch of them); its " + "shape is " +
        c->DebugString(shape));
  }
  if (auto s = c->Subshape(shape, 0, -2, &operand->batch); !s.ok()) return s;
  operand->rows = c->Dim(shape, -2);
  operand->cols = c->Dim(shape, -1);
  if (layout != Layout::kNormal) std::swap(operand->rows, operand->cols);
  return absl::OkStatus();
}

// The extent of a region's axis; unknown where the operand's shape is.
DimensionHandle ExtentOf(InferenceContext* c, const RegionAxis& axis, ShapeHandle a, ShapeHandle b,
                         DimensionHandle bias) {
  if (axis.of == RegionAxis::Of::kBias) return bias;
  const ShapeHandle shape = axis.of == RegionAxis::Of::kA ? a : b;
  if (!c->RankKnown(shape) || c->Rank(shape) < 2) return c->UnknownDim();
  return c->Dim(shape, axis.is_rows ? -2 : -1);
}

// Complains about slices that cannot lie within an operand, as far as shapes are known, and about
// inputs whose shapes cannot be right. `input` is that of the first scale; `rows` are Y's.
absl::Status CheckPolicy(InferenceContext* c, const PolicyAttributes& policy, int input,
                         ShapeHandle a, ShapeHandle b, DimensionHandle bias, ShapeHandle rows) {
  for (const RegionPart& part : policy.sliced) {
    const DimensionHandle extent = ExtentOf(c, *part.axis, a, b, bias);
    if (!c->ValueKnown(extent)) continue;
    Regions regions;
    if (auto s = ToAbsl(Select(part, c->Value(extent), &regions)); !s.ok()) return s;
  }
  for (const std::string& operand : policy.scaled) {
    ShapeHandle scalar;
    if (!c->WithRank(c->input(input), 0, &scalar).ok()) {
      return absl::InvalidArgumentError("`gradient_scale` of `" + operand +
                                        "` must be a scalar; its shape is " +
                                        c->DebugString(c->input(input)));
    }
    ++input;
  }
  if (policy.has_rows) {
    const ShapeHandle weights = c->input(input++);
    if (c->RankKnown(weights) && c->RankKnown(rows)) {
      bool fits = c->Rank(weights) <= c->Rank(rows);
      for (int i = 1; fits && i <= c->Rank(weights); ++i) {
        const DimensionHandle extent = c->Dim(weights, -i), due = c->Dim(rows, -i);
        fits = !c->ValueKnown(extent) || c->Value(extent) == 1 || !c->ValueKnown(due) ||
               c->Value(extent) == c->Value(due);
      }
      if (!fits) {
        return absl::InvalidArgumentError(
            "`gradient_rows` must broadcast to the rows of the result, " + c->DebugString(rows) +
            "; its shape is " + c->DebugString(weights));
      }
    }
  }
  for (size_t i = 0; i < policy.indexed.size(); ++i) {
    ShapeHandle vector;
    if (auto s = c->WithRank(c->input(input++), 1, &vector); !s.ok()) return s;
  }
  return absl::OkStatus();
}

// How many rows of an operand are selected, where their indices say. `input` is that of the first
// scale.
DimensionHandle CountIndexedRows(InferenceContext* c, const PolicyAttributes& policy, int input,
                                 const std::string& operand) {
  input += static_cast<int>(policy.scaled.size()) + policy.has_rows;
  for (const RegionAxis* axis : policy.indexed) {
    if (axis->name == operand + "_rows") return c->Dim(c->input(input), 0);
    ++input;
  }
  return c->UnknownDim();
}

absl::Status FusedMatMulShape(InferenceContext* c) {
  ProductAttributes attributes;
  PolicyAttributes policy;
  bool has_bias, has_z;
  if (auto s = ReadProductAttributes(c, &attributes); !s.ok()) return s;
  if (auto s = ReadPolicyAttributes(c, &policy); !s.ok()) return s;
  if (auto s = ReadPresence(c, "num_bias", &has_bias); !s.ok()) return s;
  if (auto s = ReadPresence(c, "num_z", &has_z); !s.ok()) return s;
  OperandShape a, b;
  if (auto s = TakeApart(c, "a", c->input(0), attributes.layout_a, &a); !s.ok()) return s;
  if (auto s = TakeApart(c, "b", c->input(1), attributes.layout_b, &b); !s.ok()) return s;
  DimensionHandle inner;
  if (!c->Merge(a.cols, b.rows, &inner).ok()) {
    return absl::InvalidArgumentError(
        "`b` must have as many rows as `a` has columns, " + c->DebugString(a.cols) + ", and has " +
        c->DebugString(b.rows) + ": a is " + c->DebugString(c->input(0)) + ", b is " +
        c->DebugString(c->input(1)));
  }
  ShapeHandle batch;
  if (!tensorflow::shape_inference::BroadcastBinaryOpOutputShapeFnHelper(
           c, a.batch, b.batch, /*incompatible_shape_error=*/true, &batch)
           .ok()) {
    return absl::InvalidArgumentError(
        "the batch dimensions of `a` and `b` must be equal or 1: a is " +
        c->DebugString(c->input(0)) + ", b is " + c->DebugString(c->input(1)));
  }
  DimensionHandle cols = b.cols;
  if (has_bias) {
    ShapeHandle bias;
    if (!c->WithRank(c->input(2), 1, &bias).ok() || !c->Merge(cols, c->Dim(bias, 0), &cols).ok()) {
      return absl::InvalidArgumentError("`bias` must have shape [" + c->DebugString(b.cols) +
                                        "], one element per column of the product; its shape is " +
                                        c->DebugString(c->input(2)));
    }
  }
  ShapeHandle rows, y;
  if (auto s = c->Concatenate(batch, c->Vector(a.rows), &rows); !s.ok()) return s;
  if (auto s = c->Concatenate(rows, c->Vector(cols), &y); !s.ok()) return s;
  if (auto s = CheckPolicy(c, policy, has_bias ? 3 : 2, c->input(0), c->input(1), cols, rows);
      !s.ok()) {
    return s;
  }
  for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, y);
  return absl::OkStatus();
}

// What is known of an operand that is not given; MakeGradientProblem says how.
absl::Status MissingOperand(InferenceContext* c, ShapeHandle dy_batch, ShapeHandle other,
                            DimensionHandle rows, DimensionHandle cols, Layout layout,
                            ShapeHandle* operand) {
  const ShapeHandle matrix =
      layout == Layout::kNormal ? c->Matrix(rows, cols) : c->Matrix(cols, rows);
  if (!c->RankKnown(other)) {
    *operand = c->UnknownShape();
    return absl::OkStatus();
  }
  if (c->Rank(other) > 2) {
    *operand = matrix;
    return absl::OkStatus();
  }
  return c->Concatenate(dy_batch, matrix, operand);
}

absl::Status FusedMatMulGradShape(InferenceContext* c) {
  ProductAttributes product;
  PolicyAttributes policy;
  GradientAttributes attributes;
  if (auto s = ReadProductAttributes(c, &product); !s.ok()) return s;
  if (auto s = ReadPolicyAttributes(c, &policy); !s.ok()) return s;
  if (auto s = ReadGradientAttributes(c, product, &attributes); !s.ok()) return s;
  int input = 0;
  const ShapeHandle dy = c->input(input++);
  OperandShape dy_parts;
  if (auto s = TakeApart(c, "dy", dy, Layout::kNormal, &dy_parts); !s.ok()) return s;
  ShapeHandle a, b;
  if (attributes.has_a) a = c->input(input++);
  if (attributes.has_b) b = c->input(input++);
  OperandShape a_parts, b_parts;
  if (attributes.has_a) {
    if (auto s = TakeApart(c, "a", a, product.layout_a, &a_parts); !s.ok()) return s;
  }
  if (attributes.has_b) {
    if (auto s = TakeApart(c, "b", b, product.layout_b, &b_parts); !s.ok()) return s;
  }
  if (attributes.has_saved) {
    const ShapeHandle saved = c->input(input++);
    ShapeHandle merged;
    if (!c->Merge(dy, saved, &merged).ok()) {
      return absl::InvalidArgumentError("`saved` must have the shape of `dy`, " +
                                        c->DebugString(dy) + "; its shape is " +
                                        c->DebugString(saved));
    }
  }
  if (attributes.has_shape_a) {
    if (auto s = c->MakeShapeFromShapeTensor(input++, &a); !s.ok()) return s;
  } else if (!attributes.has_a && attributes.has_b) {
    if (auto s =
            MissingOperand(c, dy_parts.batch, b, dy_parts.rows, b_parts.rows, product.layout_a, &a);
        !s.ok()) {
      return s;
    }
  }
  if (attributes.has_shape_b) {
    if (auto s = c->MakeShapeFromShapeTensor(input++, &b); !s.ok()) return s;
  } else if (!attributes.has_b && attributes.has_a) {
    if (auto s =
            MissingOperand(c, dy_parts.batch, a, a_parts.cols, dy_parts.cols, product.layout_b, &b);
        !s.ok()) {
      return s;
    }
  }
  ShapeHandle rows = c->UnknownShape();
  if (c->RankKnown(dy)) {
    if (auto s = c->Subshape(dy, 0, -1, &rows); !s.ok()) return s;
  }
  if (auto s = CheckPolicy(c, policy, input, attributes.has_b ? a : c->UnknownShape(),
                           attributes.has_a ? b : c->UnknownShape(), dy_parts.cols, rows);
      !s.ok()) {
    return s;
  }
  for (size_t i = 0; i < attributes.needed.size(); ++i) {
    const std::string& name = attributes.needed[i];
    ShapeHandle shape = name == "a"      ? a
                        : name == "b"    ? b
                        : name == "bias" ? c->Vector(dy_parts.cols)
                                         : dy;
    if ((name == "a" && policy.compact_a) || (name == "b" && policy.compact_b)) {
      ShapeHandle matrix;
      if (auto s = c->WithRank(shape, 2, &matrix); !s.ok()) return s;
      shape = c->Matrix(CountIndexedRows(c, policy, input, name), c->Dim(matrix, 1));
    }
    c->set_output(i, shape);
  }
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("StopgradOp>FusedMatMul")
    .Input("a: T")
    .Input("b: T")
    .Input("bias: num_bias * T")
    .Input("scales: num_scales * double")
    .Input("rows: row_types")
    .Input("indices: num_indices * int64")
    .Output("y: T")
    .Output("z: num_z * T")
    .Attr("T: {float, double, half, bfloat16, complex64, complex128, int32, int64}")
    .Attr("num_bias: int >= 0 = 0")
    .Attr("num_scales: int >= 0 = 0")
    .Attr("row_types: list({bool, half, bfloat16, float, double}) >= 0 = []")
    .Attr("num_indices: int >= 0 = 0")
    .Attr("num_z: int >= 0 = 0")
    .Attr(LayoutAttr("layout_a"))
    .Attr(LayoutAttr("layout_b"))
    .Attr(ActivationNames())
    .Attr("blocked: list({'a', 'b', 'bias'}) = []")
    .Attr("scaled: list({'a', 'b', 'bias'}) = []")
    .Attr(AxesAttr("sliced"))
    .Attr("slices: list(int) = []")
    .Attr(AxesAttr("indexed"))
    .Attr("indexed_slices: list({'a', 'b'}) = []")
    .SetShapeFn(FusedMatMulShape)
    .Doc(R"doc(
y = activation(op(a) op(b) + bias), batch dimensions broadcast.

a: Shape [..., m, k], or [..., k, m] where layout_a is not "normal".
b: Shape [..., k, n], or [..., n, k] where layout_b is not "normal".
bias: None or one, shape [n].
scales: The gradient scales of the operands that `scaled` names. Like all that restricts gradients,
  the forward pass does not need them.
rows: None or one: weights of the rows of y, which broadcast to [..., m]. Rows of weight 0 send
  nothing back.
indices: The selected rows or columns of each axis that `indexed` names, ascending.
y: Shape [..., m, n].
z: None or one: op(a) op(b) + bias, for activations whose derivative cannot be had from y.
blocked: Operands that get no gradient.
sliced: Axes of which a slice is trainable, of operands as they are stored.
slices: Begin, end and step of each; a negative bound counts from the end, 2^63 - 1 is the end.
indexed: Axes of which the rows or columns of a list are trainable.
indexed_slices: Operands whose gradient is tf.IndexedSlices.
)doc");

REGISTER_OP("StopgradOp>FusedMatMulEager")
    .Input("operands: operand_types")
    .Output("results: result_types")
    .Attr("operand_types: list(type) >= 2")
    .Attr("result_types: list(type) >= 1")
    .Attr(LayoutAttr("layout_a"))
    .Attr(LayoutAttr("layout_b"))
    .Attr(ActivationNames())
    .SetIsStateful()  // it reads variables
    .SetShapeFn(tensorflow::shape_inference::UnknownShape)
    .Doc(R"doc(
FusedMatMul for eager calls, where to reach an op takes longer than to compute a small product: it
reads variables itself, and it has few attributes. It has no gradient.

operands: a, b and perhaps bias, each of them a tensor or the handle of a variable.
results: y; or y, the values of the variables, and perhaps z.
)doc");

REGISTER_OP("StopgradOp>FusedMatMulGrad")
    .Input("dy: T")
    .Input("a: num_a * T")
    .Input("b: num_b * T")
    .Input("saved: num_saved * T")
    .Input("shape_a: num_shape_a * int64")
    .Input("shape_b: num_shape_b * int64")
    .Input("scales: num_scales * double")
    .Input("rows: row_types")
    .Input("indices: num_indices * int64")
    .Output("gradients: num_needed * T")
    .Attr("T: {float, double, half, bfloat16, complex64, complex128}")
    .Attr("num_a: int >= 0 = 0")
    .Attr("num_b: int >= 0 = 0")
    .Attr("num_saved: int >= 0 = 0")
    .Attr("num_shape_a: int >= 0 = 0")
    .Attr("num_shape_b: int >= 0 = 0")
    .Attr("num_scales: int >= 0 = 0")
    .Attr("row_types: list({bool, half, bfloat16, float, double}) >= 0 = []")
    .Attr("num_indices: int >= 0 = 0")
    .Attr("num_needed: int >= 1")
    .Attr("needed: list({'a', 'b', 'bias', 'z'})")
    .Attr(LayoutAttr("layout_a"))
    .Attr(LayoutAttr("layout_b"))
    .Attr(ActivationNames())
    .Attr("scaled: list({'a', 'b', 'bias'}) = []")
    .Attr(AxesAttr("sliced"))
    .Attr("slices: list(int) = []")
    .Attr(AxesAttr("indexed"))
    .Attr("indexed_slices: list({'a', 'b'}) = []")
    .SetShapeFn(FusedMatMulGradShape)
    .Doc(R"doc(
The gradients of FusedMatMul that are `needed`, and no others.

dy: Shape [..., m, n].
a: Read for the gradient of b.
b: Read for the gradient of a.
saved: y or z of the forward op, where the activation's derivative needs it.
shape_a: The shape of a where a is not given and neither a nor b is a matrix.
shape_b: The shape of b, likewise.
scales, rows, indices: As FusedMatMul has them.
gradients: In the order of `needed`, zeros outside of a trainable region; "z" is dy times the
  activation's derivative, of all rows.
indexed_slices: Operands whose result is the selected rows alone.
)doc");

REGISTER_OP("StopgradOp>Zeros")
    .Output("zeros: T")
    .Attr("T: {float, double, half, bfloat16, complex64, complex128}")
    .Attr("shape: shape")
    .SetIsStateful()  // else all eager calls get one tensor, and what one writes the others see
    .SetShapeFn(tensorflow::shape_inference::ExplicitShape)
    .Doc(R"doc(
Zeros that take no memory until somebody writes to them, for eager gradients that are nothing else.

shape: Fully defined.
)doc");

}  // namespace stopgrad::tensorflow_ops
