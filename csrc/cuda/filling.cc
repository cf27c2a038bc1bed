#include "cuda/filling.h"

namespace stopgrad::cuda {

namespace {

bool LiesByColumns(const MatrixView& view) { return view.row_stride == 1 && view.col_stride != 1; }

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

std::optional<Filling> FillingThatPays(DType dtype, const Product& product,
                                       const Operands& operands, const Filling& copied,
                                       const FillingCosts& costs) {
  const int64_t size = SizeOf(dtype);
  if (size != 2) return std::nullopt;  // others were not measured
  const Product& p = product;
  const bool along_k = !LiesByColumns(p.a) || LiesByColumns(p.b);
  Filling filling{};
  filling.k = along_k ? RoundUp(p.k, kRowBytes / size) : p.k;
  filling.n = RoundUp(p.n, kRowBytes / size);
  const bool more_k = filling.k != p.k, more_n = filling.n != p.n;
  filling.a = more_k || !IsAligned(operands.a, p.a, &BatchDim::a_stride, p, dtype);
  filling.b = more_k || more_n || !IsAligned(operands.b, p.b, &BatchDim::b_stride, p, dtype);
  filling.c = more_n || !IsAligned(operands.c, p.c, &BatchDim::c_stride, p, dtype);
  int64_t copies = 0, elements = 0;
  const auto count = [&](bool is_copied, bool anyway, int64_t matrices, int64_t matrix) {
    if (!is_copied || anyway) return;
    ++copies;
    elements += matrices * matrix;
  };
  count(filling.a, copied.a, Matrices(p, &BatchDim::a_stride), p.m * p.k);
  count(filling.b, copied.b, Matrices(p, &BatchDim::b_stride), p.k * p.n);
  count(filling.c, copied.c, Matrices(p, &BatchDim::c_stride), p.m * p.n);
  // Also where copies are made anyway, but of rows as long as they are.
  const bool changes = copies > 0 || more_k || more_n;
  filling.a = filling.a || copied.a;
  filling.b = filling.b || copied.b;
  filling.c = filling.c || copied.c;
  const double saved = costs.saved_per_flop * static_cast<double>(p.Flops(/*is_complex=*/false));
  const double cost =
      costs.per_byte * static_cast<double>(2 * elements * size) + costs.per_copy * copies;
  if (!changes || saved <= cost) return std::nullopt;
  return filling;
}

}  // namespace stopgrad::cuda
