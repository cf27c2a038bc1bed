// stopgrad_op._kernels.cuda: the CUDA kernels on arrays in a GPU's memory.
#include "python/cuda_module.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/captures.h"
#include "cuda/choices.h"
#include "cuda/elementwise.h"
#include "cuda/fused_matmul.h"
#include "cuda/library.h"
#include "cuda/memory.h"
#include "cuda/status.h"
#include "python/cuda_arrays.h"
#include "python/kernels.h"

namespace stopgrad {
namespace {

// Memory of this module's pool, on a stream.
class StreamDevice : public Device {
 public:
  struct Settings {
    cudaStream_t stream = nullptr;
    bool allow_tf32 = false;
    bool deterministic = false;
    bool always_gather = false;
    bool always_fill = false;
  };

  StreamDevice(const Settings& settings, int device) : settings_(settings), device_(device) {}
  ~StreamDevice() override {
    for (void* block : blocks_) cudaFreeAsync(block, settings_.stream);
  }

  cudaStream_t stream() const override { return settings_.stream; }
  bool allows_tf32() const override { return settings_.allow_tf32; }
  bool deterministic() const override { return settings_.deterministic; }
  GatherCosts gather_costs() const override {
    return settings_.always_gather ? GatherCosts{0, 0, 0, 0} : Device::gather_costs();
  }
  FillingCosts filling_costs() const override {
    return settings_.always_fill ? FillingCosts{1, 0, 0, 0} : Device::filling_costs();
  }

  void* Allocate(size_t bytes) override {
    void* block = nullptr;
    const Status status = AllocateOnStream(bytes, device_, settings_.stream, &block);
    if (!status.ok()) {
      // That there is no memory, who asked for it says better.
      if (status.code() != StatusCode::kResourceExhausted && error_.ok()) error_ = status;
      return nullptr;
    }
    blocks_.push_back(block);
    return block;
  }

  // What came in the way of an allocation, if that was something else than a lack of memory.
  Status Check(const Status& status) const { return error_.ok() ? status : error_; }

 private:
  Settings settings_;
  int device_;
  std::vector<void*> blocks_;
  Status error_;
};

// Arrays in a GPU's memory.
class CudaBackend {
 public:
  explicit CudaBackend(const py::kwargs& settings) {
    py::dict left = py::cast<py::dict>(settings.attr("copy")());
    stream_ = TakeSetting(left, "stream", py::object(py::none()));
    settings_.stream = ParseStream(stream_);
    settings_.allow_tf32 = TakeSetting(left, "allow_tf32", false);
    settings_.deterministic = TakeSetting(left, "deterministic", false);
    settings_.always_gather = TakeSetting(left, "always_gather", false);
    settings_.always_fill = TakeSetting(left, "always_fill", false);
    CheckNoSettingsLeft(left);
  }

  Input Read(const char* name, const py::object& array) {
    int device = 0;
    held_.emplace_back();
    Input input = ReadDeviceArray(name, array, settings_.stream, &held_.back(), &device);
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
      ThrowIfError(cuda::ToStatus(cudaMemsetAsync(*data, 0xff, array.bytes(), settings_.stream),
                                  "cudaMemsetAsync"));
    }
    return py::cast(std::move(array));
  }

  Status Forward(const ForwardCall& call, const ForwardTensors& tensors) {
    StreamDevice device(settings_, *device_);
    return device.Check(cuda::FusedMatMul(call.problem, call.activation, tensors, device));
  }

  // Work that is a part of a call, by itself.
  template <typename Work>
  Status Enqueue(const Work& work) {
    const cuda::LeavesCapturesAlone guard;
    StreamDevice device(settings_, *device_);
    return device.Check(cuda::Enqueue(work, device));
  }

  Status Backward(const GradientCall& call, const BackwardTensors& tensors) {
    StreamDevice device(settings_, *device_);
    return device.Check(cuda::FusedMatMulGradient(call.dtype, call.rows, call.cols,
                                                  call.problem_if_any(), call.activation,
                                                  call.policy, tensors, device));
  }

