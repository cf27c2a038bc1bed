#include "python/cuda_arrays.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "cuda/status.h"
#include "python/dlpack.h"

namespace stopgrad {

namespace {

void Check(cudaError_t error, const char* call) { ThrowIfError(cuda::ToStatus(error, call)); }

DLDataType DLTypeOf(DType dtype) {
  const auto bits = static_cast<uint8_t>(8 * SizeOf(dtype));
  if (dtype == DType::kBFloat16) return {kDLBfloat, bits, 1};
  if (IsComplex(dtype)) return {kDLComplex, bits, 1};
  return {HasActivations(dtype) ? kDLFloat : kDLInt, bits, 1};
}

DType DTypeOf(const char* name, DLDataType type) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const DLDataType known = DLTypeOf(static_cast<DType>(i));
    if (type.lanes == 1 && type.code == known.code && type.bits == known.bits) {
      return static_cast<DType>(i);
    }
  }
  return ParseDType(name, "DLPack code " + std::to_string(type.code) + ", " +
                              std::to_string(type.bits) + " bits");
}

// Whether these strides, in elements, are those of a dense array.
bool IsDense(const Shape& shape, const int64_t* strides) {
  if (strides == nullptr || NumElements(shape) == 0) return true;
  int64_t due = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != due) return false;
    due *= shape[i];
  }
  return true;
}

void RequireDense(const char* name, bool dense) {
  if (dense) return;
  throw py::value_error(std::string("`") + name +
                        "` is strided; due is a dense array, row by row, as ascontiguousarray or "
                        "contiguous() make it");
}

// A stream as both protocols number it: 1 is the default one.
uintptr_t NumberOf(cudaStream_t stream) {
  const auto number = reinterpret_cast<uintptr_t>(stream);
  return number == 0 ? 1 : number;
}
cudaStream_t StreamOf(uintptr_t number) {
  return number == 1 ? nullptr : reinterpret_cast<cudaStream_t>(number);
}

Input FromInterface(const char* name, const py::dict& interface, cudaStream_t stream) {
  Input input;
  input.given = true;
  input.shape = py::cast<Shape>(interface["shape"]);
  const py::dtype dtype = py::dtype::from_args(interface["typestr"]);
  input.dtype = ParseDType(name, py::cast<std::string>(dtype.attr("name")));
  input.data =
      reinterpret_cast<const void*>(py::cast<uintptr_t>(py::cast<py::tuple>(interface["data"])[0]));
  if (interface.contains("stream") && !interface["stream"].is_none()) {
    const cudaStream_t producer = StreamOf(py::cast<uintptr_t>(interface["stream"]));
    ThrowIfError(WaitFor(producer, stream));
  }
  const py::object strides =
      interface.contains("strides") ? py::object(interface["strides"]) : py::none();
  if (!strides.is_none()) {
    Shape elements = py::cast<Shape>(strides);
    for (int64_t& stride : elements) stride /= SizeOf(input.dtype);
    RequireDense(name, IsDense(input.shape, elements.data()));
  }
  return input;
}

// The producer makes the stream wait for what it has enqueued elsewhere.
Input FromDLPack(const char* name, const py::object& array, cudaStream_t stream, py::object* held) {
  const py::capsule capsule = array.attr("__dlpack__")(py::arg("stream") = NumberOf(stream));
  auto* const managed =
      static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  *held = capsule;  // whose destructor gives the tensor back, as it is not renamed
  const DLTensor& tensor = managed->dl_tensor;
  Input input;
  input.given = true;
  input.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  input.dtype = DTypeOf(name, tensor.dtype);
  input.data = static_cast<const char*>(tensor.data) + tensor.byte_offset;
  RequireDense(name, IsDense(input.shape, tensor.strides));
  return input;
}

py::dtype NumPyDType(DType dtype) {
  if (dtype == DType::kBFloat16) {
    return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
  }
  return py::dtype(NameOf(dtype));
}

}  // namespace

CurrentDeviceGuard::CurrentDeviceGuard(int device) {
  Check(cudaGetDevice(&before_), "cudaGetDevice");
  Check(cudaSetDevice(device), "cudaSetDevice");
}
CurrentDeviceGuard::~CurrentDeviceGuard() { cudaSetDevice(before_); }

// Freed on the stream that it was made on, after all that was enqueued there. Where others have
// read it too, after all that the device has to do.
struct DeviceArray::Memory {
  void* data = nullptr;
  int device = 0;
  py::object stream_object;
  cudaStream_t stream = nullptr;
  bool is_shared = false;

