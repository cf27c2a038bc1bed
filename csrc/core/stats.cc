#include "core/stats.h"

#include <atomic>

namespace stopgrad {

namespace {

// Two relaxed additions a product: nothing beside the product itself.
struct alignas(64) Counters {
  std::atomic<uint64_t> products{0};
  std::atomic<uint64_t> flops{0};
};
Counters counters[2];

Counters& CountersOf(Pass pass) { return counters[static_cast<int>(pass)]; }

}  // namespace

void CountProduct(Pass pass, int64_t flops) {
  Counters& c = CountersOf(pass);
  c.products.fetch_add(1, std::memory_order_relaxed);
  c.flops.fetch_add(static_cast<uint64_t>(flops), std::memory_order_relaxed);
}

PassStats ReadStats(Pass pass) {
  const Counters& c = CountersOf(pass);
  return {c.products.load(std::memory_order_relaxed), c.flops.load(std::memory_order_relaxed)};
}

void ResetStats() {
  for (Counters& c : counters) {
    c.products.store(0, std::memory_order_relaxed);
    c.flops.store(0, std::memory_order_relaxed);
  }
}

}  // namespace stopgrad
