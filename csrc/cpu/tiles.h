#ifndef STOPGRAD_CPU_TILES_H_
#define STOPGRAD_CPU_TILES_H_

// bfloat16 and half by the processor's tiles, which are 16 rows of 64 bytes each: 16 x 16 sums, or
// 16 rows of A times 32 of k, or 16 pairs along k times 16 columns of B. Of the eight tiles, four
// hold 32 x 32 sums, so that four multiplications go with four loads, of two tiles of A and two of
// B.
//
// A strip is packed tile after tile, for every 32 of k the upper 16 rows and the lower ones. In a
// panel the two tiles lie side by side: a row of it is one of either.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
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
constexpr int kPartBytes = kStripOfTiles * kTileBytes;  // of a strip or panel, 32 of k

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

__m512i Both(__m256i lower, __m256i upper) {
  return _mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(lower), upper, 1);
}

enum class Piece { kStrip, kPanel };

// How tiles of bfloat16 make products of a dtype's numbers, of which each is the sum of `kParts`
// parts: for every 32 of k, the tiles of one part lie behind those of the other.
struct PlainTiles {
  using Stored = BFloat16;
  static constexpr int kParts = 1;

  // The parts of 32 numbers.
  static void Split(__m512i numbers, __m512i* parts) { parts[0] = numbers; }
};

// The upper 8 bits of a half's significand and the lower 3. Where those are 0, the smallest number
// that the instruction does not take for 0, 2^-126, stands for them with the number's sign: its
// product with an infinite number is infinite, and not NaN. In other sums it vanishes, but for
// those whose terms cancel, which may become -0.
struct TilesOfHalf {
  using Stored = Half;
  static constexpr int kParts = 2;

  static void Split(__m512i numbers, __m512i* parts) {
    __m256i high[2], low[2];
    for (int i = 0; i < 2; ++i) {
      const __m256i half = i == 0 ? _mm512_castsi512_si256(numbers)
                                  : _mm512_maskz_extracti64x4_epi64(15, numbers, 1);
      const __m512 number = _mm512_maskz_cvtph_ps(0xffff, half);
      const auto bits = (Vector<uint32_t>)number;
      const auto upper = bits & 0xffff0000;
      const auto tiny = (bits & 0x80000000) | 0x00800000;
      const __mmask16 is_whole = _mm512_cmp_ps_mask(number, (__m512)upper, _CMP_EQ_OQ);
      // What is 0 has no such part: sums of it are 0, without a sign.
      const __mmask16 is_not_zero =
          _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(0x7fffffff));
      const __m512 rest = _mm512_maskz_sub_ps(~is_whole, number, (__m512)upper);
      const __m512 lower = _mm512_mask_mov_ps(rest, is_whole & is_not_zero, (__m512)tiny);
      high[i] = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)(upper >> 16));
      low[i] = _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)((Vector<uint32_t>)lower >> 16));
    }
    parts[0] = Both(high[0], high[1]);
    parts[1] = Both(low[0], low[1]);
  }
};

// Packs 16 of a strip's rows or of a panel's columns, from the first one on, for the 32 of k that
// begin at `l`, with zeros beyond the piece's and k's end.
template <typename Tiles, Piece piece>
void PackTile(const PackSource& source, int64_t first, int64_t l, char* to) {
  constexpr int kParts = Tiles::kParts;
  const auto* const from = static_cast<const typename Tiles::Stored*>(source.data);
  const bool across = source.stride == 1;  // the rows of memory lie across the piece
  // Of pairs along k; a row is one of memory, or two next to each other.
  Vector<uint32_t> pairs[kParts][kTileRows];
  if (across) {
    const auto lanes = static_cast<__mmask16>(FirstBits(source.count - first));
    const auto read = [&](int64_t at) {
      // There are at most 32, where some may be not active.
      const bool is_zero = at >= source.k || (source.inactive != 0 && (source.inactive >> at & 1));
      const auto* const row = from + first + (is_zero ? 0 : at) * source.k_stride;
      return _mm256_maskz_loadu_epi16(is_zero ? 0 : lanes, row);
    };
    for (int i = 0; i < kTileRows; ++i) {
      __m512i parts[kParts];
      Tiles::Split(Both(read(l + 2 * i), read(l + 2 * i + 1)), parts);
      for (int part = 0; part < kParts; ++part) {
        // All lanes; without a mask, GCC warns of what its own header does.
        const auto wide = [](__m256i half) {
          return (Vector<uint32_t>)_mm512_maskz_cvtepu16_epi32(0xffff, half);
        };
        pairs[part][i] = wide(_mm512_castsi512_si256(parts[part])) |
                         wide(_mm512_maskz_extracti64x4_epi64(15, parts[part], 1)) << 16;
      }
    }
  } else {
    const __mmask32 lanes = FirstBits(source.k - l);
    for (int i = 0; i < kTileRows; ++i) {
      const bool is_zero = first + i >= source.count;
      const auto* const row = from + l + (is_zero ? 0 : first + i) * source.stride;
      __m512i parts[kParts];
      Tiles::Split(_mm512_maskz_loadu_epi16(is_zero ? 0 : lanes, row), parts);
      for (int part = 0; part < kParts; ++part) pairs[part][i] = (Vector<uint32_t>)parts[part];
    }
  }
  constexpr int64_t kRowBytes = piece == Piece::kStrip ? kTileBytes : 2 * kTileBytes;
  for (int part = 0; part < kParts; ++part) {
    if (across == (piece == Piece::kStrip)) Transpose<uint32_t>(pairs[part]);
    for (int i = 0; i < kTileRows; ++i) {
      StoreVector<uint32_t>(pairs[part][i],
                            reinterpret_cast<uint32_t*>(to + part * kPartBytes + i * kRowBytes));
    }
  }
}

