// The kernels of gemm_kernels.h, written once and compiled once for each instruction set.
#include <complex>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "cpu/gemm_kernels.h"
#include "cpu/storage.h"

namespace stopgrad::cpu {

namespace {

// The largest micro-tile is what leaves a register for an element of A and one for each vector of
// B: 32 registers of 64 bytes hold 14 x 2 sums, 16 hold 6 x 2, and 4 x 2 where multiplying and
// adding are two instructions with a temporary between them.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRows = 14;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRows = 6;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16;
constexpr int kRows = 12;
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

// Widens 16-bit types: the loop is short enough for the compiler to make it vector code.
template <typename T, typename Storage>
Vector<T> LoadVector(const Storage* from) {
  Vector<T> vector;
  if constexpr (std::is_same_v<Storage, T>) {
    std::memcpy(&vector, from, sizeof vector);
  } else {
    T wide[VectorOf<T>::kLanes];
    for (int i = 0; i < VectorOf<T>::kLanes; ++i) wide[i] = ToFloat(from[i]);
    std::memcpy(&vector, wide, sizeof vector);
  }
  return vector;
}

template <typename T>
void StoreVector(const Vector<T>& vector, T* to) {
  std::memcpy(to, &vector, sizeof vector);
}

template <typename T, int rows, int vectors>
void Multiply(const MicroTile& tile) {
  constexpr int kLanes = VectorOf<T>::kLanes;
  Vector<T> sums[rows][vectors] = {};
  const T* a = static_cast<const T*>(tile.a);
  const T* b = static_cast<const T*>(tile.b);
  for (int64_t l = 0; l < tile.k; ++l) {
    Vector<T> b_row[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) b_row[v] = LoadVector<T>(b + v * kLanes);
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sums[i][v] += a[i] * b_row[v];
    }
    a += VectorOf<T>::kStripWidth;
    b += tile.b_stride;
  }
  const T alpha = static_cast<T>(tile.alpha);
  T* const c = static_cast<T*>(tile.c);
  if (tile.cols == vectors * kLanes) {
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        T* const to = c + i * tile.c_stride + v * kLanes;
        const Vector<T> product = alpha * sums[i][v];
        StoreVector<T>(tile.adds ? LoadVector<T>(to) + product : product, to);
      }
    }
  } else {
    T products[rows][vectors * kLanes];
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        StoreVector<T>(alpha * sums[i][v], products[i] + v * kLanes);
      }
    }
    for (int i = 0; i < rows; ++i) {
      T* const to = c + i * tile.c_stride;
      for (int64_t j = 0; j < tile.cols; ++j) {
        to[j] = tile.adds ? to[j] + products[i][j] : products[i][j];
      }
    }
  }
}

// rows[i][j] <-> rows[j][i]: in each round, pairs of rows change their off-diagonal blocks.
template <typename T>
void Transpose(Vector<T>* rows) {
  constexpr int kLanes = VectorOf<T>::kLanes;
  using Indices = typename VectorOf<T>::Indices;
#pragma GCC unroll 4
  for (int block = 1; block < kLanes; block *= 2) {
    Indices upper;
    Indices lower;
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      upper[j] = j & block ? kLanes + j - block : j;
      lower[j] = j & block ? kLanes + j : j + block;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & block) continue;
      const Vector<T> first = rows[i];
      const Vector<T> second = rows[i + block];
      rows[i] = __builtin_shuffle(first, second, upper);
      rows[i + block] = __builtin_shuffle(first, second, lower);
    }
  }
}

template <typename Storage, typename T, int width>
void Pack(const PackSource& source, void* packed) {
  constexpr int kLanes = VectorOf<T>::kLanes;
  const auto* from = static_cast<const Storage*>(source.data);
  T* to = static_cast<T*>(packed);
  const auto pack_steps = [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      for (int i = 0; i < width; ++i) {
        to[l * width + i] =
            i < source.count ? Load(from[i * source.stride + l * source.k_stride]) : T(0);
      }
    }
  };
  if (source.stride == 1) {
    // Whole vectors, also where the piece is narrower: they end in the matrix's next row, which all
    // but the last one have.
    int64_t whole = source.k;
    if (source.count < width) whole = source.k_stride < width ? 0 : source.k - 1;
    for (int64_t l = 0; l < whole; ++l) {
#pragma GCC unroll 16
      for (int i = 0; i < width; i += kLanes) {
        StoreVector<T>(LoadVector<T>(from + l * source.k_stride + i), to + l * width + i);
      }
    }
    pack_steps(whole > 0 ? whole : 0, source.k);
    return;
  }
  const int64_t whole = source.k_stride == 1 ? source.k / kLanes * kLanes : 0;
  for (int64_t l = 0; l < whole; l += kLanes) {
    for (int first = 0; first < width; first += kLanes) {
      Vector<T> rows[kLanes];
      if (first + kLanes <= source.count) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = LoadVector<T>(from + (first + i) * source.stride + l);
        }
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          rows[i] = first + i < source.count ? LoadVector<T>(from + (first + i) * source.stride + l)
                                             : Vector<T>{};
        }
      }
      Transpose<T>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) StoreVector<T>(rows[i], to + (l + i) * width + first);
    }
  }
  pack_steps(whole, source.k);
}

template <typename T>
std::complex<T> LoadComplex(const PackSource& source, int64_t i, int64_t l) {
  const auto* from = static_cast<const std::complex<T>*>(source.data);
  const std::complex<T> value = from[i * source.stride + l * source.k_stride];
  return source.conjugate ? std::conj(value) : value;
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
}

template <typename T, int rows, size_t... vectors>
constexpr void FillVectors(GemmKernels* kernels, std::index_sequence<vectors...>) {
  ((kernels->multiply[rows - 1][vectors] = Multiply<T, rows, vectors + 1>), ...);
}
template <typename T, size_t... rows>
constexpr void FillRows(GemmKernels* kernels, std::index_sequence<rows...>) {
  (FillVectors<T, rows + 1>(kernels, std::make_index_sequence<kMostVectors>()), ...);
}

template <typename Traits>
constexpr GemmKernels MakeKernels() {
  using Storage = typename Traits::Storage;
  using T = RealOf<typename Traits::Accumulator>;
  using V = VectorOf<T>;
  GemmKernels kernels = {};
  kernels.rows = kRows;
  kernels.lanes = V::kLanes;
  kernels.strip_width = V::kStripWidth;
  kernels.panel_width = V::kPanelWidth;
  if constexpr (Traits::kComplex) {
    kernels.pack_strip = PackComplexStrip<T>;
    kernels.pack_panel = PackComplexPanel<T>;
  } else {
    kernels.pack_strip = Pack<Storage, T, V::kStripWidth>;
    kernels.pack_panel = Pack<Storage, T, V::kPanelWidth>;
  }
  FillRows<T>(&kernels, std::make_index_sequence<kRows>());
  return kernels;
}

constexpr GemmKernelTable MakeTable() {
  GemmKernelTable table = {};
  for (int dtype = 0; dtype < kNumDTypes; ++dtype) {
    VisitDType(static_cast<DType>(dtype),
               [&](auto traits) { table.of[dtype] = MakeKernels<decltype(traits)>(); });
  }
  return table;
}

}  // namespace

namespace STOPGRAD_TARGET {
extern const GemmKernelTable gemm;
constexpr GemmKernelTable gemm = MakeTable();
}  // namespace STOPGRAD_TARGET

}  // namespace stopgrad::cpu
