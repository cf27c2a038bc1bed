// The calls of the CUDA runtime that csrc/cuda and csrc/python make, on the host's memory. They do
// at once what the real ones enqueue.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "emulation.h"
#include "hooks.h"

namespace stopgrad::cuda::emulation {

Hooks hooks;

namespace {

// Before and behind each allocation, to find what is written there.
constexpr size_t kGuard = 512;
constexpr unsigned char kGuardByte = 0xa5;
constexpr unsigned char kUnwritten = 0xff;  // a NaN in every floating type

std::map<char*, size_t>& Allocations() {
  static auto* allocations = new std::map<char*, size_t>;
  return *allocations;
}

// Copies from page-locked memory that were enqueued and not yet done. All else that is enqueued
// does them first.
struct PendingCopy {
  void* to;
  const void* from;
  size_t bytes;
};
std::vector<PendingCopy> pending;
int64_t copies_done = 0;

void DoPending() {
  for (const PendingCopy& copy : pending) std::memcpy(copy.to, copy.from, copy.bytes);
  copies_done += pending.size();
  pending.clear();
}

std::map<const char*, size_t>& LockedBlocks() {
  static auto* blocks = new std::map<const char*, size_t>;
  return *blocks;
}

bool IsLocked(const void* data) {
  auto behind = LockedBlocks().upper_bound(static_cast<const char*>(data));
  if (behind == LockedBlocks().begin()) return false;
  const auto& [start, size] = *std::prev(behind);
  return data < start + size;
}

// Whether all of it lies in one allocation.
bool IsOnDevice(const void* data, size_t bytes) {
  auto* const begin = static_cast<char*>(const_cast<void*>(data));
  auto behind = Allocations().upper_bound(begin);
  if (behind == Allocations().begin()) return false;
  const auto& [start, size] = *std::prev(behind);
  return begin + bytes <= start + size;
}

cudaError_t ErrorOf(const char* call) {
  if (hooks.failing_call != call || hooks.calls_before_failing-- > 0) return cudaSuccess;
  hooks.calls_before_failing = 0;
  hooks.failing_call.clear();
  return static_cast<cudaError_t>(hooks.error);
}

cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

// Of a call that may wait for a stream, which must not be while others capture one.
cudaError_t ErrorOfWaiting(const char* call) {
  const bool is_forbidden = hooks.others_capture && capture_mode != cudaStreamCaptureModeRelaxed;
  return is_forbidden ? cudaErrorStreamCaptureUnsupported : ErrorOf(call);
}

}  // namespace

cudaError_t ErrorOfLaunch(dim3 grid, dim3 block) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  DoPending();
  return ErrorOf("launch");
}

}  // namespace stopgrad::cuda::emulation

using namespace stopgrad::cuda::emulation;

struct CUevent_st {
  std::chrono::steady_clock::time_point time;
  int64_t copies = 0;  // before it
};

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return ErrorOf("cudaGetDevice");
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return ErrorOf("cudaGetDeviceCount");
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(static_cast<void*>(properties), 0, sizeof *properties);
  std::strcpy(properties->name, "an emulated GPU");
  properties->major = hooks.compute_capability;
  return ErrorOf("cudaGetDeviceProperties");
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an emulated error";
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorEmulated";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = hooks.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return ErrorOf("cudaStreamIsCapturing");
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  DoPending();
  return ErrorOf("cudaStreamSynchronize");
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, capture_mode);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  ++hooks.locked_blocks;
  if (const cudaError_t error = ErrorOfWaiting("cudaHostAlloc"); error != cudaSuccess) return error;
  *data = std::malloc(bytes);
  LockedBlocks()[static_cast<char*>(*data)] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  LockedBlocks().erase(static_cast<char*>(data));
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->copies > copies_done) return cudaErrorNotReady;
  return ErrorOfWaiting("cudaEventQuery");
}

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return ErrorOf("cudaEventCreate");
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  event->copies = copies_done + static_cast<int64_t>(pending.size());
  return ErrorOf("cudaEventRecord");
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  ++hooks.synchronizations;
  return ErrorOfWaiting("cudaEventSynchronize");
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - begin->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return ErrorOf("cudaStreamWaitEvent");
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return cudaEventCreate(event);
}
cudaError_t cudaDeviceSynchronize() {
  DoPending();
  return ErrorOf("cudaDeviceSynchronize");
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  *pool = reinterpret_cast<cudaMemPool_t>(pool);
  return ErrorOf("cudaMemPoolCreate");
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return ErrorOf("cudaMemPoolSetAttribute");
}

cudaError_t cudaMallocFromPoolAsync(void** data, size_t bytes, cudaMemPool_t, cudaStream_t) {
  if (const cudaError_t error = ErrorOf("cudaMallocFromPoolAsync"); error != cudaSuccess) {
    return error;
  }
  const size_t rounded = (bytes + 255) / 256 * 256;
  auto* const memory = static_cast<char*>(std::aligned_alloc(256, rounded + 2 * kGuard));
  if (memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(memory, kGuardByte, rounded + 2 * kGuard);
  std::memset(memory + kGuard, kUnwritten, bytes);
  Allocations()[memory + kGuard] = bytes;
  hooks.bytes_in_use += bytes;
  hooks.most_bytes_in_use = std::max(hooks.most_bytes_in_use, hooks.bytes_in_use);
  *data = memory + kGuard;
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t) {
  const auto found = Allocations().find(static_cast<char*>(data));
  if (found == Allocations().end()) return cudaErrorInvalidValue;
  const auto& [start, size] = *found;
  const size_t rounded = (size + 255) / 256 * 256;
  const auto is_guard = [](char byte) { return static_cast<unsigned char>(byte) == kGuardByte; };
  if (!std::all_of(start - kGuard, start, is_guard) ||
      !std::all_of(start + size, start + rounded + kGuard, is_guard)) {
    ++hooks.writes_outside;
  }
  DoPending();
  hooks.bytes_in_use -= size;
  std::free(start - kGuard);
  Allocations().erase(found);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  if (!IsOnDevice(data, bytes)) return cudaErrorInvalidValue;
  DoPending();
  std::memset(data, value, bytes);
  return ErrorOf("cudaMemsetAsync");
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t) {
  if (!IsOnDevice(kind == cudaMemcpyHostToDevice ? to : from, bytes)) return cudaErrorInvalidValue;
  DoPending();
  if (kind == cudaMemcpyHostToDevice && IsLocked(from)) {
    pending.push_back({to, from, bytes});
  } else {
    std::memcpy(to, from, bytes);
  }
  return ErrorOf("cudaMemcpyAsync");
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* data) {
  attributes->type = IsOnDevice(data, 1) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  attributes->device = 0;
  return cudaSuccess;
}

}  // extern "C"
