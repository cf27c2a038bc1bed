#ifndef STOPGRAD_PYTHON_CUDA_ARRAYS_H_
#define STOPGRAD_PYTHON_CUDA_ARRAYS_H_

#include <cuda_runtime_api.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>

#include "core/dtype.h"
#include "core/problem.h"
#include "python/arguments.h"

namespace stopgrad {

// Makes a device current while it lives.
class CurrentDeviceGuard {
 public:
  explicit CurrentDeviceGuard(int device);
  ~CurrentDeviceGuard();
  CurrentDeviceGuard(const CurrentDeviceGuard&) = delete;
  CurrentDeviceGuard& operator=(const CurrentDeviceGuard&) = delete;

 private:
  int before_ = 0;
};

// A dense array in a GPU's memory, which other libraries take by either protocol. What is enqueued
// on its stream, which has to live longer, may still be going to write it.
class DeviceArray {
 public:
  // Throws MemoryError.
  DeviceArray(const Shape& shape, DType dtype, int device, cudaStream_t stream);

  static DeviceArray FromNumPy(const py::array& array, py::object stream);
  py::array ToNumPy() const;  // waits for the stream

  py::tuple shape() const { return py::cast(shape_); }
  std::string dtype() const { return NameOf(dtype_); }
  py::dict CudaArrayInterface() const;
  py::capsule DLPack(const py::kwargs& settings) const;
  py::tuple DLPackDevice() const;

  Input AsInput() const;
  void* data() const { return memory_.get(); }
  int64_t bytes() const { return NumElements(shape_) * SizeOf(dtype_); }
  int device() const { return device_; }

 private:
  Shape shape_;
  DType dtype_;
  int device_;
  cudaStream_t stream_;
  std::shared_ptr<void> memory_;
};

// Reads a dense array in a GPU's memory: a DeviceArray, or whatever has `__cuda_array_interface__`
// or
// `__dlpack__`. The array is the caller's to keep. `held` is what must live as long as it is read.
Input ReadDeviceArray(const char* name, const py::object& array, py::object* held, int* device);

// From None (the default stream), a number, or the stream of CuPy, PyTorch or whoever implements
// `__cuda_stream__`.
cudaStream_t ParseStream(const py::object& stream);

}  // namespace stopgrad

#endif  // STOPGRAD_PYTHON_CUDA_ARRAYS_H_
