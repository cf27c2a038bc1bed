#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>

namespace stopgrad::cpu {

Work::Work(Host& host, int64_t flops)
    : host_(host),
      workers_(std::clamp<int64_t>(flops / kMinFlopsPerTask, 1, std::max(1, host.threads()))) {}

void Work::AddStages(const std::vector<int64_t>& jobs, int64_t scratch_bytes, RunJob run) {
  for (size_t i = 0; i < jobs.size(); ++i) stages_.push_back({jobs[i], i, runs_.size()});
  runs_.push_back(std::move(run));
  scratch_bytes_ = std::max(scratch_bytes_, scratch_bytes);
}

void Work::AddRanges(int64_t count, int64_t grain, std::function<void(int64_t, int64_t)> body) {
  if (count <= 0) return;
  // A few a thread, so that a thread that falls behind does not hold up the rest.
  const int64_t most =
      workers_ == 1 ? 1 : std::min(4 * workers_, std::max<int64_t>(1, count / grain));
  const int64_t step = CeilDiv(count, most);
  AddStages({CeilDiv(count, step)}, 0,
            [count, step, body = std::move(body)](char*, int64_t, size_t, int64_t job) {
              body(job * step, std::min(count, (job + 1) * step));
            });
}

Status Work::Run() const {
  char* scratch = nullptr;
  if (scratch_bytes_ > 0) {
    scratch = static_cast<char*>(host_.Allocate(scratch_bytes_));
    if (scratch == nullptr) {
      return Status(StatusCode::kResourceExhausted, "no memory (" + std::to_string(scratch_bytes_) +
                                                        " bytes) for the operands of a product");
    }
  }
  int64_t total = 0;
  int64_t most_jobs = 0;
  for (const Stage& stage : stages_) {
    total += stage.jobs;
    most_jobs = std::max(most_jobs, stage.jobs);
  }
  if (workers_ == 1 || most_jobs <= 1) {
    for (const Stage& stage : stages_) {
      for (int64_t job = 0; job < stage.jobs; ++job) {
        runs_[stage.run](scratch, 0, stage.index, job);
      }
    }
    return Status();
  }
  struct Progress {
    // A cache line each, since every job writes to both.
    alignas(64) std::atomic<int64_t> taken{0};
    alignas(64) std::atomic<int64_t> ended{0};
  };
  const auto progress = std::make_shared<Progress>();
  // Workers take the jobs in order, one by one. Who has to wait for a stage waits for jobs that
  // others are running, never for one that nobody has taken, so that it does not matter how many
  // workers really run at the same time. A thread that was asleep may start when everything has
  // ended and the caller, who must not wait for it, is gone: so whoever gets no job touches nothing
  // but the progress.
  const auto work = [this, progress, total, scratch](int64_t worker) {
    const Stage* stage = nullptr;
    int64_t begin = 0;
    for (;;) {
      const int64_t ticket = progress->taken.fetch_add(1, std::memory_order_relaxed);
      if (ticket >= total) return;
      if (stage == nullptr) stage = stages_.data();
      while (ticket >= begin + stage->jobs) begin += stage++->jobs;
      while (progress->ended.load(std::memory_order_acquire) < begin) std::this_thread::yield();
      runs_[stage->run](scratch, worker, stage->index, ticket - begin);
      progress->ended.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t worker = 1; worker < std::min(workers_, most_jobs); ++worker) {
    host_.Schedule([work, worker] { work(worker); });
  }
  work(0);
  while (progress->ended.load(std::memory_order_acquire) < total) std::this_thread::yield();
  return Status();
}

}  // namespace stopgrad::cpu
