#ifndef STOPGRAD_CORE_TENSORS_H_
#define STOPGRAD_CORE_TENSORS_H_

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

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_TENSORS_H_
