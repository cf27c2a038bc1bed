// The ops' kernels on the CPU: TensorFlow's threads and its allocator.
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "cpu/fused_matmul.h"
#include "tensorflow/core/framework/tensor_util.h"
#include "tensorflow/kernels.h"
#include "tensorflow/zeros.h"

namespace stopgrad::tensorflow_ops {

namespace {

class CpuBackend : public Host {
 public:
  static const char* DeviceName() { return tensorflow::DEVICE_CPU; }
  static bool Supports(DType) { return true; }
  static Tensor FreshZeros(tensorflow::DataType dtype, const TensorShape& shape) {
    return tensorflow_ops::FreshZeros(dtype, shape);
  }

  explicit CpuBackend(OpKernelContext* context)
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

  Status Forward(const MatMulProblem& problem, Activation activation,
                 const ForwardTensors& tensors) {
    return cpu::FusedMatMul(problem, activation, tensors, *this);
  }

  Status Backward(DType dtype, int64_t rows, int64_t cols, const MatMulProblem* problem,
                  Activation activation, const GradientPolicy& policy,
                  const BackwardTensors& tensors) {
    return cpu::FusedMatMulGradient(dtype, rows, cols, problem, activation, policy, tensors, *this);
  }

  absl::Status Copy(const Tensor& tensor, Tensor* copy) {
    *copy = tensorflow::tensor::DeepCopy(tensor);
    return absl::OkStatus();
  }

  absl::Status FillWithZeros(Tensor* tensor) {
    std::memset(tensor->data(), 0, tensor->TotalBytes());
    return absl::OkStatus();
  }

 private:
  OpKernelContext* context_;
  const tensorflow::DeviceBase::CpuWorkerThreads& workers_;
  std::vector<Tensor> temporaries_;
};

const bool registered = RegisterKernels<CpuBackend>();

}  // namespace

}  // namespace stopgrad::tensorflow_ops