  ~Memory() {
    int before = 0;
    cudaGetDevice(&before);
    cudaSetDevice(device);
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(stream, &capture);
    // While a graph is captured nobody may wait, and its launches keep the order.
    if (is_shared && capture == cudaStreamCaptureStatusNone) cudaDeviceSynchronize();
    if (data != nullptr) cudaFreeAsync(data, stream);
    cudaSetDevice(before);
    // A library that took the array may let go of it in any thread.
    const py::gil_scoped_acquire acquire;
    stream_object = py::object();
  }
};

DeviceArray::DeviceArray(const Shape& shape, DType dtype, int device, const py::object& stream)
    : shape_(shape), dtype_(dtype), device_(device), memory_(std::make_shared<Memory>()) {
  const CurrentDeviceGuard guard(device);
  memory_->device = device;
  memory_->stream_object = stream;
  memory_->stream = ParseStream(stream);
  ThrowIfError(AllocateOnStream(bytes(), device, memory_->stream, &memory_->data));
}

void* DeviceArray::data() const { return memory_->data; }
cudaStream_t DeviceArray::stream() const { return memory_->stream; }

DeviceArray DeviceArray::FromNumPy(const py::array& array, const py::object& stream) {
  const py::object native = array.dtype().attr("newbyteorder")("=");
  const py::array dense =
      py::cast<py::array>(py::module_::import("numpy").attr("ascontiguousarray")(array, native));
  const Shape shape(array.shape(), array.shape() + array.ndim());
  const DType dtype = ParseDType("array", py::cast<std::string>(array.dtype().attr("name")));
  int device = 0;
  Check(cudaGetDevice(&device), "cudaGetDevice");
  DeviceArray result(shape, dtype, device, stream);
  Check(cudaMemcpyAsync(result.data(), dense.data(), result.bytes(), cudaMemcpyHostToDevice,
                        result.stream()),
        "cudaMemcpyAsync");
  Check(cudaStreamSynchronize(result.stream()), "cudaStreamSynchronize");
  return result;
}

py::array DeviceArray::ToNumPy() const {
  const CurrentDeviceGuard guard(device_);
  py::array array(NumPyDType(dtype_), shape_);
  Check(cudaMemcpyAsync(array.mutable_data(), data(), bytes(), cudaMemcpyDeviceToHost, stream()),
        "cudaMemcpyAsync");
  Check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
  return array;
}

DeviceArray DeviceArray::Copy() const {
  const CurrentDeviceGuard guard(device_);
  DeviceArray copy(shape_, dtype_, device_, memory_->stream_object);
  Check(cudaMemcpyAsync(copy.data(), data(), bytes(), cudaMemcpyDeviceToDevice, stream()),
        "cudaMemcpyAsync");
  return copy;
}

Status AllocateOnStream(size_t bytes, int device, cudaStream_t stream, void** memory) {
  static std::mutex mutex;
  static auto* pools = new std::map<int, cudaMemPool_t>;
  std::lock_guard<std::mutex> lock(mutex);
  cudaMemPool_t& pool = (*pools)[device];
  if (pool == nullptr) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    Status status = cuda::ToStatus(cudaMemPoolCreate(&pool, &properties), "cudaMemPoolCreate");
    if (!status.ok()) return status;
    uint64_t keep = std::numeric_limits<uint64_t>::max();
    status = cuda::ToStatus(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep),
                            "cudaMemPoolSetAttribute");
    if (!status.ok()) return status;
  }
  return cuda::ToStatus(cudaMallocFromPoolAsync(memory, std::max<size_t>(1, bytes), pool, stream),
                        "cudaMallocFromPoolAsync");
}

Status WaitFor(cudaStream_t producer, cudaStream_t stream) {
  if (producer == stream) return Status();
  cudaEvent_t event = nullptr;
  Status status = cuda::ToStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming),
                                 "cudaEventCreateWithFlags");
  if (status.ok()) status = cuda::ToStatus(cudaEventRecord(event, producer), "cudaEventRecord");
  if (status.ok()) {
    status = cuda::ToStatus(cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
  }
  if (event != nullptr) cudaEventDestroy(event);
  return status;
}

