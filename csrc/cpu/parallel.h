#ifndef STOPGRAD_CPU_PARALLEL_H_
#define STOPGRAD_CPU_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "core/host.h"

namespace stopgrad::cpu {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Handing a task to another thread costs some microseconds; a task should be worth ten times that.
// In elements of an elementwise loop and in floating-point operations of a product:
inline constexpr int64_t kMinElementsPerTask = 1 << 15;
inline constexpr int64_t kMinFlopsPerTask = 1 << 20;

// Runs job(worker, stage, index) for every index below `counts[stage]` of every stage, a stage's
// jobs when all those of the stages before it have ended. The caller is the first worker. Workers
// take the jobs in order, one by one; who has to wait for a stage waits for jobs that others are
// running, never for one that nobody has taken, so that it does not matter how many workers really
// run at the same time.
template <typename Job>
void ParallelStages(Host& host, int64_t workers, const std::vector<int64_t>& counts,
                    const Job& job) {
  if (workers <= 1) {
    for (size_t stage = 0; stage < counts.size(); ++stage) {
      for (int64_t i = 0; i < counts[stage]; ++i) job(0, stage, i);
    }
    return;
  }
  struct Progress {
    // A cache line each, since every job writes to both.
    alignas(64) std::atomic<int64_t> taken{0};
    alignas(64) std::atomic<int64_t> ended{0};
  };
  const auto progress = std::make_shared<Progress>();
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  // A thread that was asleep may start when everything has ended and the caller is gone, which must
  // not wait for it. So whoever gets no job touches nothing but the progress.
  const auto work = [progress, total, &counts, &job](int64_t worker) {
    size_t stage = 0;
    int64_t begin = 0;
    for (;;) {
      const int64_t ticket = progress->taken.fetch_add(1, std::memory_order_relaxed);
      if (ticket >= total) return;
      while (ticket >= begin + counts[stage]) begin += counts[stage++];
      while (progress->ended.load(std::memory_order_acquire) < begin) std::this_thread::yield();
      job(worker, stage, ticket - begin);
      progress->ended.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t worker = 1; worker < std::min(workers, total); ++worker) {
    host.Schedule([work, worker] { work(worker); });
  }
  work(0);
  while (progress->ended.load(std::memory_order_acquire) < total) std::this_thread::yield();
}

// Runs body(begin, end) over [0, count) in ranges of at least `grain`, in the calling thread where
// that leaves one range.
template <typename Body>
void ParallelRanges(Host& host, int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  const int64_t most_tasks = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
  // A few tasks a thread, so that a thread that falls behind does not hold up the rest.
  const int64_t tasks = host.threads() == 1 ? 1 : std::min(most_tasks, 4 * int64_t{host.threads()});
  const int64_t step = CeilDiv(count, tasks);
  ParallelStages(host, std::min<int64_t>(tasks, host.threads()), {CeilDiv(count, step)},
                 [&](int64_t, size_t, int64_t task) {
                   body(task * step, std::min(count, (task + 1) * step));
                 });
}

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_PARALLEL_H_
