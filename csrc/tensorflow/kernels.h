#ifndef STOPGRAD_TENSORFLOW_KERNELS_H_
#define STOPGRAD_TENSORFLOW_KERNELS_H_

#include <initializer_list>
#include <string>
#include <vector>

#include "core/plan.h"
#include "core/problem.h"
#include "core/tensors.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/op_attributes.h"
#include "tensorflow/policy_inputs.h"

// The kernels of the ops: from TensorFlow's tensors to pointers and sizes, and back. A backend is
// what they run on:
//   static const char* DeviceName()                as TensorFlow has it
//   static bool Supports(DType)
//   Backend(OpKernelContext*)
//   Status Forward(problem, activation, ForwardTensors)
//   Status Backward(dtype, rows, cols, problem, activation, policy, BackwardTensors)
//   absl::Status Copy(const Tensor&, Tensor* copy)
//   absl::Status FillWithZeros(Tensor*)
//   static Tensor FreshZeros(dtype, shape)         zeros for nothing; not initialized if there are
//   none

namespace stopgrad::tensorflow_ops {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;

// What the two forward ops have in common: everything behind their inputs.
template <typename Backend>
class ForwardOp : public OpKernel {
 protected:
  using OpKernel::OpKernel;

  // `bias` may be null; z is the last output.
  void Run(OpKernelContext* context, const Tensor& a, const Tensor& b, const Tensor* bias) {
    MatMulProblem problem;
    OP_REQUIRES_OK(context, ToAbsl(MakeMatMulProblem(attributes_.dtype, attributes_.layout_a,
                                                     attributes_.layout_b, ToShape(a.shape()),
                                                     ToShape(b.shape()), &problem)));
    ForwardTensors tensors{a.data(), b.data()};
    if (bias != nullptr) {
      OP_REQUIRES_OK(context, ToAbsl(CheckBias(problem, ToShape(bias->shape()))));
      tensors.bias = bias->data();
    }
    TensorShape shape;
    OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(problem.ShapeOfY(), &shape));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &y));
    tensors.y = y->data();
    // In a graph, z is consumed by the gradient op alone; without one it is not even allocated.
    if (const int z_index = num_outputs() - 1; has_z_ && context->output_required(z_index)) {
      Tensor* z = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(z_index, shape, &z));
      tensors.z = z->data();
    }
    Backend backend(context);
    OP_REQUIRES_OK(context, ToAbsl(backend.Forward(problem, attributes_.activation, tensors)));
  }

  ProductAttributes attributes_;
  bool has_z_ = false;
};

template <typename Backend>
class FusedMatMulOp : public ForwardOp<Backend> {
 public:
  explicit FusedMatMulOp(OpKernelConstruction* context) : ForwardOp<Backend>(context) {
    OP_REQUIRES_OK(context, ReadProductAttributes(context, &this->attributes_));
    OP_REQUIRES_OK(context, ReadPolicyAttributes(context, &policy_));
    OP_REQUIRES_OK(context, ReadPresence(context, "num_bias", &has_bias_));
    OP_REQUIRES_OK(context, ReadPresence(context, "num_z", &this->has_z_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &a = context->input(0), &b = context->input(1);
    this->Run(context, a, b, has_bias_ ? &context->input(2) : nullptr);
    if (!context->status().ok() || policy_.empty()) return;
    // Backward would complain too, but perhaps much later.
    const PolicyInputs inputs(policy_, context, has_bias_ ? 3 : 2);
    OP_REQUIRES_OK(context, inputs.CheckShapes(ToShape(context->mutable_output(0)->shape())));
    Regions regions;
    OP_REQUIRES_OK(
        context,
        inputs.ReadRegions({true, true, has_bias_, false}, ToShape(a.shape()), ToShape(b.shape()),
                           has_bias_ ? context->input(2).dim_size(0) : 0, &regions));
  }

 private:
  PolicyAttributes policy_;
  bool has_bias_ = false;
};

// The value of a variable, as ReadVariableOp gives it: the variable's own memory, which an
// assignment leaves alone as long as somebody else holds it, unless the variable says otherwise.
template <typename Backend>
absl::Status ReadVariable(OpKernelContext* context, int input, tensorflow::DataType dtype,
                          Tensor* value) {
  if (context->input(input).NumElements() != 1) {
    return absl::InvalidArgumentError("the handle of a variable must be a scalar");
  }
  tensorflow::core::RefCountPtr<tensorflow::Var> variable;
  if (auto s = LookupResource(context, tensorflow::HandleFromInput(context, input), &variable);
      !s.ok()) {
    return s;
  }
  tensorflow::tf_shared_lock lock(*variable->mu());
  const Tensor& held = *variable->tensor();
  if (!held.IsInitialized()) {
    return absl::FailedPreconditionError("a variable among the operands has no value yet");
  }
  if (held.dtype() != dtype) {
    return absl::InvalidArgumentError("a variable among the operands has another dtype");
  }
  if (variable->copy_on_read_mode.load()) return Backend(context).Copy(held, value);
  *value = held;
  return absl::OkStatus();
}

template <typename Backend>
class FusedMatMulEagerOp : public ForwardOp<Backend> {
 public:
  explicit FusedMatMulEagerOp(OpKernelConstruction* context) : ForwardOp<Backend>(context) {
    OP_REQUIRES_OK(context, ReadEagerAttributes(context, &this->attributes_, &dtype_, &has_values_,
                                                &this->has_z_));
  }

  void Compute(OpKernelContext* context) override {
    Tensor read[3];
    const Tensor* operands[3] = {};
    int output = 1;
    for (int i = 0; i < context->num_inputs(); ++i) {
      if (context->input_dtype(i) != tensorflow::DT_RESOURCE) {
        operands[i] = &context->input(i);
        continue;
      }
      OP_REQUIRES_OK(context, ReadVariable<Backend>(context, i, dtype_, &read[i]));
      operands[i] = &read[i];
      if (has_values_) context->set_output(output++, read[i]);
    }
    this->Run(context, *operands[0], *operands[1], operands[2]);
  }

 private:
  tensorflow::DataType dtype_ = tensorflow::DT_INVALID;
  bool has_values_ = false;
};

template <typename Backend>
class FusedMatMulGradOp : public OpKernel {
 public:
  explicit FusedMatMulGradOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, ReadProductAttributes(context, &product_));
    OP_REQUIRES_OK(context, ReadPolicyAttributes(context, &policy_));
    OP_REQUIRES_OK(context, ReadGradientAttributes(context, product_, &attributes_));
  }

