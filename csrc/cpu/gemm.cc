#include "cpu/gemm.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/blocking.h"
#include "cpu/parallel.h"
#include "cpu/patch.h"
#include "cpu/targets.h"

namespace stopgrad::cpu {

namespace {

constexpr int64_t kPiecesOfSplitTile = 4;
// A factor that would be computed more often as it is packed is better computed before.
constexpr int64_t kMostTimesComputed = 2;
// Where a matrix's rows lie across strips or panels, so many of its rows are packed at a time, or
// as many as a packed piece has at least, and so many panels by one thread.
constexpr int64_t kRowsAtATime = 16;
constexpr int64_t kPanelsAtATime = 8;
// A micro-tile that asks for no other panel asks for its own, so many steps ahead. Of a row of two
// lines the second comes along: processors with such rows fetch lines in pairs.
constexpr int64_t kStepsAhead = 64;

struct Offsets {
  int64_t a = 0;
  int64_t b = 0;
  int64_t c = 0;
};

// Where the matrices of the index-th combination of `dims` begin, row-major.
Offsets OffsetsAt(const std::vector<BatchDim>& dims, int64_t index) {
  Offsets offsets;
  for (size_t i = dims.size(); i-- > 0;) {
    const int64_t position = index % dims[i].extent;
    index /= dims[i].extent;
    offsets.a += position * dims[i].a_stride;
    offsets.b += position * dims[i].b_stride;
    offsets.c += position * dims[i].c_stride;
  }
  return offsets;
}

const char* At(const void* data, int64_t bytes) { return static_cast<const char*>(data) + bytes; }
char* At(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }

// The same matrix, from the view's first element on.
Factor From(const Factor& factor, const MatrixView& view, int64_t element_size) {
  const int64_t bytes = view.offset * element_size;
  Factor from = factor;
  from.data = At(factor.data, bytes);
  if (factor.prologue.saved != nullptr) from.prologue.saved = At(factor.prologue.saved, bytes);
  return from;
}

constexpr int64_t kAlignment = 64;
int64_t Aligned(int64_t bytes) { return CeilDiv(bytes, kAlignment) * kAlignment; }

// Which of a few rows are not active, a bit each. Most often none is, and a branch for each row
// would cost more than the row.
using Rows = uint32_t;
static_assert(kMostRows <= 32 && kRowsAtATime <= 32);

// Of eight rows, whose bytes are 1 or 0: the product moves the lowest bit of the i-th byte, on a
// little-endian machine, to bit i of the highest.
Rows InactiveOfEight(const uint8_t* active) {
  uint64_t bytes;
  std::memcpy(&bytes, active, sizeof bytes);
  bytes ^= 0x0101010101010101;
  return static_cast<Rows>(bytes * 0x0102040810204080 >> 56);
}

Rows FindInactive(const uint8_t* active, int64_t rows) {
  Rows inactive = 0;
  if (rows >= 8) {
    for (int64_t i = 0; i < rows; i += 8) {
      const int64_t begin = std::min(i, rows - 8);
      inactive |= InactiveOfEight(active + begin) << begin;
    }
  } else {
    for (int64_t i = 0; i < rows; ++i) inactive |= Rows{!active[i]} << i;
  }
  return inactive;
}

// Each matrix of a batch by one thread where there are enough of them, else all threads on each.
bool WholeMatrices(const Product& p, int64_t workers) { return p.outputs() >= 2 * workers; }

int64_t WorkersPerMatrix(const Product& p, bool is_complex, int64_t workers) {
  if (WholeMatrices(p, workers)) return 1;
  return std::clamp<int64_t>(p.Flops(is_complex) / p.outputs() / kMinFlopsPerTask, 1, workers);
}

// A product over a batch of matrices: every C by one thread where there are many, by all threads
// where there are few.
class BatchedProduct {
 public:
  BatchedProduct(DType dtype, const Product& product, double alpha, const Factor& a,
                 const Factor& b, void* c, const Epilogue& epilogue, int64_t workers)
      : dtype_(dtype),
        kernels_(GetTarget().gemm->of[static_cast<int>(dtype)]),
        sizes_(SizesOf(dtype)),
        epilogue_loop_(GetTarget().elementwise->epilogue[static_cast<int>(dtype)]
                                                        [static_cast<int>(epilogue.activation)]),
        p_(product),
        alpha_(alpha),
        a_(dtype, From(a, product.a, sizes_.storage), product.a, /*first=*/true),
        b_(dtype, From(b, product.b, sizes_.storage), product.b, /*first=*/false),
        c_(At(c, product.c.offset * sizes_.storage)),
        epilogue_(epilogue) {
    for (const BatchDim& dim : p_.batch) (dim.sums() ? term_dims_ : output_dims_).push_back(dim);
    terms_ = p_.terms();
    if (terms_ == 0 || alpha == 0) p_.k = 0;  // nothing is read, and the sums are zeros
    terms_ = std::max<int64_t>(1, terms_);

    whole_matrices_ = WholeMatrices(p_, workers);
    workers_ = WorkersPerMatrix(p_, sizes_.parts == 2, workers);
    blocking_ = ChooseBlocking(kernels_, sizes_, p_, a.prologue, b.prologue, workers_);
    if (blocking_.slices.pieces > 1) {
      sums_place_ = SumsPlace::kMatrix;
    } else if (HoldsSums(sizes_, p_.c)) {
      sums_place_ = SumsPlace::kC;
    } else {
      sums_place_ = passes() > 1 ? SumsPlace::kMatrix : SumsPlace::kTile;
    }
    DivideScratch(workers);
  }

