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

// Memory of a pool of this module's, which keeps what is freed: the runtime's own gives it back to
// the driver whenever somebody waits.
Status AllocateOnStream(size_t bytes, int device, cudaStream_t stream, void** memory);

// Makes what is enqueued on `stream` from now on wait for what `producer` has enqueued.
Status WaitFor(cudaStream_t producer, cudaStream_t stream);

// A dense array in a GPU's memory, which other libraries take by either protocol. What is enqueued
// on its stream may still be going to write it.
class DeviceArray {
 public:
  // Throws MemoryError. The stream is kept, as whoever made it may let go of it.
  DeviceArray(const Shape& shape, DType dtype, int device, const py::object& stream);

  static DeviceArray FromNumPy(const py::array& array, const py::object& stream);
  py::array ToNumPy() const;  // waits for the stream
  DeviceArray Copy() const;

  py::tuple shape() const { return py::cast(shape_); }
  std::string dtype() const { return NameOf(dtype_); }
  py::dict CudaArrayInterface() const;
  py::capsule DLPack(const py::object& consumer, const py::kwargs& settings) const;
  py::tuple DLPackDevice() const;

  // To be read by what is enqueued on `reader`.
  Input AsInput(cudaStream_t reader) const;
  void* data() const;
  int64_t bytes() const { return NumElements(shape_) * SizeOf(dtype_); }
  int device() const { return device_; }

 private:
  struct Memory;

  cudaStream_t stream() const;

  Shape shape_;
  DType dtype_;
  int device_;
  std::shared_ptr<Memory> memory_;
};

// Reads a dense array in a GPU's memory, for work on `stream`: a DeviceArray, or whatever has
// `__dlpack__` or `__cuda_array_interface__`. `held` is what must live until that is enqueued.
Input ReadDeviceArray(const char* name, const py::object& array, cudaStream_t stream,
                      py::object* held, int* device);

// From None (the default stream), a number, or the stream of CuPy, PyTorch or whoever implements
// `__cuda_stream__`.
cudaStream_t ParseStream(const py::object& stream);

}  // namespace stopgrad

#endif  // STOPGRAD_PYTHON_CUDA_ARRAYS_H_