  void Compute(OpKernelContext* context) override {
    int input = 0;
    const Tensor& dy = context->input(input++);
    const Tensor* a = attributes_.has_a ? &context->input(input++) : nullptr;
    const Tensor* b = attributes_.has_b ? &context->input(input++) : nullptr;
    const Tensor* saved = attributes_.has_saved ? &context->input(input++) : nullptr;
    Shape shape_a, shape_b;
    if (a != nullptr) shape_a = ToShape(a->shape());
    if (b != nullptr) shape_b = ToShape(b->shape());
    if (attributes_.has_shape_a) {
      OP_REQUIRES_OK(context, ReadShape("shape_a", context->input(input++), &shape_a));
    }
    if (attributes_.has_shape_b) {
      OP_REQUIRES_OK(context, ReadShape("shape_b", context->input(input++), &shape_b));
    }
    const PolicyInputs inputs(policy_, context, input);
    GradientPolicy policy;
    policy.compact_a = policy_.compact_a;
    policy.compact_b = policy_.compact_b;
    OP_REQUIRES_OK(context, inputs.ReadScales(&policy.scales));
    OP_REQUIRES(context, dy.dims() >= 2,
                absl::InvalidArgumentError("`dy` must have rank 2 or more; its shape is " +
                                           dy.shape().DebugString()));
    OP_REQUIRES(context, saved == nullptr || saved->shape() == dy.shape(),
                absl::InvalidArgumentError("`saved` must have the shape of `dy`, " +
                                           dy.shape().DebugString() + "; its shape is " +
                                           saved->shape().DebugString()));
    MatMulProblem problem;
    const bool has_products = a != nullptr || b != nullptr;
    if (has_products) {
      OP_REQUIRES_OK(context,
                     ToAbsl(MakeGradientProblem(
                         product_.dtype, product_.layout_a, product_.layout_b, ToShape(dy.shape()),
                         a != nullptr || attributes_.has_shape_a ? &shape_a : nullptr,
                         b != nullptr || attributes_.has_shape_b ? &shape_b : nullptr, &problem)));
    }
    const int64_t cols = dy.dim_size(dy.dims() - 1);
    const int64_t rows = cols == 0 ? 0 : dy.NumElements() / cols;
    GradientNeeds needs;
    for (const std::string& name : attributes_.needed) *FindNeed(name, &needs) = true;
    OP_REQUIRES_OK(context, inputs.ReadRows(ToShape(dy.shape()), &policy.rows));
    OP_REQUIRES_OK(context, inputs.ReadRegions(needs, problem.shape_a, problem.shape_b, cols,
                                               &policy.regions));

    GradientNeeds zeros = FindZeros(policy);
    BackwardTensors tensors{dy.data(), a ? a->data() : nullptr, b ? b->data() : nullptr,
                            saved ? saved->data() : nullptr};
    for (size_t i = 0; i < attributes_.needed.size(); ++i) {
      if (!context->output_required(i)) continue;
      const std::string& name = attributes_.needed[i];
      TensorShape shape = dy.shape();
      void** data = &tensors.dz;
      if (name == "a") {
        OP_REQUIRES_OK(context, BuildShape("a", problem.shape_a, policy_.compact_a,
                                           policy.regions.a_rows, &shape));
        data = &tensors.da;
      } else if (name == "b") {
        OP_REQUIRES_OK(context, BuildShape("b", problem.shape_b, policy_.compact_b,
                                           policy.regions.b_rows, &shape));
        data = &tensors.db;
      } else if (name == "bias") {
        shape = TensorShape({cols});
        data = &tensors.dbias;
      }
      if (*FindNeed(name, &zeros)) {
        if (const Tensor fresh = Backend::FreshZeros(dy.dtype(), shape); fresh.IsInitialized()) {
          context->set_output(i, fresh);
          continue;
        }
      }
      Tensor* gradient = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, shape, &gradient));
      *data = gradient->data();
    }
    Backend backend(context);
    OP_REQUIRES_OK(context, ToAbsl(backend.Backward(product_.dtype, rows, cols,
                                                    has_products ? &problem : nullptr,
                                                    product_.activation, policy, tensors)));
  }

 private:
  static absl::Status BuildShape(const char* name, const Shape& operand, bool is_compact,
                                 const Selection& rows, TensorShape* result) {
    if (is_compact && operand.size() != 2) {
      return absl::InvalidArgumentError("`" + std::string(name) +
                                        "` must be a matrix to have tf.IndexedSlices as its "
                                        "gradient; its shape is " +
                                        ToString(operand));
    }
    return TensorShape::BuildTensorShape(ShapeOfGradient(operand, is_compact, rows), result);
  }

  ProductAttributes product_;
  PolicyAttributes policy_;
  GradientAttributes attributes_;
};