  static void Add(const std::shared_ptr<const BatchedProduct>& product, Work* work) {
    const BatchedProduct& p = *product;
    const int64_t outputs = p.p_.outputs();
    if (p.whole_matrices_) {
      work->AddStages({outputs}, p.scratch_bytes_,
                      [product](char* scratch, int64_t worker, size_t, int64_t output) {
                        product->RunMatrix(product->MatrixAt(scratch, output, worker),
                                           product->WorkersOwn(scratch, worker));
                      });
      return;
    }
    for (int64_t output = 0; output < outputs; ++output) {
      work->AddStages(p.Stages(), p.scratch_bytes_,
                      [product, output](char* scratch, int64_t worker, size_t stage, int64_t job) {
                        product->RunJob(product->MatrixAt(scratch, output, 0), stage, job,
                                        product->WorkersOwn(scratch, worker));
                      });
    }
  }

  // Many products, each by one thread.
  static void AddEachByOneThread(std::vector<BatchedProduct> products, Work* work) {
    int64_t bytes = 0;
    for (const BatchedProduct& product : products) bytes = std::max(bytes, product.scratch_bytes_);
    const int64_t count = static_cast<int64_t>(products.size());
    const auto shared = std::make_shared<const std::vector<BatchedProduct>>(std::move(products));
    work->AddStages({count}, bytes * work->workers(),
                    [shared, bytes](char* scratch, int64_t worker, size_t, int64_t job) {
                      const BatchedProduct& product = (*shared)[job];
                      char* const memory = scratch + worker * bytes;
                      for (int64_t output = 0; output < product.p_.outputs(); ++output) {
                        product.RunMatrix(product.MatrixAt(memory, output, 0),
                                          product.WorkersOwn(memory, 0));
                      }
                    });
  }

 private:
  // Where sums are until they are complete: in C itself; where that cannot hold them in a tile's
  // memory; where they outlive the tile, in memory for all of a range, or one for each slice.
  enum class SumsPlace { kC, kTile, kMatrix };

  // One C and its factors' first terms, and the memory for its packed panels and incomplete sums.
  struct Matrix {
    Offsets offsets;
    int64_t first_row;  // of all rows of C, where these are dense
    void* packed;
    void* sums;
  };

  // A range of panels and a pass over one term's k.
  struct Phase {
    int64_t first_panel;
    int64_t panels;
    int64_t first_packed;
    int64_t term;
    int64_t k_begin;
    Division blocks;  // of the pass
    Division slices;  // of the blocks
    int64_t tiles;
    int64_t whole_tiles;  // the first ones
    bool first;
    bool last;

    int64_t end() const { return first_panel + panels; }
    int64_t packed() const { return end() - first_packed; }
    int64_t tile_jobs() const { return whole_tiles + (tiles - whole_tiles) * kPiecesOfSplitTile; }
  };

