// The kernels of gemm_kernels.h, written once and compiled once for each instruction set.
#include <complex>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "core/dtype.h"
#include "cpu/gemm_kernels.h"
#include "cpu/storage.h"

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

#ifdef __F16C__
inline Vector<float> WidenHalf(const Half* from) {
#ifdef __AVX512F__
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  // All lanes; without a mask, GCC warns of what its own header does.
  return (Vector<float>)_mm512_maskz_cvtph_ps(0xffff, half);
#else
  return (Vector<float>)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
}
#endif

// What is packed and how it is multiplied, for each way there is of doing that: a row of a packed
// piece holds `Packed` numbers, each made of kDepth elements along k.
template <typename Storage, typename T>
struct OneByOne {
  using Stored = Storage;
  using Packed = T;
  using Sum = T;
  static constexpr int kDepth = 1;

  // That of `left` elements along k.
  static T Pack(const Storage* from, int64_t /*k_stride*/, int64_t /*left*/) { return Load(*from); }
  // Those of neighbours across k, one element apart. 16-bit types are widened: the loop is short
  // enough for the compiler to make it vector code.
  static Vector<T> PackAcross(const Storage* from, int64_t /*k_stride*/) {
    if constexpr (std::is_same_v<Storage, T>) {
      return LoadVector(from);
#ifdef __F16C__
    } else if constexpr (std::is_same_v<Storage, Half>) {
      return WidenHalf(from);
#endif
    } else {
      T wide[VectorOf<T>::kLanes];
      for (int i = 0; i < VectorOf<T>::kLanes; ++i) wide[i] = Load(from[i]);
      return LoadVector(wide);
    }
  }
  // Those of neighbours along k, one element apart.
  static Vector<T> PackAlong(const Storage* from) { return PackAcross(from, 1); }
  // With a zero for its l-th element.
  static T Without(T /*packed*/, int /*l*/) { return T(0); }

  static void MultiplyAdd(T a, const Vector<T>& b, Vector<T>* sum) { *sum += a * b; }
};

#ifdef __AVX512BF16__
struct PairsOfBFloat16 {
  using Stored = BFloat16;
  using Packed = uint32_t;
  using Sum = float;
  static constexpr int kDepth = 2;

  static uint32_t Pair(BFloat16 first, BFloat16 second) {
    return first.bits | static_cast<uint32_t>(second.bits) << 16;
  }
  static uint32_t Pack(const BFloat16* from, int64_t k_stride, int64_t left) {
    return Pair(from[0], left > 1 ? from[k_stride] : BFloat16{0});
  }
  static Vector<uint32_t> PackAcross(const BFloat16* from, int64_t k_stride) {
    uint32_t pairs[VectorOf<uint32_t>::kLanes];
    for (int i = 0; i < VectorOf<uint32_t>::kLanes; ++i) {
      pairs[i] = Pair(from[i], from[k_stride + i]);
    }
    return LoadVector(pairs);
  }
  static Vector<uint32_t> PackAlong(const BFloat16* from) {
    Vector<uint32_t> pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    return pairs;
  }
  static uint32_t Without(uint32_t pair, int l) { return pair & (l == 0 ? 0xffff0000 : 0xffff); }

  static void MultiplyAdd(uint32_t a, const Vector<uint32_t>& b, Vector<float>* sum) {
    const Vector<uint32_t> pair = a - Vector<uint32_t>{};  // in every lane
    *sum = (Vector<float>)_mm512_dpbf16_ps((__m512)*sum, (__m512bh)pair, (__m512bh)b);
  }
};
#endif

// Copies fewer than 2 `most` elements, in pieces of a power of two: a loop would become a call of
// memcpy, which costs more than a short row.
template <typename T, int most>
[[gnu::always_inline]] inline void CopyFew(const T* from, int64_t count, T* to) {
  if (count & most) {
    std::memcpy(to, from, most * sizeof(T));
    from += most;
    to += most;
  }
  if constexpr (most > 1) CopyFew<T, most / 2>(from, count, to);
}

