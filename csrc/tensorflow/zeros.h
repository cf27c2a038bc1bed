#ifndef STOPGRAD_TENSORFLOW_ZEROS_H_
#define STOPGRAD_TENSORFLOW_ZEROS_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "tensorflow/core/framework/allocation_description.pb.h"
#include "tensorflow/core/framework/tensor.h"

namespace stopgrad::tensorflow_ops {

// Memory that the operating system gives: zeros, and no memory at all where nobody writes to it.
class FreshPages : public tensorflow::TensorBuffer {
 public:
  FreshPages(void* pages, size_t bytes) : TensorBuffer(pages), bytes_(bytes) {}
  ~FreshPages() override { munmap(data(), bytes_); }

  size_t size() const override { return bytes_; }
  TensorBuffer* root_buffer() override { return this; }
  void FillAllocationDescription(tensorflow::AllocationDescription* proto) const override {
    proto->set_requested_bytes(static_cast<int64_t>(bytes_));
    proto->set_allocator_name("fresh pages");
  }

 private:
  size_t bytes_;
};

// A tensor of zeros that costs nothing until somebody writes to it, for gradients that are nothing
// else: to write them would take a few hundredths of a layer's forward pass. Not initialized where
// there is no memory, or where so few zeros are written faster than pages are mapped.
inline tensorflow::Tensor FreshZeros(tensorflow::DataType dtype,
                                     const tensorflow::TensorShape& shape) {
  constexpr size_t kFewestBytes = 64 << 10;
  const size_t bytes = shape.num_elements() * tensorflow::DataTypeSize(dtype);
  tensorflow::Tensor none(dtype, tensorflow::TensorShape({1}), nullptr);
  if (bytes < kFewestBytes) return none;
  void* const pages =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return none;
  auto* const buffer = new FreshPages(pages, bytes);
  tensorflow::Tensor zeros(dtype, shape, buffer);
  buffer->Unref();  // the tensor holds it
  return zeros;
}

}  // namespace stopgrad::tensorflow_ops

#endif  // STOPGRAD_TENSORFLOW_ZEROS_H_
