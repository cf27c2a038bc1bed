#ifndef STOPGRAD_CUDA_RANGES_H_
#define STOPGRAD_CUDA_RANGES_H_

#include <cstdint>

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>

#include <cstdio>
#define STOPGRAD_HAS_NVTX 1
#endif

namespace stopgrad::cuda {

// A range in NVIDIA's profilers, while this lives: which pass, and the sizes of its product.
// Without a profiler it costs a formatted line.
class Range {
 public:
#ifdef STOPGRAD_HAS_NVTX
  Range(const char* pass, int64_t m, int64_t n, int64_t k) {
    char text[128];
    std::snprintf(text, sizeof text, "stopgrad_op %s m=%lld n=%lld k=%lld", pass,
                  static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k));
    nvtxRangePushA(text);
  }
  ~Range() { nvtxRangePop(); }
#else
  Range(const char*, int64_t, int64_t, int64_t) {}
#endif
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_RANGES_H_
