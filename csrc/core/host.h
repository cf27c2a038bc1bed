#ifndef STOPGRAD_CORE_HOST_H_
#define STOPGRAD_CORE_HOST_H_

#include <cstddef>
#include <cstdint>
#include <functional>

namespace stopgrad {

// What a CPU kernel borrows from its caller: threads and scratch memory. Kernels have neither of
// their own.
class Host {
 public:
  virtual ~Host() = default;

  // How many tasks can run at a time, 1 or more.
  virtual int threads() const = 0;

  // Runs task(0) ... task(count - 1), some at the same time, and returns when all have ended.
  virtual void ParallelFor(int64_t count, const std::function<void(int64_t)>& task) = 0;

  // Scratch memory, aligned to 64 bytes, which lives as long as the host; nullptr if there is none.
  virtual void* Allocate(size_t bytes) = 0;
};

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_HOST_H_