  int64_t passes() const { return terms_ * blocking_.passes.pieces; }
  int64_t tile_width() const { return blocking_.panels_per_tile * kernels_.panel_width; }
  int64_t range_width() const { return blocking_.ranges.size * kernels_.panel_width; }
  int64_t own_bytes() const { return strips_bytes_ + tile_bytes_ + patch_bytes_; }
  int64_t slice_bytes() const { return p_.m * sizes_.parts * range_width() * sizes_.real; }
  int64_t strip_step_bytes() const { return kernels_.strip_width * kernels_.element_size; }
  int64_t panel_step_bytes() const { return kernels_.panel_width * kernels_.element_size; }
  // Strip or panel; which of them is wider depends on the instruction set.
  int64_t widest_piece() const { return std::max(kernels_.strip_width, kernels_.panel_width); }
  // At most 32, of which a PackSource says which are active, and a multiple of k_step.
  int64_t rows_at_a_time() const { return std::max<int64_t>(kRowsAtATime, kernels_.k_step); }
  // A job for every thread, if there are as many panels.
  int64_t PanelsPerJob(const Phase& phase) const {
    return b_.across() ? std::clamp<int64_t>(CeilDiv(phase.packed(), workers_), 1, kPanelsAtATime)
                       : 1;
  }

  // Jobs a stage: packing, tiles, and adding the slices, by turns.
  std::vector<int64_t> Stages() const {
    std::vector<int64_t> stages;
    for (int64_t i = 0; i < blocking_.ranges.pieces * passes(); ++i) {
      const Phase phase = PhaseAt(i);
      stages.push_back(CeilDiv(phase.packed(), PanelsPerJob(phase)) * phase.blocks.pieces);
      stages.push_back(phase.tile_jobs() * phase.slices.pieces);
      stages.push_back(phase.last && blocking_.slices.pieces > 1 ? blocking_.strips.pieces : 0);
    }
    return stages;
  }

  Phase PhaseAt(int64_t index) const {
    const int64_t range = index / passes();
    const int64_t pass = index % passes();
    const int64_t piece = pass % blocking_.passes.pieces;
    Phase phase;
    phase.first_panel = blocking_.ranges.Begin(range);
    phase.panels = blocking_.ranges.Size(range);
    phase.first_packed =
        std::max(phase.first_panel, blocking_.panels.pieces - blocking_.packed_panels);
    phase.term = pass / blocking_.passes.pieces;
    phase.k_begin = blocking_.passes.Begin(piece);
    phase.blocks = blocking_.BlocksOf(blocking_.passes.Size(piece));
    phase.slices = InPiecesOf(blocking_.slices.size, phase.blocks.pieces);
    phase.tiles = CeilDiv(phase.panels, blocking_.panels_per_tile) *
                  CeilDiv(blocking_.strips.pieces, blocking_.strips_per_tile);
    phase.whole_tiles = std::max<int64_t>(0, phase.tiles - blocking_.split_tiles);
    phase.first = pass == 0;
    phase.last = pass == passes() - 1;
    return phase;
  }

  // Packed panels and sums for every matrix that is being computed, packed strips and a tile for
  // every worker.
  void DivideScratch(int64_t workers) {
    const int64_t packed = std::min(blocking_.packed_panels, blocking_.ranges.size);
    packed_bytes_ = Aligned(packed * kernels_.Steps(blocking_.passes.size) * panel_step_bytes());
    const int64_t block = std::min(blocking_.longest_block, blocking_.passes.size);
    strips_bytes_ = Aligned(blocking_.strips_per_tile * kernels_.Steps(block) * strip_step_bytes());
    const int64_t tile_rows = blocking_.strips_per_tile * blocking_.strips.size * sizes_.parts;
    if (sums_place_ == SumsPlace::kTile) {
      tile_bytes_ = Aligned(tile_rows * tile_width() * sizes_.real);
    } else if (sums_place_ == SumsPlace::kMatrix) {
      sums_bytes_ = Aligned(blocking_.slices.pieces * slice_bytes());
    }
    if (a_.needs_patches() || b_.needs_patches()) {
      const int64_t across = std::max(kPanelsAtATime * kernels_.panel_width,
                                      blocking_.strips_per_tile * blocking_.strips.size);
      const int64_t patch = std::max(rows_at_a_time() * across, block * widest_piece());
      patch_bytes_ = Aligned((patch + widest_piece()) * sizes_.storage);
    }
    matrices_bytes_ = (whole_matrices_ ? workers : 1) * (packed_bytes_ + sums_bytes_);
    scratch_bytes_ = matrices_bytes_ + workers * own_bytes();
  }

