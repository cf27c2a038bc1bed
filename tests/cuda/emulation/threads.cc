// The threads of a block as contexts that take turns on one thread of the processor.
#include <ucontext.h>

#include <memory>
#include <vector>

#include "emulation.h"
#include "hooks.h"

namespace stopgrad::cuda::emulation {

Thread current;

namespace {

constexpr size_t kStackBytes = 128 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  uint3 thread;
  bool done;
};

std::vector<Fiber>& Fibers() {
  static auto* fibers = new std::vector<Fiber>;
  return *fibers;
}
ucontext_t scheduler;
Fiber* running = nullptr;
const std::function<void()>* running_kernel = nullptr;

void RunFiber() {
  (*running_kernel)();
  running->done = true;
}

void RunBlock(const std::function<void()>& kernel, dim3 block) {
  const unsigned count = block.x * block.y * block.z;
  std::vector<Fiber>& fibers = Fibers();
  while (fibers.size() < count) fibers.emplace_back();
  running_kernel = &kernel;
  for (unsigned i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.thread = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, RunFiber, 0);
  }
  // From one barrier to the next, in another order each time: none may matter. The factor is odd,
  // and a block has a power of two of threads.
  unsigned turn = current.block.x + 3 * current.block.y;
  for (bool any = true; any; ++turn) {
    any = false;
    for (unsigned i = 0; i < count; ++i) {
      Fiber& fiber = fibers[(i * (turn % 2 == 0 ? 77 : 1) + 31 * turn) % count];
      if (fiber.done) continue;
      running = &fiber;
      current.thread = fiber.thread;
      swapcontext(&scheduler, &fiber.context);
      any = any || !fiber.done;
    }
  }
}

}  // namespace

void WaitForBlock() { swapcontext(&running->context, &scheduler); }

void RunGrid(const std::function<void()>& kernel, dim3 grid, dim3 block) {
  current.grid_dim = grid;
  current.block_dim = block;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        current.block = {x, y, z};
        RunBlock(kernel, block);
      }
    }
  }
  ++hooks.launches;
}

}  // namespace stopgrad::cuda::emulation
