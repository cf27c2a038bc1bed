#ifndef STOPGRAD_CORE_PRODUCT_H_
#define STOPGRAD_CORE_PRODUCT_H_

#include <cstdint>
#include <vector>

#include "core/export.h"

namespace stopgrad {

// A matrix in memory: element (i, j) is at offset + i * row_stride + j * col_stride, conjugated if
// asked. A transposed view swaps the strides; an adjoint one also conjugates. Where only some rows
// take part, `rows` has their places instead of i * row_stride, ascending; likewise `cols`. The
// strides then still tell how the matrix lies.
struct MatrixView {
  int64_t row_stride = 0;
  int64_t col_stride = 0;
  bool conjugate = false;
  int64_t offset = 0;
  const int64_t* rows = nullptr;  // somebody else's, like the matrix
  const int64_t* cols = nullptr;

  bool by_list() const { return rows != nullptr || cols != nullptr; }
};

STOPGRAD_EXPORT MatrixView Transposed(const MatrixView& view);

// One batch dimension: its extent and the distance, in elements, between neighbouring matrices of
// each operand. A stride of 0 in a or b broadcasts; a stride of 0 in c sums.
struct BatchDim {
  int64_t extent;
  int64_t a_stride;
  int64_t b_stride;
  int64_t c_stride;

  bool sums() const { return c_stride == 0; }
};

// A batched matrix product over strided views, the one form in which forward and backward reach a
// device:
//   C[i] = alpha * sum_j A[i, j] B[i, j],   A: m x k,  B: k x n,  C: m x n
// with i over the batch dimensions that keep C and j over those that sum.
struct Product {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  MatrixView a;
  MatrixView b;
  MatrixView c;
  std::vector<BatchDim> batch;

  // Number of matrices C, and of products summed into each.
  STOPGRAD_EXPORT int64_t outputs() const;
  STOPGRAD_EXPORT int64_t terms() const;

  // Multiply-adds, counted as two operations; a complex one counts as four real ones.
  STOPGRAD_EXPORT int64_t Flops(bool is_complex) const;
};

// C^T = B^T A^T: the same product for a device that wants C stored the other way round. The factors
// change places, so the caller's pointers must as well.
STOPGRAD_EXPORT Product Transposed(const Product& product);

// Rewrites the product as an equal one that is better to compute: no batch dimensions of extent 1,
// and batch dimensions that lie seamlessly behind m or k become part of it (a batch of activations
// times one weight matrix is one tall product).
Product Simplify(Product product);

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_PRODUCT_H_