  Matrix MatrixAt(char* scratch, int64_t output, int64_t memory) const {
    char* const packed = scratch + memory * (packed_bytes_ + sums_bytes_);
    const Offsets offsets = OffsetsAt(output_dims_, output);
    const int64_t first_row = offsets.c / std::max<int64_t>(1, p_.c.row_stride);
    return {offsets, first_row, packed, packed + packed_bytes_};
  }
  char* WorkersOwn(char* scratch, int64_t worker) const {
    return scratch + matrices_bytes_ + worker * own_bytes();
  }

  void RunMatrix(const Matrix& matrix, char* scratch) const {
    const std::vector<int64_t> stages = Stages();
    for (size_t stage = 0; stage < stages.size(); ++stage) {
      for (int64_t job = 0; job < stages[stage]; ++job) RunJob(matrix, stage, job, scratch);
    }
  }

  void RunJob(const Matrix& matrix, size_t stage, int64_t job, char* scratch) const {
    const Phase phase = PhaseAt(static_cast<int64_t>(stage / 3));
    if (stage % 3 == 0) {
      PackPanels(matrix, phase, job, scratch);
    } else if (stage % 3 == 1) {
      RunTile(matrix, phase, job / phase.tile_jobs(), job % phase.tile_jobs(), scratch);
    } else {
      AddSlices(matrix, phase, job);
    }
  }

  int64_t OffsetOfA(const Matrix& matrix, const Phase& phase) const {
    return matrix.offsets.a + OffsetsAt(term_dims_, phase.term).a;
  }
  int64_t OffsetOfB(const Matrix& matrix, const Phase& phase) const {
    return matrix.offsets.b + OffsetsAt(term_dims_, phase.term).b;
  }

  // Blocks of k lie one behind the other, in a block panel after panel. All but the last block are
  // of whole steps.
  char* PackedAt(const Matrix& matrix, const Phase& phase, int64_t block, int64_t panel) const {
    const int64_t steps_before = kernels_.Steps(phase.blocks.Begin(block)) * phase.packed();
    const int64_t steps = kernels_.Steps(phase.blocks.Size(block)) * (panel - phase.first_packed);
    return At(matrix.packed, (steps_before + steps) * panel_step_bytes());
  }

  // Packs neighbouring strips or panels for a block of k, one behind the other; `offset` is where
  // the matrix begins. Where the rows of its memory lie across them, they are packed a few rows at
  // a time: then a row's memory is read once, in order, and not line by line for each of them.
  void PackPieces(PackLoop pack, const PackingView& view, int64_t offset, const Division& pieces,
                  int64_t begin, int64_t end, int64_t k_begin, int64_t k, int64_t step_bytes,
                  char* scratch, char* to) const {
    const int64_t rows = view.across() ? rows_at_a_time() : std::max<int64_t>(1, k);
    const int64_t pieces_of_patch = view.across() ? end - begin : 1;
    const int64_t piece_bytes = kernels_.Steps(k) * step_bytes;
    char* const memory = scratch + strips_bytes_ + tile_bytes_;
    for (int64_t l = 0; l < k; l += rows) {
      const uint8_t* const active = view.Active(offset, k_begin + l);
      // Rows of memory lie across here, so these are few.
      const Rows inactive = active ? FindInactive(active, std::min(rows, k - l)) : 0;
      for (int64_t first = begin; first < end; first += pieces_of_patch) {
        const int64_t last = first + pieces_of_patch;
        const int64_t count = std::min(pieces.extent, pieces.Begin(last)) - pieces.Begin(first);
        PackSource patch =
            view.Patch(offset, pieces.Begin(first), count, k_begin + l, std::min(rows, k - l),
                       p_.k - k_begin - l, memory, widest_piece());
        patch.inactive = inactive;
        for (int64_t piece = first; piece < last; ++piece) {
          PackSource part = patch;
          part.data = At(patch.data, (pieces.Begin(piece) - pieces.Begin(first)) * patch.stride *
                                         sizes_.storage);
          part.count = pieces.Size(piece);
          char* const packed = to + (piece - begin) * piece_bytes + kernels_.Steps(l) * step_bytes;
          pack(part, packed);
        }
      }
    }
  }

