#ifndef STOPGRAD_CPU_PARALLEL_H_
#define STOPGRAD_CPU_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

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

// Runs job(worker, stage, index) for every index below `counts[stage]` of every stage, a stage's
// jobs when all those of the stages before it have ended. Workers take the jobs in order, one by
// one; who has to wait for a stage waits for jobs that others are running, never for one that
// nobody has taken, so that it does not matter how many workers really run at the same time.
template <typename Job>
void ParallelStages(Host& host, int64_t workers, const std::vector<int64_t>& counts,
                    const Job& job) {
  if (workers <= 1) {
    for (size_t stage = 0; stage < counts.size(); ++stage) {
      for (int64_t i = 0; i < counts[stage]; ++i) job(0, stage, i);
    }
    return;
  }
  // A cache line each, since every job writes to both.
  alignas(64) std::atomic<int64_t> taken{0};
  alignas(64) std::atomic<int64_t> ended{0};
  host.ParallelFor(workers, [&](int64_t worker) {
    size_t stage = 0;
    int64_t begin = 0;
    for (;;) {
      const int64_t ticket = taken.fetch_add(1, std::memory_order_relaxed);
      while (stage < counts.size() && ticket >= begin + counts[stage]) begin += counts[stage++];
      if (stage == counts.size()) return;
      while (ended.load(std::memory_order_acquire) < begin) std::this_thread::yield();
      job(worker, stage, ticket - begin);
      ended.fetch_add(1, std::memory_order_release);
    }
  });
}

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_PARALLEL_H_