py::dict DeviceArray::CudaArrayInterface() const {
  if (dtype_ == DType::kBFloat16) {
    throw py::attribute_error("__cuda_array_interface__ knows no bfloat16; use from_dlpack");
  }
  py::dict interface;
  interface["shape"] = shape();
  interface["typestr"] = NumPyDType(dtype_).attr("str");
  interface["data"] = py::make_tuple(reinterpret_cast<uintptr_t>(data()), false);
  interface["version"] = 3;
  interface["stream"] = NumberOf(stream());
  memory_->is_shared = true;
  return interface;
}

py::capsule DeviceArray::DLPack(const py::object& consumer, const py::kwargs&) const {
  const CurrentDeviceGuard guard(device_);
  // None stands for the default stream, -1 for no waiting.
  const auto number = consumer.is_none() ? 1 : py::cast<int64_t>(consumer);
  if (number != -1) ThrowIfError(WaitFor(stream(), StreamOf(number)));
  memory_->is_shared = true;
  struct Holder {
    DLManagedTensor managed;
    Shape shape;
    std::shared_ptr<Memory> memory;
  };
  auto* const holder = new Holder{{}, shape_, memory_};
  holder->managed.dl_tensor = {data(),
                               {kDLCUDA, device_},
                               static_cast<int32_t>(shape_.size()),
                               DLTypeOf(dtype_),
                               holder->shape.data(),
                               nullptr,
                               0};
  holder->managed.manager_ctx = holder;
  holder->managed.deleter = [](DLManagedTensor* self) {
    delete static_cast<Holder*>(self->manager_ctx);
  };
  return py::capsule(&holder->managed, "dltensor", [](PyObject* capsule) {
    // Whoever took the tensor has renamed the capsule.
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;
    auto* const managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    managed->deleter(managed);
  });
}

py::tuple DeviceArray::DLPackDevice() const { return py::make_tuple(kDLCUDA, device_); }

Input DeviceArray::AsInput(cudaStream_t reader) const {
  if (reader != stream()) {
    const CurrentDeviceGuard guard(device_);
    ThrowIfError(WaitFor(stream(), reader));
    memory_->is_shared = true;
  }
  Input input;
  input.given = true;
  input.data = data();
  input.shape = shape_;
  input.dtype = dtype_;
  return input;
}

Input ReadDeviceArray(const char* name, const py::object& array, cudaStream_t stream,
                      py::object* held, int* device) {
  Input input;
  *held = array;
  if (py::isinstance<DeviceArray>(array)) {
    const auto& own = py::cast<const DeviceArray&>(array);
    *device = own.device();
    return own.AsInput(stream);
  }
  // DLPack first, which knows bfloat16.
  if (py::hasattr(array, "__dlpack__")) {
    const auto [type, id] =
        py::cast<std::tuple<int32_t, int32_t>>(array.attr("__dlpack_device__")());
    if (type != kDLCUDA) {
      throw py::type_error(std::string("`") + name +
                           "` is not in a GPU's memory; to_device copies it there");
    }
    *device = id;
    return FromDLPack(name, array, stream, held);
  }
  if (py::hasattr(array, "__cuda_array_interface__")) {
    input = FromInterface(name, array.attr("__cuda_array_interface__"), stream);
  } else {
    throw py::type_error(std::string("`") + name + "` is a " +
                         py::cast<std::string>(py::type::of(array).attr("__name__")) +
                         "; due is an array with __cuda_array_interface__ or __dlpack__");
  }
  cudaPointerAttributes attributes{};
  *device = 0;
  if (NumElements(input.shape) > 0) {
    Check(cudaPointerGetAttributes(&attributes, input.data), "cudaPointerGetAttributes");
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged) {
      throw py::type_error(std::string("`") + name + "` is not in a GPU's memory");
    }
    *device = attributes.device;
  }
  return input;
}

cudaStream_t ParseStream(const py::object& stream) {
  if (stream.is_none()) return nullptr;
  py::object number = stream;
  if (py::hasattr(stream, "__cuda_stream__")) {
    number = py::cast<py::tuple>(stream.attr("__cuda_stream__")())[1];
  } else if (py::hasattr(stream, "cuda_stream")) {  // PyTorch
    number = stream.attr("cuda_stream");
  } else if (py::hasattr(stream, "ptr")) {  // CuPy
    number = stream.attr("ptr");
  }
  return reinterpret_cast<cudaStream_t>(py::cast<uintptr_t>(number));
}

}  // namespace stopgrad