// `row`, or zeros in its place. Rows that are not active may come at random, so this is no branch.
template <typename T, int count>
const T* IfActive(uint8_t active, const T* row) {
  static constexpr T kZeros[count] = {};
  const auto zeros = reinterpret_cast<uintptr_t>(kZeros);
  const uintptr_t distance = reinterpret_cast<uintptr_t>(row) - zeros;
  return reinterpret_cast<const T*>(zeros + (distance & -static_cast<uintptr_t>(active)));
}

// So many steps before they are multiplied, rows of B are asked for, into the first cache and into
// the second one. What the processor fetches ahead by itself comes too late: on a Xeon with
// AVX-512, products from 512x1024x1024 up were 8 to 11 % slower without the first, and as fast with
// 12 steps to 32; the second gave up to 4 % more. Where they lie in their matrix, rows are often so
// far apart that all share a few places in the first cache, which many of them would push out of
// it.
struct StepsAhead {
  int64_t first_cache;
  int64_t second_cache;
};
constexpr StepsAhead kAheadPacked = {16, 64};
constexpr StepsAhead kAheadInMatrix = {4, 32};

// Asks for a row of so many bytes. With locality 3 it goes into the first cache, with 2 into the
// second one.
template <int bytes, int locality = 3>
[[gnu::always_inline]] inline void Prefetch(const void* row) {
  constexpr int kLineBytes = 64;
#pragma GCC unroll 2
  for (int at = 0; at < bytes; at += kLineBytes) {
    __builtin_prefetch(static_cast<const char*>(row) + at, /*rw=*/0, locality);
  }
}

template <typename Arithmetic, int rows, int vectors, Reads reads>
void Multiply(const MicroTile& tile) {
  using T = typename Arithmetic::Sum;
  using Packed = typename Arithmetic::Packed;
  constexpr int kLanes = VectorOf<T>::kLanes;
  constexpr int kRowBytes = vectors * kVectorBytes;
  T* const c = static_cast<T*>(tile.c);
  // C comes while the products are computed: its rows may be pages apart.
#pragma GCC unroll 14
  for (int i = 0; i < rows; ++i) Prefetch<kRowBytes>(c + i * tile.c_stride);
  Vector<T> sums[rows][vectors] = {};
  const auto* a = static_cast<const Packed*>(tile.a);
  const auto* b = static_cast<const Packed*>(tile.b);
  const bool lies_packed = tile.b_stride == VectorOf<Packed>::kPanelWidth;
  const StepsAhead ahead = lies_packed ? kAheadPacked : kAheadInMatrix;
  const int64_t to_first_cache = ahead.first_cache * tile.b_stride;
  const int64_t to_second_cache = ahead.second_cache * tile.b_stride;
  for (int64_t step = 0; step < tile.steps; ++step) {
    const Packed* row = b;
    if constexpr (reads == Reads::kActiveB) {
      row = IfActive<Packed, vectors * kLanes>(tile.b_active[step], b);
    }
    Prefetch<kRowBytes>(b + to_first_cache);
    Prefetch<kRowBytes, 2>(b + to_second_cache);
    Vector<Packed> b_row[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) b_row[v] = LoadVector(row + v * kLanes);
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        Arithmetic::MultiplyAdd(a[reads == Reads::kStridedA ? i * tile.a_stride : i], b_row[v],
                                &sums[i][v]);
      }
    }
    a += tile.a_step;
    b += tile.b_stride;
  }
  const T alpha = static_cast<T>(tile.alpha);
  if (tile.cols == vectors * kLanes) {
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        T* const to = c + i * tile.c_stride + v * kLanes;
        const Vector<T> product = alpha * sums[i][v];
        StoreVector<T>(tile.adds ? LoadVector(to) + product : product, to);
      }
    }
  } else {
    constexpr int kWidth = vectors * kLanes;
    static_assert((kWidth & (kWidth - 1)) == 0, "CopyFew halves it");
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
      T* const to = c + i * tile.c_stride;
      T row[kWidth];  // what is in it beyond `cols` stays there
      if (tile.adds) CopyFew<T, kWidth / 2>(to, tile.cols, row);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const Vector<T> product = alpha * sums[i][v];
        T* const part = row + v * kLanes;
        StoreVector<T>(tile.adds ? LoadVector(part) + product : product, part);
      }
      CopyFew<T, kWidth / 2>(row, tile.cols, to);
    }
  }
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

