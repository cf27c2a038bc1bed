#include "cpu/targets.h"

#include <cstdlib>
#include <cstring>
#include <iterator>

namespace stopgrad::cpu {

// From elementwise_target.cc and gemm_target.cc; CMake compiles them once for every instruction
// set.
#define STOPGRAD_DECLARE_TARGET(name)        \
  namespace name {                           \
  extern const ElementwiseLoops elementwise; \
  extern const GemmKernelTable gemm;         \
  }
STOPGRAD_DECLARE_TARGET(baseline)
#ifdef STOPGRAD_X86_TARGETS
STOPGRAD_DECLARE_TARGET(avx2)
STOPGRAD_DECLARE_TARGET(avx512)
#endif

namespace {

// The best target that the processor supports; or the one that STOPGRAD_INSTRUCTION_SET names, so
// that all of them can be tested on one machine.
Target Choose() {
#ifdef STOPGRAD_X86_TARGETS
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  const Target targets[] = {
#ifdef STOPGRAD_X86_TARGETS
      {"avx512", &avx512::elementwise, &avx512::gemm, has_avx512},
      {"avx2", &avx2::elementwise, &avx2::gemm, has_avx2},
#endif
      {"baseline", &baseline::elementwise, &baseline::gemm, true},
  };
  const char* const wanted = std::getenv("STOPGRAD_INSTRUCTION_SET");
  for (const Target& target : targets) {
    if (target.supported && (wanted == nullptr || std::strcmp(wanted, target.name) == 0)) {
      return target;
    }
  }
  return std::end(targets)[-1];
}

}  // namespace

const Target& GetTarget() {
  static const Target target = Choose();
  return target;
}

}  // namespace stopgrad::cpu
