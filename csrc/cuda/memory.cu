#include <algorithm>
#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/memory.h"
#include "cuda/rows.cuh"
#include "cuda/staging.h"

namespace stopgrad::cuda {

namespace {

// One unit is what a thread moves at once: an element, or several that lie together.
template <typename Unit>
__device__ Unit Conjugate(Unit unit) {
  unit.y = -unit.y;
  return unit;
}

// One side of a copy, in units. Rows are what lies apart, columns what lies together.
template <typename Unit>
struct Side {
  Unit* data;
  int64_t row_stride;
  int64_t col_stride;
  int64_t matrix_stride;
  const int64_t* rows;  // places instead of strides
  const int64_t* cols;

  __device__ Unit* At(int64_t matrix, int64_t row, int64_t col) const {
    return data + matrix * matrix_stride + (rows != nullptr ? rows[row] : row * row_stride) +
           (cols != nullptr ? cols[col] : col * col_stride);
  }
};

// Rows of a thread, all of which it has in flight where it copies.
constexpr int kRowsPerThread = 4;

template <typename Unit, bool conjugates>
struct CopyKernel {
  static constexpr int kResidentBlocks = 4;

  RowBlocks blocks;
  int64_t cols;
  int64_t from_rows;  // zeros behind them, and behind these columns
  int64_t from_cols;
  int64_t count;
  Side<Unit> from;
  Side<Unit> to;

  __device__ void operator()() const {
    const int64_t col = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    const int64_t end = blocks.End();
    for (int64_t matrix = blockIdx.z; matrix < count; matrix += gridDim.z) {
      for (int64_t row = blocks.Begin(); row < end; row += kRowsPerThread * blockDim.y) {
        Unit units[kRowsPerThread];
#pragma unroll
        for (int u = 0; u < kRowsPerThread; ++u) {
          const int64_t r = row + u * int64_t(blockDim.y);
          if (r >= end) continue;
          units[u] = r < from_rows && col < from_cols ? *from.At(matrix, r, col) : Unit{};
        }
#pragma unroll
        for (int u = 0; u < kRowsPerThread; ++u) {
          const int64_t r = row + u * int64_t(blockDim.y);
          if (r >= end) break;
          if constexpr (conjugates) units[u] = Conjugate(units[u]);
          *to.At(matrix, r, col) = units[u];
        }
      }
    }
  }
};

template <typename Unit>
struct ZeroRowsKernel {
  static constexpr int kResidentBlocks = 4;

  RowBlocks blocks;
  int64_t cols;
  Unit* data;
  const uint8_t* active;

  __device__ void operator()() const {
    const int64_t col = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    const int64_t end = blocks.End();
    for (int64_t row = blocks.Begin(); row < end; row += blockDim.y) {
      if (!active[row]) data[row * cols + col] = Unit{};
    }
  }
};

// A kernel's parameters can carry this much, which is how it gets to the device where a graph is
// captured: a copy there would read the host's memory again with each launch of the graph.
constexpr int kBytesCarried = 3840;

struct CarryKernel {
  static constexpr int kResidentBlocks = 1;

  uint8_t bytes[kBytesCarried];
  uint8_t* to;
  int size;

  __device__ void operator()() const {
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < size; i += kThreads) to[i] = bytes[i];
  }
};

template <typename Kernel>
Status LaunchOverRows(const char* name, Kernel kernel, int64_t rows, int64_t count,
                      Device& device) {
  const dim3 block = BlockOver(kernel.cols);
  kernel.blocks = RowBlocks(rows, block, kRowsPerThread);
  const dim3 grid(CeilDiv(kernel.cols, block.x), kernel.blocks.count(),
                  std::min(count, kMaxGridYZ));
  return Launch(name, kernel, grid, block, device.stream());
}

// Calls `function` with the largest unit, of 2, 4, 8 or 16 bytes, that divides all of `sizes`,
// which are ored together.
template <typename Function>
Status VisitUnit(uint64_t sizes, Function&& function) {
  if (sizes % 16 == 0) return function(uint4());
  if (sizes % 8 == 0) return function(uint2());
  if (sizes % 4 == 0) return function(uint32_t());
  return function(uint16_t());
}

// A side whose rows are apart and whose columns are together, if there is any such direction.
struct HostSide {
  void* data;
  MatrixView view;
  int64_t matrix_stride;
  int64_t element_bytes;

  // What a unit of several columns has to divide.
  uint64_t Sizes(int64_t rows, int64_t count) const {
    uint64_t sizes = reinterpret_cast<uintptr_t>(data) + view.offset * element_bytes;
    if (view.rows != nullptr) {
      for (int64_t i = 0; i < rows; ++i) sizes |= view.rows[i] * element_bytes;
    } else if (rows > 1) {
      sizes |= view.row_stride * element_bytes;
    }
    if (count > 1) sizes |= matrix_stride * element_bytes;
    return sizes;
  }

