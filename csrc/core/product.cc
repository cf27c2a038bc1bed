#include "core/product.h"

#include <algorithm>
#include <utility>

namespace stopgrad {

MatrixView Transposed(const MatrixView& view) {
  return {view.col_stride, view.row_stride, view.conjugate, view.offset, view.cols, view.rows};
}

Product Transposed(const Product& p) {
  Product result{p.n, p.m, p.k, Transposed(p.b), Transposed(p.a), Transposed(p.c), p.batch};
  for (BatchDim& dim : result.batch) std::swap(dim.a_stride, dim.b_stride);
  return result;
}

int64_t Product::outputs() const {
  int64_t count = 1;
  for (const BatchDim& dim : batch) count *= dim.sums() ? 1 : dim.extent;
  return count;
}

int64_t Product::terms() const {
  int64_t count = 1;
  for (const BatchDim& dim : batch) count *= dim.sums() ? dim.extent : 1;
  return count;
}

int64_t Product::Flops(bool is_complex) const {
  return (is_complex ? 8 : 2) * m * n * k * outputs() * terms();
}

namespace {

// Makes `dim` a part of m or k where the matrices along it lie one behind the other. Not of n: the
// columns of C are what a bias has an element for.
bool Fold(const BatchDim& dim, Product* product) {
  Product& p = *product;
  if (dim.sums()) {
    if (p.a.cols != nullptr || p.b.rows != nullptr) return false;
    if (dim.a_stride != p.k * p.a.col_stride || dim.b_stride != p.k * p.b.row_stride) return false;
    p.k *= dim.extent;
    return true;
  }
  if (p.a.rows != nullptr || p.c.rows != nullptr) return false;
  if (dim.b_stride == 0 && dim.a_stride == p.m * p.a.row_stride &&
      dim.c_stride == p.m * p.c.row_stride) {
    p.m *= dim.extent;
    return true;
  }
  return false;
}

}  // namespace

Product Simplify(Product product) {
  std::vector<BatchDim> dims = std::exchange(product.batch, {});
  dims.erase(
      std::remove_if(dims.begin(), dims.end(), [](const BatchDim& dim) { return dim.extent == 1; }),
      dims.end());
  // From the innermost dimension outwards: an outer one can only join what the inner ones joined.
  for (size_t i = dims.size(); i-- > 0;) {
    if (!Fold(dims[i], &product)) product.batch.insert(product.batch.begin(), dims[i]);
  }
  return product;
}

}  // namespace stopgrad