// Calls function(l) for every l of a PackSource that is not active.
template <typename Function>
void ForEachInactive(uint32_t inactive, Function&& function) {
  for (; inactive != 0; inactive &= inactive - 1) function(__builtin_ctz(inactive));
}

template <typename Arithmetic, typename Storage, int width>
void Pack(const PackSource& source, void* packed) {
  using Packed = typename Arithmetic::Packed;
  constexpr int kLanes = VectorOf<Packed>::kLanes;
  constexpr int kDepth = Arithmetic::kDepth;
  const auto* from = static_cast<const Storage*>(source.data);
  auto* to = static_cast<Packed*>(packed);
  const int64_t step_stride = kDepth * source.k_stride;

  int64_t whole = 0;  // steps packed in whole vectors
  if (source.stride == 1) {
    // Where the piece is narrower, vectors end in the matrix's next rows.
    const int64_t beyond = width - source.count;
    const int64_t rows_beyond = (beyond + source.k_stride - 1) / source.k_stride;
    const int64_t left = source.k_left - rows_beyond;
    whole = left <= 0 ? 0 : (left < source.k ? left : source.k) / kDepth;
    for (int64_t step = 0; step < whole; ++step) {
#pragma GCC unroll 16
      for (int i = 0; i < width; i += kLanes) {
        StoreVector<Packed>(Arithmetic::PackAcross(from + step * step_stride + i, source.k_stride),
                            to + step * width + i);
      }
    }
  } else if (source.k_stride == 1) {
    whole = source.k / (kLanes * kDepth) * kLanes;
    for (int64_t step = 0; step < whole; step += kLanes) {
      for (int first = 0; first < width; first += kLanes) {
        Vector<Packed> rows[kLanes] = {};
        const Storage* row = from + first * source.stride + step * kDepth;
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i, row += source.stride) {
          if (first + i < source.count) rows[i] = Arithmetic::PackAlong(row);
        }
        Transpose<Packed>(rows);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          StoreVector<Packed>(rows[i], to + (step + i) * width + first);
        }
      }
    }
  }
  for (int64_t step = whole; step * kDepth < source.k; ++step) {
    for (int i = 0; i < width; ++i) {
      to[step * width + i] = i < source.count
                                 ? Arithmetic::Pack(from + i * source.stride + step * step_stride,
                                                    source.k_stride, source.k - step * kDepth)
                                 : Packed(0);
    }
  }
  ForEachInactive(source.inactive, [&](int l) {
    Packed* const row = to + l / kDepth * width;
    for (int i = 0; i < width; ++i) row[i] = Arithmetic::Without(row[i], l % kDepth);
  });
}

template <typename T>
std::complex<T> LoadComplex(const PackSource& source, int64_t i, int64_t l) {
  const auto* from = static_cast<const std::complex<T>*>(source.data);
  const std::complex<T> value = from[i * source.stride + l * source.k_stride];
  return source.conjugate ? std::conj(value) : value;
}

template <int width, typename T>
void ZeroComplexRows(uint32_t inactive, T* packed) {
  ForEachInactive(inactive,
                  [=](int l) { std::memset(packed + l * 2 * width, 0, 2 * width * sizeof(T)); });
}

template <typename T>
void PackComplexStrip(const PackSource& source, void* packed) {
  constexpr int kWidth = VectorOf<T>::kStripWidth;
  T* to = static_cast<T*>(packed);
  for (int64_t l = 0; l < source.k; ++l, to += 2 * kWidth) {
    for (int64_t i = 0; i < source.count; ++i) {
      const std::complex<T> value = LoadComplex<T>(source, i, l);
      to[2 * i] = value.real();
      to[2 * i + 1] = value.imag();
      to[kWidth + 2 * i] = -value.imag();
      to[kWidth + 2 * i + 1] = value.real();
    }
  }
  ZeroComplexRows<kWidth>(source.inactive, static_cast<T*>(packed));
}

