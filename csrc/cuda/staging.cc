#include "cuda/staging.h"

#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/device_kind.h"
#include "cuda/status.h"

namespace stopgrad::cuda {

namespace {

constexpr size_t kSmallestBlock = 64 << 10;
// Of all blocks. What needs more at a time is copied as CUDA copies any memory.
constexpr size_t kMostBytes = 64 << 20;

// Page-locked memory, and the event behind the last copy from it.
struct Block {
  int device = 0;  // whose events these are
  size_t bytes = 0;
  void* data = nullptr;
  cudaEvent_t copied = nullptr;

  bool IsFree() const {
    const bool is_free = cudaEventQuery(copied) == cudaSuccess;
    if (!is_free) cudaGetLastError();  // or it would be found by whoever asks next
    return is_free;
  }

  ~Block() {
    if (copied != nullptr) cudaEventDestroy(copied);
    if (data != nullptr) cudaFreeHost(data);
  }
};

// Null where there shall be no more, or the system locks no more.
std::unique_ptr<Block> NewBlock(int device, size_t bytes, size_t bytes_so_far) {
  size_t size = kSmallestBlock;
  while (size < bytes) size *= 2;
  if (bytes_so_far + size > kMostBytes) return nullptr;
  auto block = std::make_unique<Block>();
  block->device = device;
  block->bytes = size;
  if (cudaHostAlloc(&block->data, size, cudaHostAllocDefault) != cudaSuccess ||
      cudaEventCreateWithFlags(&block->copied, cudaEventDisableTiming) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return block;
}

}  // namespace

Status CopyFromHost(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  static std::mutex mutex;
  static auto* blocks = new std::vector<std::unique_ptr<Block>>;
  const DeviceKind* kind = nullptr;
  if (Status status = CurrentDevice(&kind); !status.ok()) return status;
  std::lock_guard<std::mutex> lock(mutex);
  // The smallest that suffices: the large ones are for long lists.
  Block* block = nullptr;
  size_t bytes_so_far = 0;
  for (const auto& other : *blocks) {
    bytes_so_far += other->bytes;
    const bool suffices = other->device == kind->ordinal && other->bytes >= bytes &&
                          (block == nullptr || other->bytes < block->bytes);
    if (suffices && other->IsFree()) block = other.get();
  }
  if (block == nullptr) {
    if (auto fresh = NewBlock(kind->ordinal, bytes, bytes_so_far)) {
      block = blocks->emplace_back(std::move(fresh)).get();
    }
  }
  const bool is_staged = block != nullptr;
  if (is_staged) {
    std::memcpy(block->data, from, bytes);
    from = block->data;
  }
  Status status =
      ToStatus(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "cudaMemcpyAsync");
  if (status.ok() && is_staged) {
    status = ToStatus(cudaEventRecord(block->copied, stream), "cudaEventRecord");
    if (!status.ok()) cudaStreamSynchronize(stream);  // nothing else says when it was copied
  }
  return status;
}

}  // namespace stopgrad::cuda
