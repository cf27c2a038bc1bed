#ifndef STOPGRAD_CUDA_FILLING_H_
#define STOPGRAD_CUDA_FILLING_H_

#include <cstdint>
#include <optional>

#include "core/dtype.h"
#include "core/product.h"
#include "cuda/device.h"

namespace stopgrad::cuda {

// A copy's rows begin at multiples of this. In 16 bits, the fastest algorithms want that, and rows
// of whole multiples, of all that they read and write.
inline constexpr int64_t kRowBytes = 16;
// What Device aligns memory to.
inline constexpr int64_t kBlockBytes = 256;

inline int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Whether what lies together in memory are the matrix's columns, and not its rows.
inline bool LiesByColumns(const MatrixView& view) {
  return view.row_stride == 1 && view.col_stride != 1;
}

// Which matrices of a product are copied before or after it, and how large the product is then. If
// it is larger than the wanted one, that one is in its corner: factors are copied with zeros behind
// k and n, and what is behind n in the result is not copied to C.
struct Copies {
  int64_t k;
  int64_t n;
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

// The copies that make a product of such rows, where it is not one and where that saves more than
// they cost. `due` are those that are made in any case, of rows as long as they are. `has_epilogue`
// says that a pass over C follows if C is copied.
std::optional<Copies> FillingThatPays(DType dtype, const Product& product, const Operands& operands,
                                      const Copies& due, bool has_epilogue,
                                      const FillingCosts& costs);

// The most memory that the copies take.
int64_t BytesOf(const Copies& copies, DType dtype, const Product& product);

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_FILLING_H_