  void PackPanels(const Matrix& matrix, const Phase& phase, int64_t job, char* scratch) const {
    const int64_t block = job % phase.blocks.pieces;
    const int64_t panels = PanelsPerJob(phase);
    const int64_t first = phase.first_packed + job / phase.blocks.pieces * panels;
    PackPieces(kernels_.pack_panel, b_, OffsetOfB(matrix, phase), blocking_.panels, first,
               std::min(phase.end(), first + panels), phase.k_begin + phase.blocks.Begin(block),
               phase.blocks.Size(block), panel_step_bytes(), scratch,
               PackedAt(matrix, phase, block, first));
  }

  struct Sums {
    char* data;
    int64_t stride;
  };
  Sums SumsAt(const Matrix& matrix, const Phase& phase, int64_t slice, int64_t row,
              int64_t first_row, int64_t column, char* tile_sums) const {
    switch (sums_place_) {
      case SumsPlace::kC:
        return {At(c_, (matrix.offsets.c + row * p_.c.row_stride + column) * sizes_.real),
                p_.c.row_stride};
      case SumsPlace::kTile:
        return {At(tile_sums, (row - first_row) * sizes_.parts * tile_width() * sizes_.real),
                tile_width()};
      case SumsPlace::kMatrix:
        const int64_t range_begin = blocking_.panels.Begin(phase.first_panel);
        return {At(matrix.sums,
                   slice * slice_bytes() +
                       (row * sizes_.parts * range_width() + column - range_begin) * sizes_.real),
                range_width()};
    }
    __builtin_unreachable();
  }

  // A part of C that one thread computes.
  struct Tile {
    int64_t strip_begin;
    int64_t strip_end;
    int64_t panel_begin;
    int64_t panel_end;
  };

  Tile TileAt(const Phase& phase, int64_t job) const {
    const int64_t split = job - phase.whole_tiles;
    const int64_t index = split < 0 ? job : phase.whole_tiles + split / kPiecesOfSplitTile;
    const int64_t columns = CeilDiv(phase.panels, blocking_.panels_per_tile);
    Tile tile;
    tile.strip_begin = index / columns * blocking_.strips_per_tile;
    tile.strip_end =
        std::min(blocking_.strips.pieces, tile.strip_begin + blocking_.strips_per_tile);
    tile.panel_begin = phase.first_panel + index % columns * blocking_.panels_per_tile;
    tile.panel_end = std::min(phase.end(), tile.panel_begin + blocking_.panels_per_tile);
    if (split >= 0) {
      const int64_t panels = CeilDiv(tile.panel_end - tile.panel_begin, kPiecesOfSplitTile);
      tile.panel_begin += split % kPiecesOfSplitTile * panels;
      tile.panel_end = std::min(tile.panel_end, tile.panel_begin + panels);
    }
    return tile;
  }

  // Panels of a tile that the second cache holds while the tile's strips pass, in a block of k.
  struct Chunk {
    int64_t block;
    int64_t begin;
    int64_t end;
    const char* next;  // the packed chunk that follows it in the tile, or nullptr
  };

  Chunk ChunkAt(const Matrix& matrix, const Phase& phase, const Tile& tile, int64_t block,
                int64_t last_block, int64_t begin) const {
    Chunk chunk = {block, begin, std::min(tile.panel_end, begin + blocking_.panels_per_chunk),
                   nullptr};
    if (tile.panel_begin < phase.first_packed) return chunk;  // some are not packed
    if (chunk.end < tile.panel_end) {
      chunk.next = PackedAt(matrix, phase, block, chunk.end);
    } else if (block < last_block) {
      chunk.next = PackedAt(matrix, phase, block + 1, tile.panel_begin);
    }
    return chunk;
  }

