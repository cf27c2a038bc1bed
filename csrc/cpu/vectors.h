#ifndef STOPGRAD_CPU_VECTORS_H_
#define STOPGRAD_CPU_VECTORS_H_

// The vectors and the micro-tile of an instruction set. Like the other parts of gemm_target.cc,
// this is compiled for each of them, hence its namespace without a name.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/gemm_kernels.h"

namespace stopgrad::cpu {

namespace {

// The largest micro-tile is what leaves a register for an element of A and one for each vector of
// B: 32 registers of 64 bytes hold 14 x 2 sums, 16 hold 6 x 2, and 4 x 2 where multiplying and
// adding are two instructions with a temporary between them. On AArch64 GCC gives all elements of a
// column of A registers, of 32: with 10 x 2 sums nothing has to go to memory and back, with 11 x 2
// four vectors a step.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRows = 14;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRows = 6;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRows = 10;
#else
constexpr int kVectorBytes = 16;
constexpr int kRows = 4;
#endif
static_assert(kRows <= kMostRows);

template <typename T>
struct VectorOf {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  typedef Index Indices __attribute__((vector_size(kVectorBytes)));
  static constexpr int kStripWidth = (kRows + kLanes - 1) / kLanes * kLanes;
  static constexpr int kPanelWidth = kMostVectors * kLanes;
};
template <typename T>
using Vector = typename VectorOf<T>::Type;

template <typename T>
Vector<T> LoadVector(const T* from) {
  Vector<T> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename T>
void StoreVector(const Vector<T>& vector, T* to) {
  std::memcpy(to, &vector, sizeof vector);
}

// first and second with their off-diagonal blocks changed: of every pair of blocks, the upper
// result has the even ones of both and the lower result the odd ones. The indices are constants of
// the initializer, which GCC makes single instructions of.
template <typename T, int block, size_t... j>
[[gnu::always_inline]] inline void ChangeBlocks(Vector<T>* first, Vector<T>* second,
                                                std::index_sequence<j...>) {
  using Indices = typename VectorOf<T>::Indices;
  constexpr size_t kLanes = sizeof...(j);
  const Vector<T> upper = *first;
  const Vector<T> lower = *second;
  *first = __builtin_shuffle(upper, lower, Indices{(j & block ? kLanes + j - block : j)...});
  *second = __builtin_shuffle(upper, lower, Indices{(j & block ? kLanes + j : j + block)...});
}

// rows[i][j] <-> rows[j][i]: in each round, pairs of rows change blocks of twice the size.
template <typename T, int block = 1>
[[gnu::always_inline]] inline void Transpose(Vector<T>* rows) {
  constexpr int kLanes = VectorOf<T>::kLanes;
  if constexpr (block < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & block) continue;
      ChangeBlocks<T, block>(rows + i, rows + i + block, std::make_index_sequence<kLanes>());
    }
    Transpose<T, 2 * block>(rows);
  }
}

}  // namespace

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_VECTORS_H_
