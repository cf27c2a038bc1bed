#include "cuda/filling.h"

namespace stopgrad::cuda {

namespace {

// Whether all rows, or what lies like rows, begin at multiples of kRowBytes.
bool IsAligned(const void* data, const MatrixView& view, int64_t BatchDim::* stride,
               const Product& product, DType dtype) {
  int64_t elements = view.offset | (LiesByColumns(view) ? view.col_stride : view.row_stride);
  for (const BatchDim& dim : product.batch) elements |= dim.*stride;
  return (reinterpret_cast<uintptr_t>(data) | elements * SizeOf(dtype)) % kRowBytes == 0;
}

int64_t Matrices(const Product& product, int64_t BatchDim::* stride) {
  int64_t count = 1;
  for (const BatchDim& dim : product.batch) count *= dim.*stride != 0 ? dim.extent : 1;
  return count;
}

}  // namespace

std::optional<Copies> FillingThatPays(DType dtype, const Product& product, const Operands& operands,
                                      const Copies& due, bool has_epilogue,
                                      const FillingCosts& costs) {
  const int64_t size = SizeOf(dtype);
  if (size != 2) return std::nullopt;  // others were not measured
  const Product& p = product;
  const bool lies_along_k = !LiesByColumns(p.a) || LiesByColumns(p.b);
  Product filled = p;
  if (lies_along_k) filled.k = RoundUp(p.k, kRowBytes / size);
  filled.n = RoundUp(p.n, kRowBytes / size);
  const bool more_k = filled.k != p.k, more_n = filled.n != p.n;
  const bool a = more_k || !IsAligned(operands.a, p.a, &BatchDim::a_stride, p, dtype);
  const bool b = more_k || more_n || !IsAligned(operands.b, p.b, &BatchDim::b_stride, p, dtype);
  const bool c = more_n || !IsAligned(operands.c, p.c, &BatchDim::c_stride, p, dtype);
  int64_t passes = 0, elements = 0;
  const auto count = [&](bool is_made, int64_t matrices, int64_t matrix) {
    if (!is_made) return;
    ++passes;
    elements += matrices * matrix;
  };
  count(a && !due.a, Matrices(p, &BatchDim::a_stride), p.m * p.k);
  count(b && !due.b, Matrices(p, &BatchDim::b_stride), p.k * p.n);
  count(c && !due.c, Matrices(p, &BatchDim::c_stride), p.m * p.n);
  if (passes == 0 && !more_k && !more_n) return std::nullopt;
  count(more_n && has_epilogue, Matrices(p, &BatchDim::c_stride), p.m * p.n);
  const auto flops = [](const Product& q) {
    return static_cast<double>(q.Flops(/*is_complex=*/false));
  };
  const double saved = costs.per_flop * flops(p) - costs.per_filled_flop * flops(filled);
  const double cost =
      costs.per_byte * static_cast<double>(2 * elements * size) + costs.per_pass * passes;
  if (saved <= cost) return std::nullopt;
  return Copies{filled.k, filled.n, a || due.a, b || due.b, c || due.c};
}

int64_t BytesOf(const Copies& copies, DType dtype, const Product& product) {
  int64_t bytes = 0;
  const auto add = [&](bool is_made, int64_t BatchDim::* stride, int64_t rows, int64_t cols) {
    if (!is_made) return;
    // Which of the two is rounded up depends on how the matrix lies.
    const int64_t step = kRowBytes / SizeOf(dtype);
    const int64_t matrix = RoundUp(rows, step) * RoundUp(cols, step) * SizeOf(dtype);
    bytes += RoundUp(Matrices(product, stride) * matrix, kBlockBytes);
  };
  add(copies.a, &BatchDim::a_stride, product.m, copies.k);
  add(copies.b, &BatchDim::b_stride, copies.k, copies.n);
  add(copies.c, &BatchDim::c_stride, product.m, copies.n);
  return bytes;
}

}  // namespace stopgrad::cuda
