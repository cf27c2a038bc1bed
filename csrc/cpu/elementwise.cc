#include "cpu/elementwise.h"

namespace stopgrad::cpu {

// One definition each, from elementwise_target.cc; CMake compiles it once for every instruction
// set.
extern const ElementwiseLoops baseline;
#ifdef STOPGRAD_X86_TARGETS
extern const ElementwiseLoops avx2;
extern const ElementwiseLoops avx512;
#endif

const ElementwiseLoops& GetElementwiseLoops() {
  static const ElementwiseLoops* const loops = [] {
#ifdef STOPGRAD_X86_TARGETS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return &avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2;
#endif
    return &baseline;
  }();
  return *loops;
}

}  // namespace stopgrad::cpu
