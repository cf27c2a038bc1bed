#include "cpu/elementwise.h"

#include <cstdlib>
#include <cstring>

namespace stopgrad::cpu {

// One definition each, from elementwise_target.cc; CMake compiles it once for every instruction
// set.
extern const ElementwiseLoops baseline;
#ifdef STOPGRAD_X86_TARGETS
extern const ElementwiseLoops avx2;
extern const ElementwiseLoops avx512;
#endif

namespace {

struct Target {
  const ElementwiseLoops* loops;
  bool supported;
};

// The best target that the processor supports; or the one that STOPGRAD_VECTOR_LOOPS names, so that
// all of them can be tested on one machine.
const ElementwiseLoops* Choose() {
#ifdef STOPGRAD_X86_TARGETS
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Target targets[] = {{&avx512, has_avx512}, {&avx2, has_avx2}, {&baseline, true}};
#else
  const Target targets[] = {{&baseline, true}};
#endif
  const char* const wanted = std::getenv("STOPGRAD_VECTOR_LOOPS");
  for (const Target& target : targets) {
    if (target.supported && (wanted == nullptr || std::strcmp(wanted, target.loops->target) == 0)) {
      return target.loops;
    }
  }
  return &baseline;
}

}  // namespace

const ElementwiseLoops& GetElementwiseLoops() {
  static const ElementwiseLoops* const loops = Choose();
  return *loops;
}

}  // namespace stopgrad::cpu