template <typename Backend>
class ZerosOp : public OpKernel {
 public:
  explicit ZerosOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("shape", &shape_));
  }

  void Compute(OpKernelContext* context) override {
    if (const Tensor fresh = Backend::FreshZeros(output_type(0), shape_); fresh.IsInitialized()) {
      context->set_output(0, fresh);
      return;
    }
    Tensor* zeros = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape_, &zeros));
    OP_REQUIRES_OK(context, Backend(context).FillWithZeros(zeros));
  }

 private:
  TensorShape shape_;
};

template <typename Kernel>
void Register(const char* op, tensorflow::KernelDefBuilder& builder) {
  tensorflow::kernel_factory::OpKernelRegistrar(
      builder.Build(), op,
      [](OpKernelConstruction* context) -> OpKernel* { return new Kernel(context); });
}

// One kernel class serves all dtypes, but TensorFlow wants a registration for each value of "T".
// What steers a call is read on the host: what it makes superfluous is not even enqueued, and
// nobody waits for a device to find out.
template <typename Kernel>
void Register(const char* op, const char* device, tensorflow::DataType type,
              std::initializer_list<const char*> on_host) {
  tensorflow::KernelDefBuilder builder(op);
  builder.Device(device).TypeConstraint("T", type);
  for (const char* input : on_host) builder.HostMemory(input);
  Register<Kernel>(op, builder);
}

// Registers all kernels of a backend.
template <typename Backend>
bool RegisterKernels() {
  const char* const device = Backend::DeviceName();
  std::vector<tensorflow::DataType> types{tensorflow::DT_RESOURCE};
  for (const DTypePair& pair : kDTypes) {
    if (!Backend::Supports(pair.dtype)) continue;
    const tensorflow::DataType type = pair.tensorflow;
    types.push_back(type);
    Register<FusedMatMulOp<Backend>>("StopgradOp>FusedMatMul", device, type,
                                     {"scales", "rows", "indices"});
    if (!HasGradients(pair.dtype)) continue;
    Register<FusedMatMulGradOp<Backend>>("StopgradOp>FusedMatMulGrad", device, type,
                                         {"scales", "rows", "indices", "shape_a", "shape_b"});
    Register<ZerosOp<Backend>>("StopgradOp>Zeros", device, type, {});
  }
  constexpr const char* kEager = "StopgradOp>FusedMatMulEager";
  tensorflow::KernelDefBuilder eager(kEager);
  eager.Device(device);
  for (const char* list : {"operand_types", "result_types"}) {
    eager.TypeConstraint(list, absl::Span<const tensorflow::DataType>(types));
  }
  Register<FusedMatMulEagerOp<Backend>>(kEager, eager);
  return true;
}

}  // namespace stopgrad::tensorflow_ops

#endif  // STOPGRAD_TENSORFLOW_KERNELS_H_