  void RunTile(const Matrix& matrix, const Phase& phase, int64_t slice, int64_t job,
               char* scratch) const {
    const Tile tile = TileAt(phase, job);
    if (tile.panel_begin >= tile.panel_end) return;
    if (kernels_.begin != nullptr) kernels_.begin();
    const int64_t first_row = blocking_.strips.Begin(tile.strip_begin);
    const int64_t tile_column = blocking_.panels.Begin(tile.panel_begin);
    const int64_t a_begin = OffsetOfA(matrix, phase);
    const char* const a = At(a_.factor().data, a_begin * sizes_.storage);

    const int64_t first_block = phase.slices.Begin(slice);
    const int64_t last_block = first_block + phase.slices.Size(slice) - 1;
    for (int64_t block = first_block; block <= last_block; ++block) {
      const int64_t k = phase.blocks.Size(block);
      const int64_t k_begin = phase.k_begin + phase.blocks.Begin(block);
      MicroTile micro;
      micro.steps = kernels_.Steps(k);
      micro.alpha = alpha_;
      micro.adds = !phase.first || block > first_block;
      if (blocking_.reads_a_unpacked) {
        micro.a_stride = p_.a.row_stride;
        micro.a_step = p_.a.col_stride;
      } else {
        micro.a_stride = 1;
        micro.a_step = kernels_.strip_width;
        PackPieces(kernels_.pack_strip, a_, a_begin, blocking_.strips, tile.strip_begin,
                   tile.strip_end, k_begin, k, strip_step_bytes(), scratch, scratch);
      }
      for (int64_t begin = tile.panel_begin; begin < tile.panel_end;
           begin += blocking_.panels_per_chunk) {
        const Chunk chunk = ChunkAt(matrix, phase, tile, block, last_block, begin);
        const int64_t column = blocking_.panels.Begin(chunk.begin);
        const int64_t columns = std::min(p_.n, blocking_.panels.Begin(chunk.end)) - column;
        for (int64_t strip = tile.strip_begin; strip < tile.strip_end; ++strip) {
          const int64_t row = blocking_.strips.Begin(strip);
          const int64_t rows = blocking_.strips.Size(strip);
          Sums sums =
              SumsAt(matrix, phase, slice, row, first_row, tile_column, scratch + strips_bytes_);
          sums.data += (column - tile_column) * sizes_.real;
          micro.a =
              blocking_.reads_a_unpacked
                  ? At(a, (row * p_.a.row_stride + k_begin * p_.a.col_stride) * sizes_.storage)
                  : scratch + (strip - tile.strip_begin) * micro.steps * strip_step_bytes();
          micro.c_stride = sums.stride;
          micro.rows = rows * sizes_.parts;
          MultiplyStrip(matrix, phase, tile, chunk, strip, sums.data, &micro);
          if (phase.last && block == last_block && blocking_.slices.pieces == 1) {
            Finish(matrix, sums, row, rows, column, columns);
          }
        }
      }
    }
    if (kernels_.end != nullptr) kernels_.end();
  }

  // One of a tile's strips times the panels of a chunk.
  void MultiplyStrip(const Matrix& matrix, const Phase& phase, const Tile& tile, const Chunk& chunk,
                     int64_t strip, char* sums, MicroTile* micro) const {
    const int64_t b_begin = OffsetOfB(matrix, phase);
    const int64_t k_begin = phase.k_begin + phase.blocks.Begin(chunk.block);
    const char* const b =
        At(b_.factor().data, (b_begin + k_begin * p_.b.row_stride) * sizes_.storage);
    const uint8_t* const active = b_.Active(b_begin, k_begin);
    for (int64_t panel = chunk.begin; panel < chunk.end; ++panel) {
      const bool packed = panel >= phase.first_packed;
      micro->b = packed ? PackedAt(matrix, phase, chunk.block, panel)
                        : At(b, blocking_.panels.Begin(panel) * p_.b.col_stride * sizes_.storage);
      micro->b_stride = packed ? kernels_.panel_width : p_.b.row_stride;
      micro->b_active = packed ? nullptr : active;  // packed ones are zeros
      const int64_t row_bytes = micro->b_stride * kernels_.element_size;
      if (chunk.next == nullptr || strip == tile.strip_begin) {
        micro->ahead = At(micro->b, kStepsAhead * row_bytes);
        micro->ahead_step = row_bytes;
      } else {
        // Every strip but the first asks for its share of each of the next chunk's panels, so that
        // these come in time and slowly enough not to be waited for.
        const int64_t others = tile.strip_end - tile.strip_begin - 1;
        const int64_t other = strip - tile.strip_begin - 1;
        micro->ahead_step = row_bytes / others;
        micro->ahead = chunk.next + micro->steps * ((panel - chunk.begin) * row_bytes +
                                                    other * micro->ahead_step);
      }
      micro->c = sums + (panel - chunk.begin) * kernels_.panel_width * sizes_.real;
      micro->cols = blocking_.panels.Size(panel);
      const Reads reads = micro->a_stride != 1         ? Reads::kStridedA
                          : micro->b_active != nullptr ? Reads::kActiveB
                                                       : Reads::kAsPacked;
      kernels_.multiply[static_cast<int>(reads)][micro->rows - 1]
                       [(micro->cols - 1) / kernels_.lanes](*micro);
    }
  }

