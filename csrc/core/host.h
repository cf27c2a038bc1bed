#ifndef STOPGRAD_CORE_HOST_H_
#define STOPGRAD_CORE_HOST_H_

#include <cstddef>
#include <functional>

namespace stopgrad {

// What a CPU kernel borrows from its caller: threads and scratch memory. Kernels have neither of
// their own.
class Host {
 public:
  virtual ~Host() = default;

  // How many threads there are to work on, that of the caller included.
  virtual int threads() const = 0;

  // Has another thread run the task as soon as there is one, and does not wait for it: the task may
  // outlive the host.
  virtual void Schedule(std::function<void()> task) = 0;

  // Scratch memory, aligned to 64 bytes, which lives as long as the host; nullptr if there is none.
  virtual void* Allocate(size_t bytes) = 0;
};

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_HOST_H_
