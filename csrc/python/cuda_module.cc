// stopgrad_op._kernels.cuda: the CUDA kernels on arrays in a GPU's memory.
#include "python/cuda_module.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/fused_matmul.h"
#include "cuda/library.h"
#include "cuda/matmul.h"
#include "cuda/status.h"
#include "python/cuda_arrays.h"
#include "python/kernels.h"

namespace stopgrad {
namespace {

// Memory of the CUDA runtime's own pool, on a stream.
class StreamDevice : public Device {
 public:
  StreamDevice(cudaStream_t stream, bool allows_tf32, bool deterministic)
      : stream_(stream), allows_tf32_(allows_tf32), deterministic_(deterministic) {}
  ~StreamDevice() override {
    for (void* block : blocks_) cudaFreeAsync(block, stream_);
  }

  cudaStream_t stream() const override { return stream_; }
  bool allows_tf32() const override { return allows_tf32_; }
  bool deterministic() const override { return deterministic_; }

  void* Allocate(size_t bytes) override {
    void* block = nullptr;
    if (cudaMallocAsync(&block, bytes, stream_) != cudaSuccess) {
      cudaGetLastError();  // or it would be the next call's
      return nullptr;
    }
    blocks_.push_back(block);
    return block;
  }

 private:
  cudaStream_t stream_;
  bool allows_tf32_;
  bool deterministic_;
  std::vector<void*> blocks_;
};

// Arrays in a GPU's memory.
class CudaBackend {
 public:
  explicit CudaBackend(const py::kwargs& settings) {
    py::dict left = py::cast<py::dict>(settings.attr("copy")());
    stream_ = ParseStream(TakeSetting(left, "stream", py::object(py::none())));
    allow_tf32_ = TakeSetting(left, "allow_tf32", false);
    deterministic_ = TakeSetting(left, "deterministic", false);
    CheckNoSettingsLeft(left);
  }

  Input Read(const char* name, const py::object& array) {
    int device = 0;
    held_.emplace_back();
    Input input = ReadDeviceArray(name, array, &held_.back(), &device);
    if (!device_) {
      device_ = device;
      dtype_ = input.dtype;
      guard_.emplace(device);
    } else if (device != *device_ && NumElements(input.shape) > 0) {
      throw py::value_error(std::string("`") + name + "` is on device " + std::to_string(device) +
                            "; due is " + std::to_string(*device_) + ", as the other arrays");
    }
    return input;
  }

  py::object New(const Shape& shape, bool poison, void** data) {
    DeviceArray array(shape, dtype_, *device_, stream_);
    *data = array.data();
    if (poison) {
      ThrowIfError(
          cuda::ToStatus(cudaMemsetAsync(*data, 0xff, array.bytes(), stream_), "cudaMemsetAsync"));
    }
    return py::cast(std::move(array));
  }

  Status Forward(const ForwardCall& call, const ForwardTensors& tensors) {
    StreamDevice device(stream_, allow_tf32_, deterministic_);
    return cuda::FusedMatMul(call.problem, call.activation, tensors, device);
  }

  Status Backward(const GradientCall& call, const BackwardTensors& tensors) {
    StreamDevice device(stream_, allow_tf32_, deterministic_);
    return cuda::FusedMatMulGradient(call.dtype, call.rows, call.cols, call.problem_if_any(),
                                     call.activation, call.policy, tensors, device);
  }

 private:
  cudaStream_t stream_ = nullptr;
  bool allow_tf32_ = false;
  bool deterministic_ = false;
  std::vector<py::object> held_;
  std::optional<int> device_;
  std::optional<CurrentDeviceGuard> guard_;
  DType dtype_ = DType::kFloat;
};

py::dict Info() {
  const cuda::LibraryInfo info = cuda::GetLibraryInfo();
  py::dict result;
  result["devices"] = info.devices;
  result["devices_missing"] = info.devices_missing;
  result["driver"] = info.driver;
  result["runtime"] = info.runtime;
  result["cublas_lt"] = info.cublas_lt;
  result["cublas_lt_missing"] = info.cublas_lt_missing;
  result["architectures"] = STOPGRAD_CUDA_ARCHITECTURES;
  return result;
}

}  // namespace

void DefineCuda(py::module_& module) {
  using namespace py::literals;
  module.doc() = "The CUDA kernels of stopgrad_op on arrays in a GPU's memory.";
  py::class_<DeviceArray>(module, "DeviceArray", py::module_local(),
                          "A dense array in a GPU's memory.")
      .def("numpy", &DeviceArray::ToNumPy, "A copy in the host's memory.")
      .def_property_readonly("shape", &DeviceArray::shape)
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("__cuda_array_interface__", &DeviceArray::CudaArrayInterface)
      .def("__dlpack__", &DeviceArray::DLPack)
      .def("__dlpack_device__", &DeviceArray::DLPackDevice);
  module.def("to_device", &DeviceArray::FromNumPy, "array"_a, py::kw_only(),
             "stream"_a = py::none(), "A copy of an array in the current GPU's memory.");
  Kernels<CudaBackend>::Define(module);
  module.def(
      "synchronize",
      [](const py::object& stream) {
        const cudaStream_t parsed = ParseStream(stream);
        py::gil_scoped_release release;
        const Status status =
            cuda::ToStatus(cudaStreamSynchronize(parsed), "cudaStreamSynchronize");
        py::gil_scoped_acquire acquire;
        ThrowIfError(status);
      },
      "stream"_a = py::none(), "Wait until all that is enqueued on a stream is done.");
  module.def("info", Info, "The devices, the driver and cublasLt, or why there are none.");
  module.def(
      "save_algorithms", [](const std::string& path) { ThrowIfError(cuda::SaveChoices(path)); },
      "path"_a, "Write the algorithms chosen so far to a file.");
  module.def(
      "load_algorithms", [](const std::string& path) { ThrowIfError(cuda::LoadChoices(path)); },
      "path"_a, "Use the algorithms of a file where they fit.");
  module.def("forget_algorithms", cuda::ForgetChoices);
  module.def("num_timed", cuda::NumTimed, "How many problems algorithms were timed for.");
}

}  // namespace stopgrad
