// CPU kernels of the ops: from TensorFlow's tensors to pointers and sizes, and back.
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cpu/fused_matmul.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/framework/tensor_util.h"
#include "tensorflow/op_attributes.h"
#include "tensorflow/zeros.h"

namespace stopgrad::tensorflow_ops {

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// TensorFlow's intra-op threads and its allocator.
class TensorFlowHost : public Host {
 public:
  explicit TensorFlowHost(OpKernelContext* context)
      : context_(context), workers_(*context->device()->tensorflow_cpu_worker_threads()) {}

  int threads() const override { return workers_.num_threads; }

  void Schedule(std::function<void()> task) override {
    workers_.workers->Schedule(std::move(task));
  }

  void* Allocate(size_t bytes) override {
    Tensor memory;
    const TensorShape shape({static_cast<int64_t>(bytes)});
    if (!context_->allocate_temp(tensorflow::DT_UINT8, shape, &memory).ok()) return nullptr;
    temporaries_.push_back(memory);
    return memory.data();
  }

 private:
  OpKernelContext* context_;
  const tensorflow::DeviceBase::CpuWorkerThreads& workers_;
  std::vector<Tensor> temporaries_;
};

Shape ToShape(const TensorShape& shape) {
  const auto sizes = shape.dim_sizes();
  return Shape(sizes.begin(), sizes.end());
}

absl::Status ReadShape(const char* name, const Tensor& tensor, Shape* shape) {
  if (tensor.dims() != 1) {
    return absl::InvalidArgumentError("`" + std::string(name) +
                                      "` must be a vector; its shape is " +
                                      tensor.shape().DebugString());
  }
  const auto values = tensor.vec<int64_t>();
  shape->assign(values.data(), values.data() + values.size());
  for (int64_t extent : *shape) {
    if (extent < 0) {
      return absl::InvalidArgumentError("`" + std::string(name) + "` has a negative size");
    }
  }
  return absl::OkStatus();
}

// The tensors that restrict gradients, behind an op's other inputs.
class PolicyInputs {
 public:
  PolicyInputs(const PolicyAttributes& attributes, OpKernelContext* context, int first_input)
      : attributes_(attributes), context_(context), first_(first_input) {}

  // What can be said of their shapes, without reading them.
  absl::Status CheckShapes(const Shape& y) const {
    GradientScales scales;
    if (auto s = ReadScales(&scales); !s.ok()) return s;
    if (!attributes_.has_rows) return absl::OkStatus();
    const Tensor& rows = context_->input(first_ + attributes_.scaled.size());
    return ToAbsl(CheckRows(ToShape(rows.shape()), y));
  }

  absl::Status ReadScales(GradientScales* scales) const {
    for (size_t i = 0; i < attributes_.scaled.size(); ++i) {
      const Tensor& scale = context_->input(first_ + i);
      if (scale.dims() != 0) {
        return absl::InvalidArgumentError("`gradient_scale` of `" + attributes_.scaled[i] +
                                          "` must be a scalar; its shape is " +
                                          scale.shape().DebugString());
      }
      *FindScale(attributes_.scaled[i], scales) = scale.flat<double>()(0);
    }
    return absl::OkStatus();
  }

  absl::Status ReadRows(const Shape& y, RowWeights* rows) const {
    if (!attributes_.has_rows) return absl::OkStatus();
    const Tensor& tensor = context_->input(first_ + attributes_.scaled.size());
    const Shape shape = ToShape(tensor.shape());
    const auto make = [&](const auto* values) {
      return ToAbsl(MakeRowWeights(values, shape, y, rows));
    };
    switch (tensor.dtype()) {
      case tensorflow::DT_BOOL:
        return make(tensor.flat<bool>().data());
      case tensorflow::DT_HALF:
        return make(Widen<Eigen::half>(tensor).data());
      case tensorflow::DT_BFLOAT16:
        return make(Widen<tensorflow::bfloat16>(tensor).data());
      case tensorflow::DT_FLOAT:
        return make(tensor.flat<float>().data());
      default:
        return make(tensor.flat<double>().data());
    }
  }

