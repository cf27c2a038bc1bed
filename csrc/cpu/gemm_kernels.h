#ifndef STOPGRAD_CPU_GEMM_KERNELS_H_
#define STOPGRAD_CPU_GEMM_KERNELS_H_

#include <cstdint>

#include "core/dtype.h"

namespace stopgrad::cpu {

// The inner loops of a matrix product C = alpha A B, packed and blocked as in Goto and van de
// Geijn, Anatomy of High-Performance Matrix Multiplication, 2008. A strip is some rows of A, a
// panel some columns of B; packed, either is one dense row of its width for every step of k. What
// is multiplied are real numbers of the dtype's accumulator type.
//
// A complex product is a real one of twice the rows and twice the k (the 1m method of Van Zee,
// Implementing High-Performance Complex Matrix Multiplication via the 1m Method, 2020),
//   (Re C)   (Re A  -Im A) (Re B)
//   (Im C) = (Im A   Re A) (Im B),
// where the two rows that an element of A fills lie next to each other, and so do those of C.

// bfloat16 is multiplied by the processor's own instructions where it has them, and half, in two
// parts, by its tiles. These add the products of two steps of k at a time, so there a row of a
// packed piece holds pairs. For tiles they lie in another order, which is the kernels' own
// business.

// A piece of a factor where it lies. Element (i, l), i across the strip or panel and l along k, is
// at i * stride + l * k_stride; one of the two strides is 1.
struct PackSource {
  const void* data;
  int64_t stride;
  int64_t k_stride;
  bool conjugate;
  int64_t count;   // of i, at most the width
  int64_t k;       // of l
  int64_t k_left;  // of l up to the matrix's end, at least k: all that may be read
  // Which l are zeros, whatever stands there: a bit for each of the first 32.
  uint32_t inactive;
};

// Calls function(i) for every bit that is set, of rows that are not active.
template <typename Function>
void ForEachBit(uint32_t bits, Function&& function) {
  for (; bits != 0; bits &= bits - 1) function(__builtin_ctz(bits));
}

// Packs a piece, with zeros for l from k on to the next multiple of the kernels' k_step. What
// stands between `count` and the width is never a result's business: zeros or neighbours of the
// piece.
using PackLoop = void (*)(const PackSource& source, void* packed);

// C = alpha A B or C += alpha A B for as many rows and columns as fit the registers. Either factor
// can be packed or lie in its matrix, if that holds what is multiplied. B's rows are b_stride apart
// and are read in whole vectors; of C's, `cols` elements are written.
struct MicroTile {
  int64_t steps;  // rows of the packed strip
  const void* a;
  int64_t a_stride;  // from row to row
  int64_t a_step;
  const void* b;
  int64_t b_stride;
  const uint8_t* b_active;  // 1, or 0 where zeros stand for a row of B
  // What the first step asks for into the second cache, a line of it; each one after it asks for
  // what lies ahead_step bytes behind that. A kernel need not ask, and it may lie beyond what is
  // there.
  const void* ahead;
  int64_t ahead_step;
  double alpha;
  bool adds;
  void* c;
  int64_t c_stride;
  int64_t rows;  // of C
  int64_t cols;
};
using MultiplyLoop = void (*)(const MicroTile& tile);

// What a loop has to heed beside: nothing, an a_stride other than 1, or b_active.
enum class Reads { kAsPacked, kStridedA, kActiveB };
inline constexpr int kNumReads = 3;

inline constexpr int kMostRows = 32;
inline constexpr int kMostVectors = 2;

// The kernels of one dtype on one instruction set.
struct GemmKernels {
  int rows;      // real rows of the largest micro-tile
  int row_step;  // rows are computed in multiples of this
  int lanes;     // sums in a vector
  int strip_width;
  int panel_width;
  int element_size;  // of a packed piece
  int k_step;        // a packed piece is of a multiple of so many of k
  // Rows of a packed piece for two of k: 1 of pairs, 2 where they are in two parts or single, 4 of
  // complex numbers.
  int steps_of_two_k;
  PackLoop pack_strip;
  PackLoop pack_panel;
  // [reads][rows - 1][vectors - 1]; of active rows only where elements are multiplied as they lie.
  MultiplyLoop multiply[kNumReads][kMostRows][kMostVectors];
  // What a thread calls before and after it multiplies, if they are there.
  void (*begin)();
  void (*end)();

  int64_t Steps(int64_t k) const { return (k + k_step - 1) / k_step * k_step * steps_of_two_k / 2; }
};

struct GemmKernelTable {
  GemmKernels of[kNumDTypes];
};

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_GEMM_KERNELS_H_
