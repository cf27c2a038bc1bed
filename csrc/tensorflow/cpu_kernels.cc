// CPU kernels of the two ops: from TensorFlow's tensors to pointers and sizes, and back.
#include <functional>
#include <string>
#include <vector>

#include "cpu/fused_matmul.h"
#include "tensorflow/compat.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/op_attributes.h"

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

  void ParallelFor(int64_t count, const std::function<void(int64_t)>& task) override {
    workers_.workers->ParallelFor(count, OneByOne(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) task(i);
    });
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

class FusedMatMulOp : public OpKernel {
 public:
  explicit FusedMatMulOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, ReadProductAttributes(context, &attributes_));
    OP_REQUIRES_OK(context, ReadForwardAttributes(context, &forward_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& a = context->input(0);
    const Tensor& b = context->input(1);
    MatMulProblem problem;
    OP_REQUIRES_OK(context, ToAbsl(MakeMatMulProblem(attributes_.dtype, attributes_.layout_a,
                                                     attributes_.layout_b, ToShape(a.shape()),
                                                     ToShape(b.shape()), &problem)));
    cpu::ForwardTensors tensors{a.data(), b.data()};
    if (forward_.has_bias) {
      const Tensor& bias = context->input(2);
      OP_REQUIRES_OK(context, ToAbsl(CheckBias(problem, ToShape(bias.shape()))));
      tensors.bias = bias.data();
    }
    TensorShape shape;
    OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(problem.ShapeOfY(), &shape));
    Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &y));
    tensors.y = y->data();
    // In a graph, z is consumed by the gradient op alone; without one it is not even allocated.
    if (forward_.has_z && context->output_required(1)) {
      Tensor* z = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(1, shape, &z));
      tensors.z = z->data();
    }
    TensorFlowHost host(context);
    OP_REQUIRES_OK(context,
                   ToAbsl(cpu::FusedMatMul(problem, attributes_.activation, tensors, host)));
  }

 private:
  ProductAttributes attributes_;
  ForwardAttributes forward_;
};

class FusedMatMulGradOp : public OpKernel {
 public:
  explicit FusedMatMulGradOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, ReadProductAttributes(context, &product_));
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
    GradientScales scales;
    for (const std::string& name : product_.scaled) {
      const Tensor& scale = context->input(input++);
      OP_REQUIRES(context, scale.NumElements() == 1,
                  absl::InvalidArgumentError("a gradient scale must be a scalar; its shape is " +
                                             scale.shape().DebugString()));
      *FindScale(name, &scales) = scale.flat<double>()(0);
    }
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

    cpu::BackwardTensors tensors{dy.data(), a ? a->data() : nullptr, b ? b->data() : nullptr,
                                 saved ? saved->data() : nullptr};
    for (size_t i = 0; i < attributes_.needed.size(); ++i) {
      if (!context->output_required(i)) continue;
      const std::string& name = attributes_.needed[i];
      TensorShape shape = dy.shape();
      void** data = &tensors.dz;
      if (name == "a") {
        OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(problem.shape_a, &shape));
        data = &tensors.da;
      } else if (name == "b") {
        OP_REQUIRES_OK(context, TensorShape::BuildTensorShape(problem.shape_b, &shape));
        data = &tensors.db;
      } else if (name == "bias") {
        shape = TensorShape({cols});
        data = &tensors.dbias;
      }
      Tensor* gradient = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, shape, &gradient));
      *data = gradient->data();
    }
    TensorFlowHost host(context);
    OP_REQUIRES_OK(context, ToAbsl(cpu::FusedMatMulGradient(
                                product_.dtype, rows, cols, has_products ? &problem : nullptr,
                                product_.activation, scales, tensors, host)));
  }

 private:
  ProductAttributes product_;
  GradientAttributes attributes_;
};

// One kernel class serves every dtype; TensorFlow wants a registration for each.
template <typename Kernel>
void Register(const char* op, tensorflow::DataType type) {
  tensorflow::KernelDefBuilder builder(op);
  builder.Device(tensorflow::DEVICE_CPU).TypeConstraint("T", type);
  tensorflow::kernel_factory::OpKernelRegistrar(
      builder.Build(), op,
      [](OpKernelConstruction* context) -> OpKernel* { return new Kernel(context); });
}

const bool registered = [] {
  for (const DTypePair& pair : kDTypes) {
    Register<FusedMatMulOp>("StopgradOp>FusedMatMul", pair.tensorflow);
    if (HasGradients(pair.dtype)) {
      Register<FusedMatMulGradOp>("StopgradOp>FusedMatMulGrad", pair.tensorflow);
    }
  }
  return true;
}();

}  // namespace

}  // namespace stopgrad::tensorflow_ops