  // Of the operands that are `needed`, the others' shapes need not be known.
  absl::Status ReadRegions(const GradientNeeds& needed, const Shape& a, const Shape& b,
                           int64_t bias, Regions* regions) const {
    const auto add = [&](const RegionPart& part) -> absl::Status {
      GradientNeeds needs = needed;
      if (!*FindNeed(part.axis->operand, &needs)) return absl::OkStatus();
      return ToAbsl(Select(part, part.axis->Extent(a, b, bias), regions));
    };
    for (const RegionPart& part : attributes_.sliced) {
      if (auto s = add(part); !s.ok()) return s;
    }
    int input = first_ + static_cast<int>(attributes_.scaled.size()) + attributes_.has_rows;
    for (const RegionAxis* axis : attributes_.indexed) {
      const Tensor& indices = context_->input(input++);
      if (indices.dims() != 1) {
        return absl::InvalidArgumentError(
            "the indices in `trainable` of `" + std::string(axis->operand) +
            "` must be a vector; their shape is " + indices.shape().DebugString());
      }
      RegionPart part{};
      part.axis = axis;
      part.by_index = true;
      part.indices = indices.flat<int64_t>().data();
      part.num_indices = indices.NumElements();
      if (auto s = add(part); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

 private:
  template <typename T>
  static std::vector<float> Widen(const Tensor& tensor) {
    const auto values = tensor.flat<T>();
    std::vector<float> wide(values.size());
    for (size_t i = 0; i < wide.size(); ++i) wide[i] = static_cast<float>(values(i));
    return wide;
  }

  const PolicyAttributes& attributes_;
  OpKernelContext* context_;
  int first_;
};

// What the two forward ops have in common: everything behind their inputs.
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
    TensorFlowHost host(context);
    OP_REQUIRES_OK(context,
                   ToAbsl(cpu::FusedMatMul(problem, attributes_.activation, tensors, host)));
  }

  ProductAttributes attributes_;
  bool has_z_ = false;
};

class FusedMatMulOp : public ForwardOp {
 public:
  explicit FusedMatMulOp(OpKernelConstruction* context) : ForwardOp(context) {
    OP_REQUIRES_OK(context, ReadProductAttributes(context, &attributes_));
    OP_REQUIRES_OK(context, ReadPolicyAttributes(context, &policy_));
    OP_REQUIRES_OK(context, ReadPresence(context, "num_bias", &has_bias_));
    OP_REQUIRES_OK(context, ReadPresence(context, "num_z", &has_z_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &a = context->input(0), &b = context->input(1);
    Run(context, a, b, has_bias_ ? &context->input(2) : nullptr);
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
  *value = variable->copy_on_read_mode.load() ? tensorflow::tensor::DeepCopy(held) : held;
  return absl::OkStatus();
}

class FusedMatMulEagerOp : public ForwardOp {
 public:
  explicit FusedMatMulEagerOp(OpKernelConstruction* context) : ForwardOp(context) {
    OP_REQUIRES_OK(context,
                   ReadEagerAttributes(context, &attributes_, &dtype_, &has_values_, &has_z_));
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
      OP_REQUIRES_OK(context, ReadVariable(context, i, dtype_, &read[i]));
      operands[i] = &read[i];
      if (has_values_) context->set_output(output++, read[i]);
    }
    Run(context, *operands[0], *operands[1], operands[2]);
  }

 private:
  tensorflow::DataType dtype_ = tensorflow::DT_INVALID;
  bool has_values_ = false;
};

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
        if (const Tensor fresh = FreshZeros(dy.dtype(), shape); fresh.IsInitialized()) {
          context->set_output(i, fresh);
          continue;
        }
      }
      Tensor* gradient = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, shape, &gradient));
      *data = gradient->data();
    }
    TensorFlowHost host(context);
    OP_REQUIRES_OK(context, ToAbsl(cpu::FusedMatMulGradient(
                                product_.dtype, rows, cols, has_products ? &problem : nullptr,
                                product_.activation, policy, tensors, host)));
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

class ZerosOp : public OpKernel {
 public:
  explicit ZerosOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("shape", &shape_));
  }

  void Compute(OpKernelContext* context) override {
    if (const Tensor fresh = FreshZeros(output_type(0), shape_); fresh.IsInitialized()) {
      context->set_output(0, fresh);
      return;
    }
    Tensor* zeros = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape_, &zeros));
    std::memset(zeros->data(), 0, zeros->TotalBytes());
  }

 private:
  TensorShape shape_;
};

// One kernel class serves every dtype; TensorFlow wants a registration for each value of "T".
template <typename Kernel>
void Register(const char* op, tensorflow::DataType type = tensorflow::DT_INVALID) {
  tensorflow::KernelDefBuilder builder(op);
  builder.Device(tensorflow::DEVICE_CPU);
  if (type != tensorflow::DT_INVALID) builder.TypeConstraint("T", type);
  tensorflow::kernel_factory::OpKernelRegistrar(
      builder.Build(), op,
      [](OpKernelConstruction* context) -> OpKernel* { return new Kernel(context); });
}

const bool registered = [] {
  Register<FusedMatMulEagerOp>("StopgradOp>FusedMatMulEager");
  for (const DTypePair& pair : kDTypes) {
    Register<FusedMatMulOp>("StopgradOp>FusedMatMul", pair.tensorflow);
    if (HasGradients(pair.dtype)) {
      Register<FusedMatMulGradOp>("StopgradOp>FusedMatMulGrad", pair.tensorflow);
      Register<ZerosOp>("StopgradOp>Zeros", pair.tensorflow);
    }
  }
  return true;
}();

}  // namespace

}  // namespace stopgrad::tensorflow_ops