template <typename Tiles, Piece piece>
void PackForTiles(const PackSource& source, void* packed) {
  constexpr int64_t kSecond = piece == Piece::kStrip ? kTileRows * kTileBytes : kTileBytes;
  char* to = static_cast<char*>(packed);
  for (int64_t l = 0; l < source.k; l += kTileK, to += Tiles::kParts * kPartBytes) {
    PackTile<Tiles, piece>(source, 0, l, to);
    PackTile<Tiles, piece>(source, kTileRows, l, to + kSecond);
  }
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

// Of one part: tiles 4 and 5 are of A, 6 and 7 of B.
template <int down>
[[gnu::always_inline]] inline void LoadA(const char* a) {
  _tile_loadd(4, a, kTileBytes);
  if constexpr (down > 1) _tile_loadd(5, (a + kTileRows * kTileBytes), kTileBytes);
}

template <int right>
[[gnu::always_inline]] inline void LoadB(const char* b) {
  _tile_loadd(6, b, 2 * kTileBytes);
  if constexpr (right > 1) _tile_loadd(7, (b + kTileBytes), 2 * kTileBytes);
}

template <int down, int right>
[[gnu::always_inline]] inline void MultiplyAddTiles() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (right > 1) _tile_dpbf16ps(1, 4, 7);
  if constexpr (down > 1) _tile_dpbf16ps(2, 5, 6);
  if constexpr (down > 1 && right > 1) _tile_dpbf16ps(3, 5, 7);
}

template <typename Tiles, int down, int right>
void MultiplyTiles(const MicroTile& tile) {
  constexpr int kSumRows = down * kTileRows;
  constexpr int kSumColumns = right * kTileColumns;
  constexpr int64_t kPairs = kTileK / 2;
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
  constexpr int kParts = Tiles::kParts;
  for (int64_t step = 0; step < tile.steps; step += kPairs * kParts) {
    LoadA<down>(a);
    LoadB<right>(b);
    MultiplyAddTiles<down, right>();
    if constexpr (kParts == 2) {
      LoadB<right>(b + kPartBytes);
      MultiplyAddTiles<down, right>();
      LoadA<down>(a + kPartBytes);
      MultiplyAddTiles<down, right>();
      LoadB<right>(b);
      MultiplyAddTiles<down, right>();
    }
    a += kParts * kPartBytes;
    b += kParts * kPartBytes;
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

template <typename Tiles, int down, size_t... rows>
constexpr void FillTileRows(GemmKernels* kernels, std::index_sequence<rows...>) {
  auto& multiply = kernels->multiply[static_cast<int>(Reads::kAsPacked)];
  ((multiply[(down - 1) * kTileRows + rows][0] = MultiplyTiles<Tiles, down, 1>), ...);
  ((multiply[(down - 1) * kTileRows + rows][1] = MultiplyTiles<Tiles, down, 2>), ...);
}

template <typename Tiles>
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
  kernels.steps_of_two_k = Tiles::kParts;
  kernels.pack_strip = PackForTiles<Tiles, Piece::kStrip>;
  kernels.pack_panel = PackForTiles<Tiles, Piece::kPanel>;
  kernels.begin = BeginTiles;
  kernels.end = EndTiles;
  FillTileRows<Tiles, 1>(&kernels, std::make_index_sequence<kTileRows>());
  FillTileRows<Tiles, 2>(&kernels, std::make_index_sequence<kTileRows>());
  return kernels;
}

}  // namespace

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_TILES_H_