 private:
  py::object stream_;
  StreamDevice::Settings settings_;
  std::vector<py::object> held_;
  std::optional<int> device_;
  std::optional<CurrentDeviceGuard> guard_;
  DType dtype_ = DType::kFloat;
};

// Throws where it is no matrix.
void CheckMatrix(const Input& input) {
  if (input.shape.size() != 2) {
    throw py::value_error(std::string("`") + input.name + "` has shape " + ToString(input.shape) +
                          "; due is a matrix");
  }
}

py::object Activate(const py::object& x_array, const py::object& bias_array,
                    const std::string& activation, const py::kwargs& settings) {
  CudaBackend backend(settings);
  Input x = backend.Read("x", x_array), bias;
  x.name = "x";
  CheckMatrix(x);
  if (!bias_array.is_none()) bias = backend.Read("bias", bias_array);
  if (bias && (bias.shape != Shape{x.shape[1]} || bias.dtype != x.dtype)) {
    throw py::value_error("`bias` is " + std::string(NameOf(bias.dtype)) + " " +
                          ToString(bias.shape) + "; due is " + NameOf(x.dtype) + " [" +
                          std::to_string(x.shape[1]) + "]");
  }
  cuda::BiasActivation work{x.dtype,    ParseActivation(activation, x.dtype),
                            x.shape[0], x.shape[1],
                            x.data,     bias.data,
                            nullptr,    nullptr};
  py::object y = backend.New(x.shape, /*poison=*/false, &work.y);
  ThrowIfError(backend.Enqueue(work));
  return y;
}

// Rows of a matrix [total, cols], selected by a list, to where they lie behind each other, or back.
using Places = py::array_t<int64_t, py::array::c_style>;

py::object CopyRows(const py::object& array, const Places& rows, std::optional<int64_t> total,
                    const py::kwargs& settings) {
  CudaBackend backend(settings);
  Input input = backend.Read("array", array);
  input.name = "array";
  CheckMatrix(input);
  if (total.value_or(0) < 0) {
    throw py::value_error("`total` is " + std::to_string(*total) + "; due is 0 or more");
  }
  const int64_t cols = input.shape[1];
  const int64_t count = rows.size();
  if (total && input.shape[0] != count) {
    throw py::value_error("`rows` has " + std::to_string(count) + " places; due are " +
                          std::to_string(input.shape[0]) + ", one for each row of `array`");
  }
  std::vector<int64_t> places;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows.data()[i];
    if (row < 0 || row >= total.value_or(input.shape[0])) {
      throw py::value_error("`rows` has " + std::to_string(row) + "; due are rows from 0 to " +
                            std::to_string(total.value_or(input.shape[0]) - 1));
    }
    places.push_back(row * cols);
  }
  const MatrixView dense{cols, 1}, selected{cols, 1, false, 0, places.data()};
  cuda::Copy copy{};
  copy.dtype = input.dtype;
  copy.rows = count;
  copy.cols = cols;
  copy.from = input.data;
  copy.from_view = total ? dense : selected;
  copy.to_view = total ? selected : dense;
  py::object result = backend.New({total.value_or(count), cols}, /*poison=*/false, &copy.to);
  ThrowIfError(backend.Enqueue(copy));
  return result;
}

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
      .def("copy", &DeviceArray::Copy, "A copy on the device, enqueued on the array's stream.")
      .def_property_readonly("shape", &DeviceArray::shape)
      .def_property_readonly("dtype", &DeviceArray::dtype)
      .def_property_readonly("__cuda_array_interface__", &DeviceArray::CudaArrayInterface)
      .def("__dlpack__", &DeviceArray::DLPack, py::kw_only(), "stream"_a = py::none())
      .def("__dlpack_device__", &DeviceArray::DLPackDevice);
  module.def("to_device", &DeviceArray::FromNumPy, "array"_a, py::kw_only(),
             "stream"_a = py::none(), "A copy of an array in the current GPU's memory.");
  Kernels<CudaBackend>::Define(module);
  module.def("activate", Activate, "x"_a, "bias"_a = py::none(), py::kw_only(),
             "activation"_a = "linear", "y = f(x + bias) for a matrix, as after a product.");
  module.def(
      "take_rows",
      [](const py::object& array, const Places& rows, const py::kwargs& settings) {
        return CopyRows(array, rows, std::nullopt, settings);
      },
      "array"_a, "rows"_a, "The rows of a matrix that a list names, as before a product.");
  module.def(
      "put_rows",
      [](const py::object& array, const Places& rows, int64_t total, const py::kwargs& settings) {
        return CopyRows(array, rows, total, settings);
      },
      "array"_a, "rows"_a, "total"_a,
      "A matrix of `total` rows, those that a list names being an array's, as after a product; the "
      "others are not written.");
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
  module.def(
      "driver", [] { return cuda::GetDriver(); },
      "The CUDA version that the driver knows; 0 where there is none.");
  module.def("info", Info, "The devices, the driver and cublasLt, or why there are none.");
  module.def(
      "save_algorithms", [](const std::string& path) { ThrowIfError(cuda::SaveChoices(path)); },
      "path"_a, "Write the algorithms chosen so far to a file.");
  module.def(
      "load_algorithms", [](const std::string& path) { ThrowIfError(cuda::LoadChoices(path)); },
      "path"_a, "Use the algorithms of a file where they fit.");
  module.def(
      "set_search",
      [](int candidates, double milliseconds) { cuda::SetSearch({candidates, milliseconds}); },
      py::kw_only(), "candidates"_a = cuda::Search().candidates,
      "milliseconds"_a = cuda::Search().milliseconds,
      "How many proposals of cublasLt are timed for a new problem, and for how long.");
  module.def("forget_algorithms", cuda::ForgetChoices);
  module.def("num_timed", cuda::NumTimed, "How many problems algorithms were timed for.");
}

}  // namespace stopgrad
