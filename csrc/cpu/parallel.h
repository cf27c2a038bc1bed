#ifndef STOPGRAD_CPU_PARALLEL_H_
#define STOPGRAD_CPU_PARALLEL_H_

#include <algorithm>
#include <cstdint>

#include "core/host.h"

namespace stopgrad::cpu {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Handing a task to another thread costs some microseconds; a task should be worth ten times that.
// In elements of an elementwise loop and in floating-point operations of a product:
inline constexpr int64_t kMinElementsPerTask = 1 << 15;
inline constexpr int64_t kMinFlopsPerTask = 1 << 20;

// Runs body(begin, end) over [0, count) in ranges of at least `grain`, in the calling thread where
// that leaves one range.
template <typename Body>
void ParallelRanges(Host& host, int64_t count, int64_t grain, const Body& body) {
  const int64_t most_tasks = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  // A few tasks a thread, so that a thread that falls behind does not hold up the rest.
  const int64_t tasks = std::min(most_tasks, 4 * int64_t{host.threads()});
  if (tasks <= 1 || host.threads() == 1) {
    if (count > 0) body(0, count);
    return;
  }
  const int64_t step = CeilDiv(count, tasks);
  host.ParallelFor(CeilDiv(count, step),
                   [&](int64_t task) { body(task * step, std::min(count, (task + 1) * step)); });
}

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_PARALLEL_H_
