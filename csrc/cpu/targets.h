#ifndef STOPGRAD_CPU_TARGETS_H_
#define STOPGRAD_CPU_TARGETS_H_

#include "core/export.h"
#include "cpu/elementwise.h"
#include "cpu/gemm_kernels.h"

namespace stopgrad::cpu {

// What is compiled once for each instruction set.
struct Target {
  const char* name;
  const ElementwiseLoops* elementwise;
  const GemmKernelTable* gemm;
  bool supported;
};

// The one for the processor this runs on.
STOPGRAD_EXPORT const Target& GetTarget();

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_TARGETS_H_