template <typename T>
void PackComplexPanel(const PackSource& source, void* packed) {
  constexpr int kWidth = VectorOf<T>::kPanelWidth;
  T* to = static_cast<T*>(packed);
  for (int64_t l = 0; l < source.k; ++l, to += 2 * kWidth) {
    for (int64_t i = 0; i < kWidth; ++i) {
      const std::complex<T> value = i < source.count ? LoadComplex<T>(source, i, l) : 0;
      to[i] = value.real();
      to[kWidth + i] = value.imag();
    }
  }
  ZeroComplexRows<kWidth>(source.inactive, static_cast<T*>(packed));
}

#ifdef __AMX_BF16__
// bfloat16 by the processor's tiles, which are 16 rows of 64 bytes each: 16 x 16 sums, or 16 rows
// of A times 32 of k, or 16 pairs along k times 16 columns of B. Of the eight tiles, four hold 32 x
// 32 sums, so that four multiplications go with four loads, of two tiles of A and two of B.
//
// A panel is packed as for the other instructions: either half of its rows is what a tile of B
// wants. A strip is packed tile after tile, for every 32 of k the upper 16 rows and the lower ones.
constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row
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

// rows[i] becomes row i of a tile, whose first is the strip's `row` and whose k begins at `l`:
// zeros beyond the strip's and k's end. Rows that are not active lie across strips, never along
// them.
void ReadTileAlong(const PackSource& source, int64_t row, int64_t l, __m512i* rows) {
  const auto* from = static_cast<const BFloat16*>(source.data) + l;
  const __mmask32 lanes = FirstBits(source.k - l);
  for (int i = 0; i < kTileRows; ++i) {
    rows[i] = row + i < source.count
                  ? _mm512_maskz_loadu_epi16(lanes, from + (row + i) * source.stride)
                  : _mm512_setzero_si512();
  }
}

// The same where the rows of memory lie across the strip. There are at most 32, where some may be
// not active.
void ReadTileAcross(const PackSource& source, int64_t row, int64_t l, __m512i* rows) {
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
  std::memcpy(rows, pairs, sizeof pairs);
}

