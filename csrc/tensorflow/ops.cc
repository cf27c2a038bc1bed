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

absl::Status FusedMatMulShape(InferenceContext* c) {
  ProductAttributes attributes;
  ProductScales scales;
  bool has_bias, has_z;
  if (auto s = ReadProductAttributes(c, &attributes); !s.ok()) return s;
  if (auto s = ReadProductScales(c, &scales); !s.ok()) return s;
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
  ShapeHandle y;
  if (auto s = c->Concatenate(batch, c->Matrix(a.rows, cols), &y); !s.ok()) return s;
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
  ProductScales scales;
  GradientAttributes attributes;
  if (auto s = ReadProductAttributes(c, &product); !s.ok()) return s;
  if (auto s = ReadProductScales(c, &scales); !s.ok()) return s;
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
  for (size_t i = 0; i < attributes.needed.size(); ++i) {
    const std::string& name = attributes.needed[i];
    c->set_output(i, name == "a"      ? a
                     : name == "b"    ? b
                     : name == "bias" ? c->Vector(dy_parts.cols)
                                      : dy);
  }
  return absl::OkStatus();
}

}  // namespace

REGISTER_OP("StopgradOp>FusedMatMul")
    .Input("a: T")
    .Input("b: T")
    .Input("bias: num_bias * T")
    .Input("scales: num_scales * double")
    .Output("y: T")
    .Output("z: num_z * T")
    .Attr("T: {float, double, half, bfloat16, complex64, complex128, int32, int64}")
    .Attr("num_bias: int >= 0 = 0")
    .Attr("num_scales: int >= 0 = 0")
    .Attr("num_z: int >= 0 = 0")
    .Attr(LayoutAttr("layout_a"))
    .Attr(LayoutAttr("layout_b"))
    .Attr(ActivationNames())
    .Attr("blocked: list({'a', 'b', 'bias'}) = []")
    .Attr("scaled: list({'a', 'b', 'bias'}) = []")
    .SetShapeFn(FusedMatMulShape)
    .Doc(R"doc(
y = activation(op(a) op(b) + bias), batch dimensions broadcast.

a: Shape [..., m, k], or [..., k, m] where layout_a is not "normal".
b: Shape [..., k, n], or [..., n, k] where layout_b is not "normal".
bias: None or one, shape [n].
scales: The gradient scales of the operands that `scaled` names; the forward pass does not read them.
y: Shape [..., m, n].
z: None or one: op(a) op(b) + bias, for activations whose derivative cannot be had from y.
blocked: Operands that get no gradient.
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
    .Output("gradients: num_needed * T")
    .Attr("T: {float, double, half, bfloat16, complex64, complex128}")
    .Attr("num_a: int >= 0 = 0")
    .Attr("num_b: int >= 0 = 0")
    .Attr("num_saved: int >= 0 = 0")
    .Attr("num_shape_a: int >= 0 = 0")
    .Attr("num_shape_b: int >= 0 = 0")
    .Attr("num_scales: int >= 0 = 0")
    .Attr("num_needed: int >= 1")
    .Attr("needed: list({'a', 'b', 'bias', 'z'})")
    .Attr(LayoutAttr("layout_a"))
    .Attr(LayoutAttr("layout_b"))
    .Attr(ActivationNames())
    .Attr("scaled: list({'a', 'b', 'bias'}) = []")
    .SetShapeFn(FusedMatMulGradShape)
    .Doc(R"doc(
The gradients of FusedMatMul that are `needed`, and no others.

dy: Shape [..., m, n].
a: Read for the gradient of b.
b: Read for the gradient of a.
saved: y or z of the forward op, where the activation's derivative needs it.
shape_a: The shape of a where a is not given and neither a nor b is a matrix.
shape_b: The shape of b, likewise.
gradients: In the order of `needed`; "z" is dy times the activation's derivative.
)doc");

}  // namespace stopgrad::tensorflow_ops
