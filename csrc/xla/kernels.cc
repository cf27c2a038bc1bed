// The ops as XLA compiles them.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/problem.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "tensorflow/op_attributes.h"
#include "xla/lowering.h"

namespace stopgrad::xla_ops {

namespace {

using tensorflow::OpKernelConstruction;
using tensorflow::TensorShape;
using tensorflow::XlaOpKernelContext;
using namespace tensorflow_ops;

constexpr const char* kCpu = "XLA_CPU_JIT";
constexpr const char* kGpu = "XLA_GPU_JIT";

DotOptions DotsOn(const std::string& device) {
  return {tensorflow::tensor_float_32_execution_enabled() ? xla::PrecisionConfig::DEFAULT
                                                          : xla::PrecisionConfig::HIGHEST,
          /*widens_factors=*/device == kCpu};
}

// The tensors of a list of inputs.
class InputsOf {
 public:
  InputsOf(XlaOpKernelContext* context, const char* name) : context_(context) {
    OP_REQUIRES_OK(context, context->op_kernel().InputRange(name, &begin_, &end_));
  }

  int count() const { return end_ - begin_; }
  int index(int i) const { return begin_ + i; }
  XlaOp op(int i) const { return context_->Input(index(i)); }
  Shape shape(int i) const {
    const auto shape = context_->InputXlaShape(index(i));
    if (!shape.ok()) {
      context_->CtxFailure(shape.status());
      return {};
    }
    const auto dims = shape->dimensions();
    return Shape(dims.begin(), dims.end());
  }
  std::optional<XlaOp> optional() const {
    return count() > 0 ? std::optional<XlaOp>(op(0)) : std::nullopt;
  }

 private:
  XlaOpKernelContext* context_;
  int begin_ = 0;
  int end_ = 0;
};

absl::Status CheckRowsOf(XlaOpKernelContext* context, const Shape& y) {
  const InputsOf rows(context, "rows");
  return rows.count() == 0 ? absl::OkStatus() : ToAbsl(CheckRows(rows.shape(0), y));
}

class FusedMatMulOp : public tensorflow::XlaOpKernel {
 public:
  explicit FusedMatMulOp(OpKernelConstruction* context)
      : XlaOpKernel(context), device_(context->device_type().type_string()) {
    OP_REQUIRES_OK(context, ReadProductAttributes(context, &product_));
  }

  void Compile(XlaOpKernelContext* context) override {
    const InputsOf a(context, "a"), b(context, "b"), bias(context, "bias");
    MatMulProblem problem;
    OP_REQUIRES_OK(context,
                   ToAbsl(MakeMatMulProblem(product_.dtype, product_.layout_a, product_.layout_b,
                                            a.shape(0), b.shape(0), &problem)));
    if (bias.count() > 0) OP_REQUIRES_OK(context, ToAbsl(CheckBias(problem, bias.shape(0))));
    OP_REQUIRES_OK(context, CheckRowsOf(context, problem.ShapeOfY()));
    const Forward result = LowerForward(problem, product_.activation, DotsOn(device_), a.op(0),
                                        b.op(0), bias.optional());
    context->SetOutput(0, result.y);
    if (context->num_outputs() > 1) context->SetOutput(1, result.z);
  }

 private:
  const std::string device_;
  ProductAttributes product_;
};

class FusedMatMulGradOp : public tensorflow::XlaOpKernel {
 public:
  explicit FusedMatMulGradOp(OpKernelConstruction* context)
      : XlaOpKernel(context), device_(context->device_type().type_string()) {
    OP_REQUIRES_OK(context, ReadProductAttributes(context, &product_));
    OP_REQUIRES_OK(context, ReadPolicyAttributes(context, &policy_));
    OP_REQUIRES_OK(context, ReadGradientAttributes(context, product_, &attributes_));
  }

  void Compile(XlaOpKernelContext* context) override {
    const InputsOf dy(context, "dy"), a(context, "a"), b(context, "b"), saved(context, "saved");
    Shape shape_a, shape_b;
    OP_REQUIRES_OK(context, ReadShapeOf(context, a, "shape_a", &shape_a));
    OP_REQUIRES_OK(context, ReadShapeOf(context, b, "shape_b", &shape_b));
    const bool has_products = a.count() > 0 || b.count() > 0;
    const Shape shape_of_dy = dy.shape(0);
    OP_REQUIRES(context, shape_of_dy.size() >= 2,
                absl::InvalidArgumentError("`dy` must have two dimensions or more; its shape is " +
                                           ToString(shape_of_dy)));
    if (saved.count() > 0) {
      OP_REQUIRES(context, saved.shape(0) == shape_of_dy,
                  absl::InvalidArgumentError("`saved` must have the shape of `dy`, " +
                                             ToString(shape_of_dy) + "; its shape is " +
                                             ToString(saved.shape(0))));
    }
    OP_REQUIRES_OK(context, CheckRowsOf(context, shape_of_dy));
    MatMulProblem problem;
    if (has_products) {
      OP_REQUIRES_OK(
          context, ToAbsl(MakeGradientProblem(product_.dtype, product_.layout_a, product_.layout_b,
                                              shape_of_dy, shape_a.empty() ? nullptr : &shape_a,
                                              shape_b.empty() ? nullptr : &shape_b, &problem)));
    }
    LoweredPolicy policy;
    OP_REQUIRES_OK(context, ReadScales(context, &policy));
    OP_REQUIRES_OK(context, ReadRegions(context, problem, shape_of_dy.back(), &policy));
    policy.rows = InputsOf(context, "rows").optional();

    const BackwardOps ops{dy.op(0), a.optional(), b.optional(), saved.optional()};
    GradientLowering lowering(product_.dtype, has_products ? &problem : nullptr,
                              product_.activation, DotsOn(device_), policy, ops);
    for (size_t i = 0; i < attributes_.needed.size(); ++i) {
      context->SetOutput(i, lowering.Lower(attributes_.needed[i]));
    }
  }

