#ifndef STOPGRAD_PYTHON_STATS_H_
#define STOPGRAD_PYTHON_STATS_H_

#include <pybind11/pybind11.h>

#include <utility>

#include "core/stats.h"

namespace stopgrad {

// The counters, as Python has them.
inline pybind11::dict KernelStats() {
  pybind11::dict stats;
  for (const auto& [name, pass] :
       {std::pair("forward", Pass::kForward), std::pair("backward", Pass::kBackward)}) {
    const PassStats counted = ReadStats(pass);
    pybind11::dict entry;
    entry["products"] = counted.products;
    entry["flops"] = counted.flops;
    stats[name] = entry;
  }
  return stats;
}

}  // namespace stopgrad

#endif  // STOPGRAD_PYTHON_STATS_H_
