#ifndef STOPGRAD_CPU_PATCH_H_
#define STOPGRAD_CPU_PATCH_H_

#include <cstdint>

#include "core/dtype.h"
#include "core/product.h"
#include "cpu/gemm.h"
#include "cpu/gemm_kernels.h"

namespace stopgrad::cpu {

// A factor as packing sees it, element (i, l), i across strips or panels and l along k. What is not
// there as such, since it is computed by a prologue or its rows and columns are those of a list, is
// made patch by patch just before it is packed, while the first cache holds it.
class PackingView {
 public:
  // Of the first or the second factor of a product.
  PackingView(DType dtype, const Factor& factor, const MatrixView& view, bool first);

  const Factor& factor() const { return factor_; }

  // Whether k's steps are the rows of memory, so that a row lies across strips or panels.
  bool across() const { return across_; }
  bool needs_patches() const { return factor_.prologue.saved || places_ || k_places_; }
  // Whether the elements of a row of memory are those of a list.
  bool gathers_elements() const { return (across_ ? places_ : k_places_) != nullptr; }

  // Which rows of memory from the k-th on are not zeros, where that is still to be applied to what
  // is packed; else nullptr. Of the matrix that begins `offset` elements behind the first.
  const uint8_t* Active(int64_t offset, int64_t k) const {
    if (factor_.prologue.active == nullptr || factor_.prologue.saved != nullptr) return nullptr;
    return factor_.prologue.active + offset / k_stride_ + k;
  }

  // `count` of i from `first` on and `k` of l from `first_k` on, of the matrix that begins `offset`
  // elements behind the factor's first; k_left as in PackSource. If a patch has to be made it is
  // made in `memory`, with rows of `count` or `k` elements one behind the other, and behind it
  // there are `slack` elements that may be read.
  PackSource Patch(int64_t offset, int64_t first, int64_t count, int64_t first_k, int64_t k,
                   int64_t k_left, char* memory, int64_t slack) const;

 private:
  const char* At(const void* data, int64_t element) const {
    return static_cast<const char*>(data) + element * size_;
  }

  DType dtype_;
  int64_t size_;
  Factor factor_;
  int64_t stride_;
  int64_t k_stride_;
  const int64_t* places_;
  const int64_t* k_places_;
  bool conjugate_;
  bool across_;
};

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_PATCH_H_
