#ifndef STOPGRAD_TENSORFLOW_COMPAT_H_
#define STOPGRAD_TENSORFLOW_COMPAT_H_

// All that differs between the versions of TensorFlow this package builds against, 2.19 and later.

#include <optional>

#include "tensorflow/core/platform/threadpool.h"
#include "tensorflow/core/public/version.h"

namespace stopgrad::tensorflow_ops {

// Every task is handed to the pool on its own.
inline tsl::thread::ThreadPool::SchedulingParams OneByOne() {
  using Pool = tsl::thread::ThreadPool;
#if TF_MAJOR_VERSION == 2 && TF_MINOR_VERSION < 20
  return Pool::SchedulingParams(Pool::SchedulingStrategy::kFixedBlockSize, std::nullopt, 1);
#else
  return Pool::SchedulingParams::Fixed(1);
#endif
}

}  // namespace stopgrad::tensorflow_ops

#endif  // STOPGRAD_TENSORFLOW_COMPAT_H_
