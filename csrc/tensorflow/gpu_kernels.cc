// The ops' kernels on a GPU: TensorFlow's stream, its allocator and its switches.
#include <vector>

#include "cuda/device.h"
#include "cuda/fused_matmul.h"
#include "cuda/memory.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "tensorflow/core/util/determinism.h"
#include "tensorflow/kernels.h"
#include "xla/stream_executor/stream.h"

namespace stopgrad::tensorflow_ops {

namespace {

class GpuBackend : public Device {
 public:
  static const char* DeviceName() { return tensorflow::DEVICE_GPU; }
  // Integers are TensorFlow's CPU's there too.
  static bool Supports(DType dtype) { return HasGradients(dtype); }
  static Tensor FreshZeros(tensorflow::DataType dtype, const TensorShape&) {
    return Tensor(dtype, TensorShape({1}), nullptr);
  }

  explicit GpuBackend(OpKernelContext* context) : context_(context) {}

  CUstream_st* stream() const override {
    auto* const stream = context_->op_device_context()->stream();
    return static_cast<CUstream_st*>(stream->platform_specific_handle().stream);
  }

  // The allocator hands memory on in the order of the stream.
  void* Allocate(size_t bytes) override { return Allocate(bytes, /*retry=*/true); }
  void* TryAllocate(size_t bytes) override { return Allocate(bytes, /*retry=*/false); }

  bool allows_tf32() const override { return tensorflow::tensor_float_32_execution_enabled(); }
  bool deterministic() const override { return tensorflow::OpDeterminismRequired(); }

  Status Forward(const MatMulProblem& problem, Activation activation,
                 const ForwardTensors& tensors) {
    return cuda::FusedMatMul(problem, activation, tensors, *this);
  }

  Status Backward(DType dtype, int64_t rows, int64_t cols, const MatMulProblem* problem,
                  Activation activation, const GradientPolicy& policy,
                  const BackwardTensors& tensors) {
    return cuda::FusedMatMulGradient(dtype, rows, cols, problem, activation, policy, tensors,
                                     *this);
  }

  absl::Status Copy(const Tensor& tensor, Tensor* copy) {
    if (auto s = context_->allocate_temp(tensor.dtype(), tensor.shape(), copy); !s.ok()) return s;
    return ToAbsl(cuda::EnqueueCopy(tensor.data(), copy->data(), tensor.TotalBytes(), *this));
  }

  absl::Status FillWithZeros(Tensor* tensor) {
    return ToAbsl(cuda::EnqueueZeros(tensor->data(), tensor->TotalBytes(), *this));
  }

 private:
  // TensorFlow tries again for ten seconds, and then prints what it has.
  void* Allocate(size_t bytes, bool retry) {
    Tensor memory;
    const TensorShape shape({static_cast<int64_t>(bytes)});
    const tensorflow::AllocationAttributes how(retry, /*allocation_will_be_logged=*/false,
                                               /*freed_by_func=*/nullptr);
    if (!context_
             ->allocate_temp(tensorflow::DT_UINT8, shape, &memory,
                             tensorflow::AllocatorAttributes(), how)
             .ok()) {
      return nullptr;
    }
    temporaries_.push_back(memory);
    return memory.data();
  }

  OpKernelContext* context_;
  std::vector<Tensor> temporaries_;
};

const bool registered = RegisterKernels<GpuBackend>();

}  // namespace

}  // namespace stopgrad::tensorflow_ops
