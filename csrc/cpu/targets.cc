#include "cpu/targets.h"

#ifdef STOPGRAD_HAVE_AVX2
#include <cpuid.h>
#endif
#ifdef STOPGRAD_HAVE_AMX_BF16
#include <sys/syscall.h>
#include <unistd.h>
#endif

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
STOPGRAD_DECLARE_TARGET(avx2)
STOPGRAD_DECLARE_TARGET(avx512)
STOPGRAD_DECLARE_TARGET(avx512_bf16)
STOPGRAD_DECLARE_TARGET(amx_bf16)

namespace {

#ifdef STOPGRAD_HAVE_AMX_BF16
// Whether the processor has tiles and the system lets this process use them. Linux has to be asked,
// once for all threads. It refuses where the stack for a thread's signals is too small to save
// tiles in, and from then on it refuses such stacks.
bool MayUseTiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of newer headers
  constexpr int kTileData = 18;
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// The best target that the processor supports; or the one that STOPGRAD_INSTRUCTION_SET names, so
// that all of them can be tested on one machine.
Target Choose() {
  const char* const name = std::getenv("STOPGRAD_INSTRUCTION_SET");
  const auto is_wanted = [name](const char* target) {
    return name == nullptr || std::strcmp(name, target) == 0;
  };
#ifdef STOPGRAD_HAVE_AVX2
  __builtin_cpu_init();
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512cd") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  const Target targets[] = {
#ifdef STOPGRAD_HAVE_AMX_BF16
      {"amx_bf16", &avx512::elementwise, &amx_bf16::gemm,
       has_avx512 && is_wanted("amx_bf16") && MayUseTiles()},
#endif
#ifdef STOPGRAD_HAVE_AVX512_BF16
      {"avx512_bf16", &avx512::elementwise, &avx512_bf16::gemm,
       has_avx512 && __builtin_cpu_supports("avx512bf16")},
#endif
#ifdef STOPGRAD_HAVE_AVX2
      {"avx512", &avx512::elementwise, &avx512::gemm, has_avx512},
      {"avx2", &avx2::elementwise, &avx2::gemm, has_avx2},
#endif
      {"baseline", &baseline::elementwise, &baseline::gemm, true},
  };
  for (const Target& target : targets) {
    if (target.supported && is_wanted(target.name)) return target;
  }
  return std::end(targets)[-1];
}

}  // namespace

const Target& GetTarget() {
  static const Target target = Choose();
  return target;
}

}  // namespace stopgrad::cpu