void PackTiles(const PackSource& source, void* packed) {
  char* to = static_cast<char*>(packed);
  for (int64_t l = 0; l < source.k; l += kTileK) {
    for (int row = 0; row < kStripOfTiles; row += kTileRows) {
      __m512i rows[kTileRows];
      (source.stride == 1 ? ReadTileAcross : ReadTileAlong)(source, row, l, rows);
      std::memcpy(to, rows, sizeof rows);
      to += sizeof rows;
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
  if constexpr (right > 1) _tile_loadd(1, (c + kTileRows), row_bytes);
  if constexpr (down > 1) _tile_loadd(2, below, row_bytes);
  if constexpr (down > 1 && right > 1) _tile_loadd(3, (below + kTileRows), row_bytes);
}

template <int down, int right>
[[gnu::always_inline]] inline void StoreSums(float* c, int64_t stride) {
  const int64_t row_bytes = stride * sizeof(float);
  float* const below = c + kTileRows * stride;
  _tile_stored(0, c, row_bytes);
  if constexpr (right > 1) _tile_stored(1, (c + kTileRows), row_bytes);
  if constexpr (down > 1) _tile_stored(2, below, row_bytes);
  if constexpr (down > 1 && right > 1) _tile_stored(3, (below + kTileRows), row_bytes);
}

template <int down, int right>
void MultiplyTiles(const MicroTile& tile) {
  constexpr int kSumRows = down * kTileRows;
  constexpr int kSumColumns = right * kTileRows;
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
    for (int j = 0; j < kSumColumns; j += kTileRows) {
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
  kernels.pack_strip = PackTiles;
  kernels.pack_panel = PackPanelForTiles;
  kernels.begin = BeginTiles;
  kernels.end = EndTiles;
  FillTileRows<1>(&kernels, std::make_index_sequence<kTileRows>());
  FillTileRows<2>(&kernels, std::make_index_sequence<kTileRows>());
  return kernels;
}
#endif  // __AMX_BF16__

template <typename Arithmetic, Reads reads, int rows, size_t... vectors>
constexpr void FillVectors(GemmKernels* kernels, std::index_sequence<vectors...>) {
  ((kernels->multiply[static_cast<int>(reads)][rows - 1][vectors] =
        Multiply<Arithmetic, rows, vectors + 1, reads>),
   ...);
}
template <typename Arithmetic, Reads reads, size_t... rows>
constexpr void FillRows(GemmKernels* kernels, std::index_sequence<rows...>) {
  (FillVectors<Arithmetic, reads, rows + 1>(kernels, std::make_index_sequence<kMostVectors>()),
   ...);
}

template <typename Arithmetic>
constexpr GemmKernels MakeKernels(PackLoop pack_strip, PackLoop pack_panel, int steps_of_two_k) {
  using Packed = typename Arithmetic::Packed;
  using V = VectorOf<Packed>;
  GemmKernels kernels = {};
  kernels.rows = kRows;
  kernels.row_step = 1;
  kernels.lanes = V::kLanes;
  kernels.strip_width = V::kStripWidth;
  kernels.panel_width = V::kPanelWidth;
  kernels.element_size = sizeof(Packed);
  kernels.k_step = Arithmetic::kDepth;
  kernels.steps_of_two_k = steps_of_two_k;
  kernels.pack_strip = pack_strip;
  kernels.pack_panel = pack_panel;
  constexpr auto kEveryRows = std::make_index_sequence<kRows>();
  FillRows<Arithmetic, Reads::kAsPacked>(&kernels, kEveryRows);
  FillRows<Arithmetic, Reads::kStridedA>(&kernels, kEveryRows);
  if constexpr (std::is_same_v<typename Arithmetic::Stored, typename Arithmetic::Sum>) {
    FillRows<Arithmetic, Reads::kActiveB>(&kernels, kEveryRows);
  }
  return kernels;
}

template <typename Arithmetic, typename Storage>
constexpr GemmKernels MakeRealKernels() {
  using V = VectorOf<typename Arithmetic::Packed>;
  return MakeKernels<Arithmetic>(Pack<Arithmetic, Storage, V::kStripWidth>,
                                 Pack<Arithmetic, Storage, V::kPanelWidth>, 2 / Arithmetic::kDepth);
}

template <typename Traits>
constexpr GemmKernels MakeKernelsOf() {
  using Storage = typename Traits::Storage;
  using T = RealOf<typename Traits::Accumulator>;
  if constexpr (Traits::kComplex) {
    return MakeKernels<OneByOne<T, T>>(PackComplexStrip<T>, PackComplexPanel<T>, 4);
#if defined(__AMX_BF16__)
  } else if constexpr (std::is_same_v<Storage, BFloat16>) {
    return MakeTileKernels();
#elif defined(__AVX512BF16__)
  } else if constexpr (std::is_same_v<Storage, BFloat16>) {
    return MakeRealKernels<PairsOfBFloat16, Storage>();
#endif
  } else {
    return MakeRealKernels<OneByOne<Storage, T>, Storage>();
  }
}

constexpr GemmKernelTable MakeTable() {
  GemmKernelTable table = {};
  for (int dtype = 0; dtype < kNumDTypes; ++dtype) {
    VisitDType(static_cast<DType>(dtype),
               [&](auto traits) { table.of[dtype] = MakeKernelsOf<decltype(traits)>(); });
  }
  return table;
}

}  // namespace

namespace STOPGRAD_TARGET {
extern const GemmKernelTable gemm;
constexpr GemmKernelTable gemm = MakeTable();
}  // namespace STOPGRAD_TARGET

}  // namespace stopgrad::cpu