 private:
  // The shape of an operand, from itself or from the input that stands for it; else empty.
  static absl::Status ReadShapeOf(XlaOpKernelContext* context, const InputsOf& operand,
                                  const char* name, Shape* shape) {
    const InputsOf given(context, name);
    if (operand.count() > 0) {
      *shape = operand.shape(0);
    } else if (given.count() > 0) {
      std::vector<int64_t> sizes;
      if (auto s = context->ConstantInputAsIntVector(given.index(0), &sizes); !s.ok()) return s;
      *shape = sizes;
    }
    return absl::OkStatus();
  }

  // A scale that is known now is part of the policy: with 0 nothing is compiled.
  absl::Status ReadScales(XlaOpKernelContext* context, LoweredPolicy* policy) const {
    const InputsOf scales(context, "scales");
    for (size_t i = 0; i < policy_.scaled.size(); ++i) {
      const std::string& name = policy_.scaled[i];
      if (!scales.shape(i).empty()) {
        return absl::InvalidArgumentError("`gradient_scale` of `" + name +
                                          "` must be a scalar; its shape is " +
                                          ToString(scales.shape(i)));
      }
      double value;
      if (context->ConstantInputAsFloatScalar(scales.index(i), &value).ok()) {
        *FindScale(name, &policy->policy.scales) = value;
        continue;
      }
      (name == "a"   ? policy->scale_a
       : name == "b" ? policy->scale_b
                     : policy->scale_bias) = scales.op(i);
    }
    return absl::OkStatus();
  }

  absl::Status ReadRegions(XlaOpKernelContext* context, const MatMulProblem& problem, int64_t cols,
                           LoweredPolicy* policy) const {
    policy->policy.compact_a = policy_.compact_a;
    policy->policy.compact_b = policy_.compact_b;
    const auto is_needed = [&](const RegionAxis& axis) {
      return std::find(attributes_.needed.begin(), attributes_.needed.end(), axis.operand) !=
             attributes_.needed.end();
    };
    const auto select = [&](const RegionPart& part) {
      const int64_t extent = part.axis->Extent(problem.shape_a, problem.shape_b, cols);
      return ToAbsl(Select(part, extent, &policy->policy.regions));
    };
    for (const RegionPart& part : policy_.sliced) {
      if (!is_needed(*part.axis)) continue;
      if (auto s = select(part); !s.ok()) return s;
    }
    const InputsOf indices(context, "indices");
    for (size_t i = 0; i < policy_.indexed.size(); ++i) {
      const RegionAxis& axis = *policy_.indexed[i];
      if (!is_needed(axis)) continue;
      std::vector<int64_t> values;
      if (context->ConstantInputAsIntVector(indices.index(i), &values).ok()) {
        RegionPart part{};
        part.axis = &axis;
        part.by_index = true;
        part.indices = values.data();
        part.num_indices = static_cast<int64_t>(values.size());
        if (auto s = select(part); !s.ok()) return s;
      } else {
        policy->indices[axis.name] = indices.op(i);
      }
    }
    return absl::OkStatus();
  }

  const std::string device_;
  ProductAttributes product_;
  PolicyAttributes policy_;
  GradientAttributes attributes_;
};

// Not by REGISTER_XLA_OP: what that registers after XLA has compiled something is not found.
template <typename Kernel>
void Register(const char* op) {
  for (const char* device : {kCpu, kGpu}) {
    tensorflow::kernel_factory::OpKernelRegistrar(
        tensorflow::KernelDefBuilder(op).Device(device).Build(), op,
        [](OpKernelConstruction* context) -> tensorflow::OpKernel* { return new Kernel(context); });
  }
}

const bool registered = [] {
  Register<FusedMatMulOp>("StopgradOp>FusedMatMul");
  Register<FusedMatMulGradOp>("StopgradOp>FusedMatMulGrad");
  return true;
}();

}  // namespace

}  // namespace stopgrad::xla_ops
