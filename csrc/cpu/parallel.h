#ifndef STOPGRAD_CPU_PARALLEL_H_
#define STOPGRAD_CPU_PARALLEL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/host.h"
#include "core/status.h"

namespace stopgrad::cpu {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Handing a task to another thread costs some microseconds; a task should be worth ten times that.
// In elements of an elementwise loop and in floating-point operations of a product:
inline constexpr int64_t kMinElementsPerTask = 1 << 15;
inline constexpr int64_t kMinFlopsPerTask = 1 << 20;

// Work in stages, each of jobs that can run at the same time. A stage's jobs run when all those of
// the stages before it have ended. All that an op does is one Work, since waking a thread takes as
// long as many a stage.
class Work {
 public:
  // How many threads will do it: as many as the floating-point operations are worth.
  Work(Host& host, int64_t flops);

  int64_t workers() const { return workers_; }

  // Adds stages behind those that there are. `run` does one job, and gets scratch memory of the
  // size asked for, which all stages share.
  using RunJob = std::function<void(char* scratch, int64_t worker, size_t stage, int64_t job)>;
  void AddStages(const std::vector<int64_t>& jobs, int64_t scratch_bytes, RunJob run);

  // Adds a stage of body(begin, end) over [0, count) in ranges of at least `grain`.
  void AddRanges(int64_t count, int64_t grain, std::function<void(int64_t, int64_t)> body);

  // Does it all.
  Status Run() const;

 private:
  struct Stage {
    int64_t jobs;
    size_t index;  // among those added with it
    size_t run;
  };

  Host& host_;
  int64_t workers_;
  int64_t scratch_bytes_ = 0;
  std::vector<Stage> stages_;
  std::vector<RunJob> runs_;
};

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_PARALLEL_H_
