#ifndef STOPGRAD_CPU_BLOCKING_H_
#define STOPGRAD_CPU_BLOCKING_H_

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"
#include "core/product.h"
#include "cpu/gemm.h"
#include "cpu/gemm_kernels.h"

namespace stopgrad::cpu {

struct ElementSizes {
  int64_t storage;
  int64_t real;   // of the accumulator type, or of one part where that is complex
  int64_t parts;  // 2 where it is complex

  bool c_can_hold_sums() const { return parts == 1 && storage == real; }
};

ElementSizes SizesOf(DType dtype);

// Whether C is where sums can stand until they are complete.
inline bool HoldsSums(const ElementSizes& sizes, const MatrixView& c) {
  return sizes.c_can_hold_sums() && !c.by_list();
}

// [0, extent) in pieces of one size; the last one may be smaller. There is at least one piece.
struct Division {
  int64_t extent;
  int64_t size;
  int64_t pieces;

  int64_t Begin(int64_t piece) const { return piece * size; }
  int64_t Size(int64_t piece) const { return std::min(size, extent - Begin(piece)); }
};

Division InPiecesOf(int64_t size, int64_t extent);

// How one C is computed. Its columns fall into ranges, k into passes. For every range and pass, the
// panels are packed and then the tiles of C computed, each by one thread: for each block of k, its
// strips are packed, and pass chunk after chunk of its panels. Blocks are so short that a packed
// strip stays in the first cache, chunks so narrow that they stay in the second one. A small C with
// a long k has too few tiles for many threads: there each tile is computed several times, over a
// slice of a pass's blocks, and the slices' sums are added in the end. In which order the products
// of an element are added follows from the sizes alone, so results are the same on any number of
// threads.
struct Blocking {
  Division strips;  // of m
  Division passes;  // of k
  Division panels;  // of n
  Division ranges;  // of the panels
  bool reads_a_unpacked;
  int64_t packed_panels;  // so many of the last ones are packed, the others read where they lie
  int64_t longest_block;
  Division slices;  // of the blocks of a whole pass
  int64_t strips_per_tile;
  int64_t panels_per_tile;
  int64_t panels_per_chunk;  // of a tile
  int64_t split_tiles;       // so many of the last ones are done in pieces

  // The blocks of a pass over so much of k.
  Division BlocksOf(int64_t k) const;
};

// For so many threads on each C.
Blocking ChooseBlocking(const GemmKernels& kernels, const ElementSizes& sizes, const Product& p,
                        const Prologue& a, const Prologue& b, int64_t workers);

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_BLOCKING_H_