  // Adds the slices' sums of a strip to the first slice's.
  void AddSlices(const Matrix& matrix, const Phase& phase, int64_t strip) const {
    const int64_t row = blocking_.strips.Begin(strip);
    const int64_t rows = blocking_.strips.Size(strip);
    const int64_t column = blocking_.panels.Begin(phase.first_panel);
    const int64_t columns = std::min(p_.n, blocking_.panels.Begin(phase.end())) - column;
    const Sums sums = SumsAt(matrix, phase, 0, row, row, column, nullptr);
    VisitDType(dtype_, [&](auto traits) {
      using T = RealOf<typename decltype(traits)::Accumulator>;
      for (int64_t slice = 1; slice < blocking_.slices.pieces; ++slice) {
        const Sums more = SumsAt(matrix, phase, slice, row, row, column, nullptr);
        for (int64_t i = 0; i < rows * sizes_.parts; ++i) {
          T* const to = reinterpret_cast<T*>(sums.data) + i * sums.stride;
          const T* const from = reinterpret_cast<const T*>(more.data) + i * more.stride;
          for (int64_t j = 0; j < columns; ++j) to[j] += from[j];
        }
      }
    });
    Finish(matrix, sums, row, rows, column, columns);
  }

  // The epilogue, on sums that the first cache still holds.
  void Finish(const Matrix& matrix, const Sums& sums, int64_t row, int64_t rows, int64_t column,
              int64_t columns) const {
    if (sums_place_ != SumsPlace::kC || !epilogue_.keeps_sums()) {
      WriteOut(matrix, sums, row, rows, column, columns);
    }
    if (epilogue_.active == nullptr) return;
    const int64_t first = matrix.offsets.c + row * p_.c.row_stride;
    ForEachBit(FindInactive(epilogue_.active + matrix.first_row + row, rows), [&](int64_t i) {
      std::memset(At(c_, (first + i * p_.c.row_stride + column) * sizes_.storage), 0,
                  columns * sizes_.storage);
    });
  }

  void WriteOut(const Matrix& matrix, const Sums& sums, int64_t row, int64_t rows, int64_t column,
                int64_t columns) const {
    const auto at = [&](const void* data, int64_t element) {
      return data == nullptr ? nullptr : const_cast<char*>(At(data, element * sizes_.storage));
    };
    if (p_.c.by_list()) {
      Scatter(matrix, sums, row, rows, column, columns);
      return;
    }
    const int64_t c = matrix.offsets.c + row * p_.c.row_stride + column;
    epilogue_loop_(sums.data, sums.stride, at(epilogue_.bias, column), at(epilogue_.z, c),
                   at(c_, c), rows, columns, p_.c.row_stride);
  }

  // The epilogue where C's rows or columns are those of a list; it has no bias and no z there.
  void Scatter(const Matrix& matrix, const Sums& sums, int64_t row, int64_t rows, int64_t column,
               int64_t columns) const {
    VisitDType(dtype_, [&](auto traits) {
      using Storage = typename decltype(traits)::Storage;
      constexpr int64_t kColumns = 256;
      Storage finished[kColumns];
      for (int64_t i = row; i < row + rows; ++i) {
        const int64_t place = p_.c.rows != nullptr ? p_.c.rows[i] : i * p_.c.row_stride;
        Storage* const to = static_cast<Storage*>(c_) + matrix.offsets.c + place;
        char* const from = sums.data + (i - row) * sizes_.parts * sums.stride * sizes_.real;
        if (p_.c.cols == nullptr) {
          epilogue_loop_(from, sums.stride, nullptr, nullptr, to + column, 1, columns, 0);
          continue;
        }
        for (int64_t j = 0; j < columns; j += kColumns) {
          const int64_t count = std::min(kColumns, columns - j);
          epilogue_loop_(from + j * sizes_.real, sums.stride, nullptr, nullptr, finished, 1, count,
                         0);
          for (int64_t e = 0; e < count; ++e) to[p_.c.cols[column + j + e]] = finished[e];
        }
      }
    });
  }

