#ifndef STOPGRAD_CPU_TILES_H_
#define STOPGRAD_CPU_TILES_H_

// bfloat16 by the processor's tiles, which are 16 rows of 64 bytes each: 16 x 16 sums, or 16 rows
// of A times 32 of k, or 16 pairs along k times 16 columns of B. Of the eight tiles, four hold 32 x
// 32 sums, so that four multiplications go with four loads, of two tiles of A and two of B.
//
// A panel is packed as for the other instructions: either half of its rows is what a tile of B
// wants. A strip is packed tile after tile, for every 32 of k the upper 16 rows and the lower ones.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/gemm_kernels.h"
#include "cpu/packing.h"
#include "cpu/vectors.h"

namespace stopgrad::cpu {

namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row
constexpr int kTileColumns = kTileBytes / sizeof(float);
constexpr int kTileK = kTileBytes / sizeof(BFloat16);
constexpr int kStripOfTiles = 2 * kTileRows;

// As the instruction wants it.
struct alignas(64) TileConfiguration {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

constexpr TileConfiguration MakeTileConfiguration() {
  TileConfiguration configuration;
  for (int tile = 0; tile < 8; ++tile) {
    configuration.row_bytes[tile] = kTileBytes;
    configuration.rows[tile] = kTileRows;
  }
  return configuration;
}

void BeginTiles() {
  // Not on the stack: to GCC 12, the instruction reads its first 8 bytes only.
  static constexpr TileConfiguration kConfiguration = MakeTileConfiguration();
  _tile_loadconfig(&kConfiguration);
}

void EndTiles() { _tile_release(); }

// The first `count` bits, of at most 32.
uint32_t FirstBits(int64_t count) {
  return count <= 0 ? 0 : count >= 32 ? ~uint32_t{0} : (uint32_t{1} << count) - 1;
}

// Packs a tile, whose first row is the strip's `row` and whose k begins at `l`, with zeros beyond
// the strip's and k's end. Rows that are not active lie across strips, never along them.
void PackTileAlong(const PackSource& source, int64_t row, int64_t l, char* to) {
  const auto* from = static_cast<const BFloat16*>(source.data) + l;
  const __mmask32 lanes = FirstBits(source.k - l);
  for (int i = 0; i < kTileRows; ++i) {
    const __m512i elements = row + i < source.count
                                 ? _mm512_maskz_loadu_epi16(lanes, from + (row + i) * source.stride)
                                 : _mm512_setzero_si512();
    _mm512_storeu_si512(to + i * kTileBytes, elements);
  }
}

// The same where the rows of memory lie across the strip. There are at most 32, where some may be
// not active.
void PackTileAcross(const PackSource& source, int64_t row, int64_t l, char* to) {
  const auto* from = static_cast<const BFloat16*>(source.data) + row;
  const auto lanes = static_cast<__mmask16>(FirstBits(source.count - row));
  const auto read = [&](int64_t at) {
    const bool is_zero = at >= source.k || (source.inactive != 0 && (source.inactive >> at & 1));
    const BFloat16* const row_of_memory = from + (is_zero ? 0 : at) * source.k_stride;
    const __m256i elements = _mm256_maskz_loadu_epi16(is_zero ? 0 : lanes, row_of_memory);
    // All lanes; without a mask, GCC warns of what its own header does.
    return (Vector<uint32_t>)_mm512_maskz_cvtepu16_epi32(0xffff, elements);
  };
  Vector<uint32_t> pairs[kTileRows];
  for (int i = 0; i < kTileRows; ++i) pairs[i] = read(l + 2 * i) | read(l + 2 * i + 1) << 16;
  Transpose<uint32_t>(pairs);
  std::memcpy(to, pairs, sizeof pairs);
}

void PackStripForTiles(const PackSource& source, void* packed) {
  const auto pack = source.stride == 1 ? PackTileAcross : PackTileAlong;
  char* to = static_cast<char*>(packed);
  for (int64_t l = 0; l < source.k; l += kTileK) {
    for (int row = 0; row < kStripOfTiles; row += kTileRows) {
      pack(source, row, l, to);
      to += kTileRows * kTileBytes;
    }
  }
}

void PackPanelForTiles(const PackSource& source, void* packed) {
  constexpr int kWidth = VectorOf<uint32_t>::kPanelWidth;
  Pack<PairsOfBFloat16, BFloat16, kWidth>(source, packed);
  constexpr int64_t kDepth = PairsOfBFloat16::kDepth;
  const int64_t steps = (source.k + kDepth - 1) / kDepth;
  const int64_t whole = (source.k + kTileK - 1) / kTileK * kTileK / kDepth;
  std::memset(static_cast<uint32_t*>(packed) + steps * kWidth, 0,
              (whole - steps) * kWidth * sizeof(uint32_t));
}

// The sums of 16 `down` rows and 16 `right` columns are in the tiles 0 to 3: 1 and 3 are on the
// right, 2 and 3 below. The instructions have a tile's number in them, and GCC 11.1 forgets the
// parentheses of a macro's argument.
template <int down, int right>
[[gnu::always_inline]] inline void ZeroSums() {
  _tile_zero(0);
  if constexpr (right > 1) _tile_zero(1);
  if constexpr (down > 1) _tile_zero(2);
  if constexpr (down > 1 && right > 1) _tile_zero(3);
}

template <int down, int right>
[[gnu::always_inline]] inline void LoadSums(const float* c, int64_t stride) {
  const int64_t row_bytes = stride * sizeof(float);
  const float* const below = c + kTileRows * stride;
  _tile_loadd(0, c, row_bytes);
  if constexpr (right > 1) _tile_loadd(1, (c + kTileColumns), row_bytes);
  if constexpr (down > 1) _tile_loadd(2, below, row_bytes);
  if constexpr (down > 1 && right > 1) _tile_loadd(3, (below + kTileColumns), row_bytes);
}

template <int down, int right>
[[gnu::always_inline]] inline void StoreSums(float* c, int64_t stride) {
  const int64_t row_bytes = stride * sizeof(float);
  float* const below = c + kTileRows * stride;
  _tile_stored(0, c, row_bytes);
  if constexpr (right > 1) _tile_stored(1, (c + kTileColumns), row_bytes);
  if constexpr (down > 1) _tile_stored(2, below, row_bytes);
  if constexpr (down > 1 && right > 1) _tile_stored(3, (below + kTileColumns), row_bytes);
}

template <int down, int right>
void MultiplyTiles(const MicroTile& tile) {
  constexpr int kSumRows = down * kTileRows;
  constexpr int kSumColumns = right * kTileColumns;
  constexpr int64_t kRowBytesOfB = VectorOf<uint32_t>::kPanelWidth * sizeof(uint32_t);
  constexpr int64_t kPairs = kTileK / PairsOfBFloat16::kDepth;
  const auto alpha = static_cast<float>(tile.alpha);
  auto* const c = static_cast<float*>(tile.c);
  // Then the tiles go on with what is in C. Other sums begin at 0 in every block of k and are added
  // to C, so an element at C's edge may differ in float32's last digits from one inside.
  const bool fits_c = alpha == 1 && tile.rows == kSumRows && tile.cols == kSumColumns;
  if (fits_c && tile.adds) {
    LoadSums<down, right>(c, tile.c_stride);
  } else {
    ZeroSums<down, right>();
  }
  const char* a = static_cast<const char*>(tile.a);
  const char* b = static_cast<const char*>(tile.b);
  for (int64_t step = 0; step < tile.steps; step += kPairs) {
    _tile_loadd(4, a, kTileBytes);
    _tile_loadd(6, b, kRowBytesOfB);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (right > 1) {
      _tile_loadd(7, (b + kTileBytes), kRowBytesOfB);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (down > 1) {
      _tile_loadd(5, (a + kTileRows * kTileBytes), kTileBytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (right > 1) _tile_dpbf16ps(3, 5, 7);
    }
    a += kStripOfTiles * kTileBytes;
    b += kPairs * kRowBytesOfB;
  }
  if (fits_c) {
    StoreSums<down, right>(c, tile.c_stride);
    return;
  }
  alignas(64) float sums[kSumRows][kSumColumns];
  StoreSums<down, right>(sums[0], kSumColumns);
  for (int64_t i = 0; i < tile.rows; ++i) {
    for (int j = 0; j < kSumColumns; j += kTileColumns) {
      float* const to = c + i * tile.c_stride + j;
      const auto lanes = static_cast<__mmask16>(FirstBits(tile.cols - j));
      __m512 sum = (__m512)(alpha * LoadVector(&sums[i][j]));
      if (tile.adds) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, to));
      _mm512_mask_storeu_ps(to, lanes, sum);
    }
  }
}

template <int down, size_t... rows>
constexpr void FillTileRows(GemmKernels* kernels, std::index_sequence<rows...>) {
  auto& multiply = kernels->multiply[static_cast<int>(Reads::kAsPacked)];
  ((multiply[(down - 1) * kTileRows + rows][0] = MultiplyTiles<down, 1>), ...);
  ((multiply[(down - 1) * kTileRows + rows][1] = MultiplyTiles<down, 2>), ...);
}

constexpr GemmKernels MakeTileKernels() {
  using V = VectorOf<uint32_t>;
  GemmKernels kernels = {};
  kernels.rows = kStripOfTiles;
  kernels.row_step = kTileRows;
  kernels.lanes = V::kLanes;
  kernels.strip_width = kStripOfTiles;
  kernels.panel_width = V::kPanelWidth;
  kernels.element_size = sizeof(uint32_t);
  kernels.k_step = kTileK;
  kernels.steps_of_two_k = 1;
  kernels.pack_strip = PackStripForTiles;
  kernels.pack_panel = PackPanelForTiles;
  kernels.begin = BeginTiles;
  kernels.end = EndTiles;
  FillTileRows<1>(&kernels, std::make_index_sequence<kTileRows>());
  FillTileRows<2>(&kernels, std::make_index_sequence<kTileRows>());
  return kernels;
}

}  // namespace

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_TILES_H_
