#include "cpu/blocking.h"

#include "cpu/parallel.h"

namespace stopgrad::cpu {

namespace {

// A packed strip stays in the first cache, next to the rows of a panel that go by: 3/4 of 32 KiB.
constexpr int64_t kStripBytes = 24 << 10;
// The longest chain of additions before a sum is added to what came before; tiles of sums go on
// with it instead, and are rounded to 16 bits in the end. A complex product adds two real ones for
// each of k, which others do in two chains: half as long, it is as exact as theirs.
constexpr int64_t kLongestBlock = 384;
constexpr int64_t kLongestComplexBlock = 192;
// The more panels a tile has, the less often a strip is packed.
constexpr int64_t kTilePanelBytes = 3 << 19;
constexpr int64_t kMostStripsPerTile = 8;
// So much of them passes by the tile's strips at a time, out of the second cache, while the next so
// much comes from the last one; with half as much more, products were as fast.
constexpr int64_t kChunkBytes = 1 << 19;
// All threads share the packed panels through the last cache. This is also the most memory that
// they take, but for a single panel of the longest pass.
constexpr int64_t kPanelBytes = 4 << 20;
// Sums in C itself outlive a pass, and there a pass is one block: of more columns of B then, strips
// are packed once. Where B is not packed that gains as much, on two threads: 64x1024x1024 took 0.83
// to 0.87 of the time of one pass over all of k. Other sums need memory of C's size between passes.
constexpr int64_t kLongestPass = 8192;
// Pieces of k are whole vectors of steps, of pairs as well, and a multiple of every kernel's
// k_step.
constexpr int64_t kStepOfK = 32;
// A C of fewer micro-tiles is computed in slices of k, each of two blocks at least.
constexpr int64_t kFewestMicroTiles = 32;
constexpr int64_t kFewestBlocksPerSlice = 2;
// Packing A for few panels costs more than it saves. So does packing B for few strips, or where all
// of it stays in the first cache, or where all strips together read so little of a block that they
// find it in the second one: on a Xeon with AVX-512, one thread, 42x512x512, 64x512x512,
// 128x512x512 and 64x1024x1024 took 0.84 to 0.95 of the time that they took packed; beyond the
// bound 256x784x512 took 1.01 to 1.05.
constexpr int64_t kFewestStripsToPack = 3;
constexpr int64_t kLargestUnpackedB = 32 << 10;
constexpr int64_t kMostReadOfUnpackedBlock = 8 << 20;
constexpr int64_t kFewestPanelsToPack = 5;

// In as few pieces as possible, as equal as possible in steps; `most` is a multiple of the step.
Division InPiecesOfAtMost(int64_t most, int64_t extent, int64_t step = 1) {
  const int64_t pieces = InPiecesOf(std::max(step, most), extent).pieces;
  const int64_t size = CeilDiv(CeilDiv(extent, pieces), step) * step;
  return InPiecesOf(std::clamp<int64_t>(size, 1, std::max<int64_t>(1, extent)), extent);
}

}  // namespace

ElementSizes SizesOf(DType dtype) {
  return VisitDType(dtype, [](auto traits) {
    using Traits = decltype(traits);
    constexpr int64_t kParts = Traits::kComplex ? 2 : 1;
    return ElementSizes{sizeof(typename Traits::Storage),
                        sizeof(typename Traits::Accumulator) / kParts, kParts};
  });
}

Division InPiecesOf(int64_t size, int64_t extent) {
  return {extent, size, std::max<int64_t>(1, CeilDiv(extent, size))};
}

Division Blocking::BlocksOf(int64_t k) const {
  return InPiecesOfAtMost(longest_block, k, kStepOfK);
}

Blocking ChooseBlocking(const GemmKernels& kernels, const ElementSizes& sizes, const Product& p,
                        const Prologue& a, const Prologue& b, int64_t workers) {
  const auto panel_bytes = [&](int64_t k) {
    return kernels.Steps(k) * kernels.panel_width * kernels.element_size;
  };
  const Division strips = InPiecesOfAtMost(kernels.rows / sizes.parts, p.m, kernels.row_step);
  const Division panels = InPiecesOf(kernels.panel_width, p.n);
  const int64_t micro_tiles = strips.pieces * panels.pieces;
  const bool sums_in_c = HoldsSums(sizes, p.c) && micro_tiles >= kFewestMicroTiles;
  const int64_t most_in_block =
      std::min<int64_t>(sizes.parts == 2 ? kLongestComplexBlock : kLongestBlock,
                        kStripBytes / (kernels.strip_width * kernels.element_size)) *
      2 / kernels.steps_of_two_k;
  const int64_t longest_block = most_in_block / kStepOfK * kStepOfK;
  const Division passes = InPiecesOfAtMost(sums_in_c ? longest_block : kLongestPass, p.k, kStepOfK);
  const Division blocks = InPiecesOfAtMost(longest_block, passes.size, kStepOfK);

  const bool lies_as_multiplied = sizes.storage == kernels.element_size;
  const bool reads_a_unpacked =
      lies_as_multiplied && a.empty() && !p.a.by_list() && panels.pieces < kFewestPanelsToPack;
  // Rows of B that are not active can be left out as it is read, by a loop that has no stride of A.
  const bool has_loop = b.active == nullptr || !reads_a_unpacked || p.a.row_stride == 1;
  const bool packing_pays =
      strips.pieces >= kFewestStripsToPack && p.k * p.n * sizes.storage > kLargestUnpackedB &&
      strips.pieces * blocks.size * p.n * sizes.storage > kMostReadOfUnpackedBlock;
  const bool reads_b_unpacked = lies_as_multiplied && b.saved == nullptr && has_loop &&
                                !p.b.by_list() && p.b.col_stride == 1 && !packing_pays;
  const int64_t packed_panels = !reads_b_unpacked                ? panels.pieces
                                : p.n % kernels.panel_width == 0 ? 0
                                                                 : 1;
  const Division ranges = InPiecesOfAtMost(
      reads_b_unpacked ? panels.pieces : kPanelBytes / panel_bytes(passes.size), panels.pieces);

  const int64_t most_slices = std::max<int64_t>(1, blocks.pieces / kFewestBlocksPerSlice);
  const int64_t wanted_slices = std::min(most_slices, CeilDiv(kFewestMicroTiles, micro_tiles));
  const Division slices = InPiecesOf(CeilDiv(blocks.pieces, wanted_slices), blocks.pieces);
  int64_t strips_per_tile = kMostStripsPerTile;
  int64_t panels_per_tile = std::min(kTilePanelBytes / panel_bytes(blocks.size), ranges.size);
  if (workers > 1) {
    // Several tiles for every thread, so that nobody waits long for the last one.
    const int64_t wanted = CeilDiv(8 * workers, slices.pieces);
    const int64_t tile_columns = CeilDiv(ranges.size, panels_per_tile);
    strips_per_tile =
        std::clamp<int64_t>(strips.pieces / CeilDiv(wanted, tile_columns), 1, kMostStripsPerTile);
    const int64_t tile_rows = CeilDiv(strips.pieces, strips_per_tile);
    panels_per_tile =
        std::clamp<int64_t>(ranges.size / CeilDiv(wanted, tile_rows), 1, panels_per_tile);
  }
  strips_per_tile = InPiecesOfAtMost(strips_per_tile, strips.pieces).size;
  panels_per_tile = InPiecesOfAtMost(panels_per_tile, ranges.size).size;
  const int64_t panels_per_chunk =
      InPiecesOfAtMost(kChunkBytes / panel_bytes(blocks.size), panels_per_tile).size;
  // What remains when the first thread finds nothing more to do is one tile for each of the others.
  const int64_t split_tiles = workers > 1 ? workers : 0;
  return {strips,        passes, panels,          ranges,          reads_a_unpacked, packed_panels,
          longest_block, slices, strips_per_tile, panels_per_tile, panels_per_chunk, split_tiles};
}

}  // namespace stopgrad::cpu
