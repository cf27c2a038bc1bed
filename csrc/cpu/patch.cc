#include "cpu/patch.h"

#include <algorithm>
#include <cstring>

#include "cpu/targets.h"

namespace stopgrad::cpu {

namespace {

template <typename T>
void GatherElements(const void* from, const int64_t* places, int64_t count, void* to) {
  for (int64_t j = 0; j < count; ++j) {
    static_cast<T*>(to)[j] = static_cast<const T*>(from)[places[j]];
  }
}

void GatherElements(DType dtype, const void* from, const int64_t* places, int64_t count, void* to) {
  VisitDType(dtype, [&](auto traits) {
    GatherElements<typename decltype(traits)::Storage>(from, places, count, to);
  });
}

}  // namespace

PackingView::PackingView(DType dtype, const Factor& factor, const MatrixView& view, bool first)
    : dtype_(dtype),
      size_(SizeOf(dtype)),
      factor_(factor),
      stride_(first ? view.row_stride : view.col_stride),
      k_stride_(first ? view.col_stride : view.row_stride),
      places_(first ? view.rows : view.cols),
      k_places_(first ? view.cols : view.rows),
      conjugate_(view.conjugate),
      across_(stride_ == 1) {}

PackSource PackingView::Patch(int64_t offset, int64_t first, int64_t count, int64_t first_k,
                              int64_t k, int64_t k_left, char* memory, int64_t slack) const {
  if (!needs_patches()) {
    const char* const data = At(factor_.data, offset + first * stride_ + first_k * k_stride_);
    return {data, stride_, k_stride_, conjugate_, count, k, k_left, 0};
  }
  const int64_t rows = across_ ? k : count;
  const int64_t cols = across_ ? count : k;
  const int64_t first_row = across_ ? first_k : first;
  const int64_t first_col = across_ ? first : first_k;
  const int64_t row_stride = across_ ? k_stride_ : stride_;
  const int64_t* row_places = across_ ? k_places_ : places_;
  const int64_t* col_places = across_ ? places_ : k_places_;
  if (row_places != nullptr) row_places += first_row;
  if (col_places != nullptr) {
    col_places += first_col;
  } else {
    offset += first_col;
  }
  if (row_places == nullptr) offset += first_row * row_stride;

  PackSource patch{memory, cols, cols, conjugate_, count, k, k + slack, 0};
  (across_ ? patch.stride : patch.k_stride) = 1;
  if (factor_.prologue.saved != nullptr) {
    // Those of all rows of dY, which lie one behind the other. A list of rows has none of 0.
    const uint8_t* active = factor_.prologue.active;
    if (active != nullptr) active += offset / row_stride;
    const ActivationGradientLoop loop =
        GetTarget().elementwise->activation_gradient[static_cast<int>(dtype_)]
                                                    [static_cast<int>(factor_.prologue.activation)];
    loop({At(factor_.data, offset), At(factor_.prologue.saved, offset), memory, nullptr, rows, cols,
          row_stride, cols, row_places, active, nullptr});
    return patch;
  }
  if (col_places == nullptr && row_places != nullptr &&
      row_places[rows - 1] - row_places[0] == (rows - 1) * row_stride) {
    // The places ascend, so these rows lie one behind the other, and are packed where they lie.
    patch.data = At(factor_.data, offset + row_places[0]);
    (across_ ? patch.k_stride : patch.stride) = row_stride;
    patch.k_left = k;
    return patch;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = row_places != nullptr ? row_places[i] : i * row_stride;
    const char* const from = At(factor_.data, offset + row);
    char* const to = memory + i * cols * size_;
    if (col_places != nullptr) {
      GatherElements(dtype_, from, col_places, cols, to);
    } else {
      std::memcpy(to, from, cols * size_);
    }
  }
  return patch;
}

}  // namespace stopgrad::cpu
