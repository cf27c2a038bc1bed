#ifndef STOPGRAD_CORE_TENSORS_H_
#define STOPGRAD_CORE_TENSORS_H_

#include "core/plan.h"
#include "core/status.h"

namespace stopgrad {

// Dense, row-major tensors of a problem's dtype, in the memory of the device that runs it. Null
// means absent.
struct ForwardTensors {
  const void* a = nullptr;
  const void* b = nullptr;
  const void* bias = nullptr;
  void* y = nullptr;
  void* z = nullptr;  // the pre-activation, written where backward will need it
};

struct BackwardTensors {
  const void* dy = nullptr;
  const void* a = nullptr;      // read for dB
  const void* b = nullptr;      // read for dA
  const void* saved = nullptr;  // y or z, as kActivations says
  void* da = nullptr;           // a result that is not null is needed
  void* db = nullptr;
  void* dbias = nullptr;
  void* dz = nullptr;
};

inline GradientNeeds NeedsOf(const BackwardTensors& tensors) {
  return {tensors.da != nullptr, tensors.db != nullptr, tensors.dbias != nullptr,
          tensors.dz != nullptr};
}

// dZ is that of all rows. Where rows have weights nothing else reads it, so it is taken out of what
// is asked for and computed by itself: `compute` gets what that needs, and no row weights go with
// it.
template <typename Compute>
Status TakeDzApart(const GradientPolicy& policy, BackwardTensors* tensors, Compute&& compute) {
  if (tensors->dz == nullptr || !policy.rows.given) return Status();
  BackwardTensors alone{tensors->dy, nullptr, nullptr, tensors->saved};
  alone.dz = tensors->dz;
  tensors->dz = nullptr;
  return compute(alone);
}

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_TENSORS_H_
