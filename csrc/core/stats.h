#ifndef STOPGRAD_CORE_STATS_H_
#define STOPGRAD_CORE_STATS_H_

#include <cstdint>

#include "core/export.h"

namespace stopgrad {

enum class Pass { kForward, kBackward };

// Matrix products and their floating-point operations that really ran in this process. A batched
// product counts once.
struct PassStats {
  uint64_t products = 0;
  uint64_t flops = 0;
};

// Called once per product, by whichever device runs it.
STOPGRAD_EXPORT void CountProduct(Pass pass, int64_t flops);

STOPGRAD_EXPORT PassStats ReadStats(Pass pass);
STOPGRAD_EXPORT void ResetStats();

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_STATS_H_