  bool HasRowsOfNeighbours(int64_t cols) const {
    return view.cols == nullptr && (view.col_stride == 1 || cols == 1);
  }
};

// In units of several elements all distances are shorter, those in lists too.
template <typename Unit>
Status ToDevice(const HostSide& side, int64_t rows, int64_t cols, Device& device,
                Side<Unit>* result) {
  const int64_t unit_bytes = sizeof(Unit);
  const auto in_units = [&](int64_t elements) {
    return elements * side.element_bytes / unit_bytes;
  };
  const auto upload = [&](const int64_t* places, int64_t count, const int64_t** copy) {
    if (places == nullptr) return Status();
    std::vector<int64_t> units(count);
    std::transform(places, places + count, units.begin(), in_units);
    return Upload(units, device, copy);
  };
  result->data = static_cast<Unit*>(side.data) + in_units(side.view.offset);
  result->row_stride = in_units(side.view.row_stride);
  // With several columns in a unit, neighbouring units.
  result->col_stride = unit_bytes == side.element_bytes ? side.view.col_stride : 1;
  result->matrix_stride = in_units(side.matrix_stride);
  Status status = upload(side.view.rows, rows, &result->rows);
  if (!status.ok()) return status;
  return upload(side.view.cols, cols, &result->cols);
}

}  // namespace

Status EnqueueZeros(void* data, size_t bytes, Device& device) {
  if (bytes == 0) return Status();
  return ToStatus(cudaMemsetAsync(data, 0, bytes, device.stream()), "cudaMemsetAsync");
}

Status EnqueueCopy(const void* from, void* to, size_t bytes, Device& device) {
  if (bytes == 0) return Status();
  return ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device.stream()),
                  "cudaMemcpyAsync");
}

Status EnqueueZeroRows(void* data, const uint8_t* active, int64_t rows, int64_t row_bytes,
                       Device& device) {
  if (rows == 0 || row_bytes == 0) return Status();
  return VisitUnit(row_bytes | reinterpret_cast<uintptr_t>(data), [&](auto unit) {
    using Unit = decltype(unit);
    ZeroRowsKernel<Unit> kernel{};
    kernel.cols = row_bytes / static_cast<int64_t>(sizeof(Unit));
    kernel.data = static_cast<Unit*>(data);
    kernel.active = active;
    return LaunchOverRows("the kernel that zeros rows", kernel, rows, 1, device);
  });
}

Status Upload(const void* host, size_t bytes, Device& device, const void** copy) {
  void* const to = device.Allocate(std::max<size_t>(1, bytes));
  if (to == nullptr) return OutOfMemory("a list of rows or columns", bytes);
  *copy = to;
  if (bytes == 0) return Status();
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  Status status =
      ToStatus(cudaStreamIsCapturing(device.stream(), &capture), "cudaStreamIsCapturing");
  if (!status.ok()) return status;
  if (capture == cudaStreamCaptureStatusNone) {
    return CopyFromHost(to, host, bytes, device.stream());
  }
  for (size_t done = 0; done < bytes && status.ok(); done += kBytesCarried) {
    CarryKernel kernel;
    kernel.size = static_cast<int>(std::min<size_t>(kBytesCarried, bytes - done));
    kernel.to = static_cast<uint8_t*>(to) + done;
    std::memcpy(kernel.bytes, static_cast<const char*>(host) + done, kernel.size);
    status =
        Launch("the kernel that carries a list", kernel, dim3(1), dim3(kThreads), device.stream());
  }
  return status;
}

Status Enqueue(const Copy& copy, Device& device) {
  int64_t rows = copy.rows, cols = copy.cols;
  int64_t filled_rows = std::max(rows, copy.filled_rows);
  int64_t filled_cols = std::max(cols, copy.filled_cols);
  if (rows == 0 || cols == 0 || copy.count == 0) return Status();
  const int64_t bytes = SizeOf(copy.dtype);
  HostSide from{const_cast<void*>(copy.from), copy.from_view, copy.from_stride, bytes};
  HostSide to{copy.to, copy.to_view, copy.to_stride, bytes};
  // Neighbouring threads get neighbouring elements, of the source at least.
  if (!from.HasRowsOfNeighbours(cols) && from.view.rows == nullptr && from.view.row_stride == 1) {
    from.view = Transposed(from.view);
    to.view = Transposed(to.view);
    std::swap(rows, cols);
    std::swap(filled_rows, filled_cols);
  }
  const bool conjugates = copy.from_view.conjugate != copy.to_view.conjugate;
  const auto enqueue = [&](auto unit, auto conjugate) {
    using Unit = decltype(unit);
    CopyKernel<Unit, conjugate()> kernel{};
    const auto in_units = [&](int64_t columns) {
      return columns * bytes / static_cast<int64_t>(sizeof(Unit));
    };
    kernel.cols = in_units(filled_cols);
    kernel.from_rows = rows;
    kernel.from_cols = in_units(cols);
    kernel.count = copy.count;
    Status status = ToDevice(from, rows, cols, device, &kernel.from);
    if (status.ok()) status = ToDevice(to, rows, cols, device, &kernel.to);
    if (!status.ok()) return status;
    return LaunchOverRows("the kernel that copies a matrix", kernel, filled_rows, copy.count,
                          device);
  };
  if (conjugates) {
    if (copy.dtype == DType::kComplex64) return enqueue(float2(), std::true_type());
    if (copy.dtype == DType::kComplex128) return enqueue(double2(), std::true_type());
  }
  uint64_t sizes = bytes;
  if (from.HasRowsOfNeighbours(cols) && to.HasRowsOfNeighbours(cols)) {
    sizes = (cols | filled_cols) * bytes | from.Sizes(rows, copy.count) |
            to.Sizes(filled_rows, copy.count);
  }
  return VisitUnit(sizes, [&](auto unit) { return enqueue(unit, std::false_type()); });
}

}  // namespace stopgrad::cuda
