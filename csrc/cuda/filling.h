#ifndef STOPGRAD_CUDA_FILLING_H_
#define STOPGRAD_CUDA_FILLING_H_

#include <cstdint>
#include <optional>

#include "core/dtype.h"
#include "core/product.h"
#include "cuda/device.h"

namespace stopgrad::cuda {

// How algorithms want rows to begin, and in 16 bits to end.
inline constexpr int64_t kRowBytes = 16;

inline int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// A larger product with the wanted one in its corner: the factors are copied with zeros behind k
// and n, and what is behind n in the result is not copied to C.
struct Filling {
  int64_t k;
  int64_t n;
  // Which matrices are copied.
  bool a;
  bool b;
  bool c;
};

// The three matrices of a product; C lies by rows.
struct Operands {
  const void* a;
  const void* b;
  const void* c;
};

// The filling that makes a product fast, if it needs one and saves more than the copies cost.
// `copied` says what is copied in any case.
std::optional<Filling> FillingThatPays(DType dtype, const Product& product,
                                       const Operands& operands, const Filling& copied,
                                       const FillingCosts& costs);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_FILLING_H_