  const DType dtype_;
  const GemmKernels& kernels_;
  const ElementSizes sizes_;
  const EpilogueLoop epilogue_loop_;
  Product p_;
  std::vector<BatchDim> output_dims_;
  std::vector<BatchDim> term_dims_;
  int64_t terms_;
  const double alpha_;
  const PackingView a_;
  const PackingView b_;
  void* const c_;
  const Epilogue epilogue_;
  bool whole_matrices_;
  int64_t workers_;  // on each C
  Blocking blocking_;
  SumsPlace sums_place_;

  int64_t packed_bytes_ = 0;
  int64_t sums_bytes_ = 0;
  int64_t strips_bytes_ = 0;
  int64_t tile_bytes_ = 0;
  int64_t patch_bytes_ = 0;
  int64_t matrices_bytes_ = 0;
  int64_t scratch_bytes_ = 0;
};

}  // namespace

bool ComputesAsItPacks(DType dtype, const Product& product, bool first, const Work& work) {
  if (product.c.col_stride != 1) {
    return ComputesAsItPacks(dtype, Transposed(product), !first, work);
  }
  if (product.outputs() == 0) return true;
  const PackingView view(dtype, {}, first ? product.a : product.b, first);
  if (view.gathers_elements()) return false;
  // The second factor is packed once, the first one for every column of tiles.
  if (!first) return true;
  // Patches that lie across strips end where tiles do, which the number of threads decides, and
  // elements behind the last whole vector may differ in the last digit from those before it.
  if (view.across()) return false;
  const Blocking blocking =
      ChooseBlocking(GetTarget().gemm->of[static_cast<int>(dtype)], SizesOf(dtype), product, {}, {},
                     WorkersPerMatrix(product, IsComplex(dtype), work.workers()));
  return blocking.ranges.pieces * CeilDiv(blocking.ranges.size, blocking.panels_per_tile) <=
         kMostTimesComputed;
}

namespace {

bool IsEmpty(const Product& product) {
  return product.m == 0 || product.n == 0 || product.outputs() == 0;
}

// With C's rows one behind the other, as the micro-kernel writes them.
BatchedProduct MakeProduct(DType dtype, const Product& product, double alpha, const Factor& a,
                           const Factor& b, void* c, const Epilogue& epilogue, int64_t workers) {
  if (product.c.col_stride == 1) {
    return BatchedProduct(dtype, product, alpha, a, b, c, epilogue, workers);
  }
  return BatchedProduct(dtype, Transposed(product), alpha, b, a, c, epilogue, workers);
}

}  // namespace

void AddProduct(DType dtype, const Product& product, double alpha, const Factor& a, const Factor& b,
                void* c, const Epilogue& epilogue, Work* work) {
  if (IsEmpty(product)) return;
  BatchedProduct::Add(std::make_shared<const BatchedProduct>(
                          MakeProduct(dtype, product, alpha, a, b, c, epilogue, work->workers())),
                      work);
}

void AddProducts(DType dtype, const std::vector<Product>& products, double alpha, const Factor& a,
                 const Factor& b, void* c, const Epilogue& epilogue, Work* work) {
  if (static_cast<int64_t>(products.size()) < 2 * work->workers()) {
    for (const Product& product : products) {
      AddProduct(dtype, product, alpha, a, b, c, epilogue, work);
    }
    return;
  }
  std::vector<BatchedProduct> parts;
  for (const Product& product : products) {
    if (IsEmpty(product)) continue;
    parts.push_back(MakeProduct(dtype, product, alpha, a, b, c, epilogue, /*workers=*/1));
  }
  BatchedProduct::AddEachByOneThread(std::move(parts), work);
}

}  // namespace stopgrad::cpu
