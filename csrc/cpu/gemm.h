#ifndef STOPGRAD_CPU_GEMM_H_
#define STOPGRAD_CPU_GEMM_H_

#include <vector>

#include "core/activation.h"
#include "core/dtype.h"
#include "core/product.h"
#include "cpu/parallel.h"

namespace stopgrad::cpu {

// A factor that is not there as such, in the place of dY: dZ = dY f'(saved), where `saved` lies as
// dY does. Its elements are computed as they are packed. `active` is 1 or 0 for each of dY's rows
// in memory; those of 0 are zeros. It goes with a sum over these rows only.
struct Prologue {
  Activation activation = Activation::kLinear;
  const void* saved = nullptr;      // null where the activation is linear
  const uint8_t* active = nullptr;  // null where all are 1

  bool empty() const { return saved == nullptr && active == nullptr; }
};

// What happens to the product on its way out: z = alpha A B + bias, y = f(z). `bias` has an element
// per column of C and goes with dense rows of C only; `z` is a second output of C's shape. `active`
// is 1 or 0 for each row of all of C, dense as well; those of 0 get zeros instead.
struct Epilogue {
  Activation activation = Activation::kLinear;
  const void* bias = nullptr;
  void* z = nullptr;
  const uint8_t* active = nullptr;

  bool keeps_sums() const { return activation == Activation::kLinear && !bias && !z; }
};

struct Factor {
  const void* data = nullptr;
  Prologue prologue = {};
};

// Whether the product's first or second factor, if it has a prologue, can and had better be
// computed as it is packed than before.
bool ComputesAsItPacks(DType dtype, const Product& product, bool first, const Work& work);

// Adds a simplified product to the work: C = f(alpha A B + bias). Every element of C is written,
// whatever was there before; a sum over nothing is 0. `alpha` must be 1 for integers.
void AddProduct(DType dtype, const Product& product, double alpha, const Factor& a, const Factor& b,
                void* c, const Epilogue& epilogue, Work* work);

// Adds products that write different parts of C.
void AddProducts(DType dtype, const std::vector<Product>& products, double alpha, const Factor& a,
                 const Factor& b, void* c, const Epilogue& epilogue, Work* work);

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_GEMM_H_
