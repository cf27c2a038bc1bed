#ifndef STOPGRAD_CUDA_PRODUCT_H_
#define STOPGRAD_CUDA_PRODUCT_H_

#include <vector>

#include "core/activation.h"
#include "core/dtype.h"
#include "core/product.h"
#include "core/status.h"
#include "cuda/device.h"

namespace stopgrad::cuda {

// What is computed beside a product. Of these, either none, or the first three, which go with a
// dense C, or the last one.
struct Epilogue {
  Activation activation = Activation::kLinear;  // z = alpha A B + bias,  y = f(z)
  const void* bias = nullptr;
  void* z = nullptr;
  // Gets the sums of B's columns. Goes with a B whose rows are one behind the other, and no batch.
  void* column_sums_of_b = nullptr;

  bool keeps_product() const { return activation == Activation::kLinear && !bias && !z; }
};

// Whether a product, simplified, can sum its second factor's columns on the way.
bool CanSumColumns(const Product& product);

// Enqueues C = alpha A B for a product that is simplified, and its epilogue. `repeats`: products of
// these sizes will come again. Every element of C is written. Views that cublasLt does not know, by
// lists or conjugated but not transposed, are copied to where they are dense; batch dimensions that
// sum become part of k likewise, or their terms are added to C one after the other.
Status Enqueue(DType dtype, const Product& product, double alpha, const void* a, const void* b,
               void* c, const Epilogue& epilogue, bool repeats, Device& device);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_PRODUCT_H_
