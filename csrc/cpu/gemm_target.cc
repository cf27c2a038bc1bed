// The kernels of gemm_kernels.h, written once and compiled once for each instruction set.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "cpu/gemm_kernels.h"
#include "cpu/packing.h"
#ifdef __AMX_BF16__
#include "cpu/tiles.h"
#endif
#include "cpu/vectors.h"

namespace stopgrad::cpu {

namespace {

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

// So many steps before they are multiplied, rows of B are asked for into the first cache: what the
// processor fetches ahead by itself comes too late. On a Xeon with AVX-512, products from
// 512x1024x1024 up were 8 to 11 % slower without it, and as fast with 12 steps to 32. Where they
// lie in their matrix, rows are often so far apart that all share a few places in the first cache,
// which many of them would push out of it.
constexpr int64_t kStepsAheadPacked = 16;
constexpr int64_t kStepsAheadInMatrix = 4;

// Asks for a row of so many bytes, for the first cache.
template <int bytes>
[[gnu::always_inline]] inline void Prefetch(const void* row) {
  constexpr int kLineBytes = 64;
#pragma GCC unroll 2
  for (int at = 0; at < bytes; at += kLineBytes) {
    __builtin_prefetch(static_cast<const char*>(row) + at, /*rw=*/0, /*locality=*/3);
  }
}

// Where another thread uses the same core, as a neighbour of a virtual machine may, a step gets
// half of the core's slots for instructions: on a Sapphire Rapids 3 a cycle, so 42 in the 14 cycles
// of 28 multiplications. One step at a time it takes 52, two at a time and with what RowsReadAgain
// says 44. That made the loop up to 12 % faster with neighbours there, and 0.5 % without. With
// SSE's and NEON's vectors GCC 12 would keep sums in memory for two steps at a time.
constexpr bool TwoStepsAtATime(Reads reads) {
  return kVectorBytes >= 32 && reads == Reads::kAsPacked;
}

// AVX-512 multiplies by an element of memory in one instruction. So of a micro-tile's rows, this
// many read their element of A for each vector of B, where the others read it into a register once:
// as many as the two loads a cycle allow. The others of the 2 * rows loads are one of every row's
// element, two of B and three that ask for what comes later.
constexpr int RowsReadAgain(int rows) { return kVectorBytes == 64 && rows > 5 ? rows - 5 : 0; }

template <typename Arithmetic, int rows, int vectors, Reads reads>
void Multiply(const MicroTile& tile) {
  using T = typename Arithmetic::Sum;
  using Packed = typename Arithmetic::Packed;
  constexpr int kLanes = VectorOf<T>::kLanes;
  constexpr int kRowBytes = vectors * kVectorBytes;
  constexpr int kRowsReadAgain = reads == Reads::kStridedA ? 0 : RowsReadAgain(rows);
  T* const c = static_cast<T*>(tile.c);
  // C comes while the products are computed: its rows may be pages apart.
#pragma GCC unroll 14
  for (int i = 0; i < rows; ++i) Prefetch<kRowBytes>(c + i * tile.c_stride);
  Vector<T> sums[rows][vectors] = {};
  const auto* a = static_cast<const Packed*>(tile.a);
  const auto* b = static_cast<const Packed*>(tile.b);
  const bool lies_packed = tile.b_stride == VectorOf<Packed>::kPanelWidth;
  const int64_t to_first_cache =
      (lies_packed ? kStepsAheadPacked : kStepsAheadInMatrix) * tile.b_stride;
  const auto* ahead = static_cast<const char*>(tile.ahead);
  int64_t step = 0;
  const auto multiply_step = [&]() __attribute__((always_inline)) {
    const Packed* row = b;
    if constexpr (reads == Reads::kActiveB) {
      row = IfActive<Packed, vectors * kLanes>(tile.b_active[step], b);
    }
    Prefetch<kRowBytes>(b + to_first_cache);
    __builtin_prefetch(ahead, /*rw=*/0, /*locality=*/2);
    ahead += tile.ahead_step;
    Vector<Packed> b_row[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) b_row[v] = LoadVector(row + v * kLanes);
    const Packed* again = a;
    // The compiler would load an element once if it knew that the two are the same.
    if constexpr (vectors > 1 && kRowsReadAgain > 0) asm("" : "+r"(again));
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) {
        const Packed* const column = v > 0 && i < kRowsReadAgain ? again : a;
        Arithmetic::MultiplyAdd(column[reads == Reads::kStridedA ? i * tile.a_stride : i], b_row[v],
                                &sums[i][v]);
      }
    }
    a += tile.a_step;
    b += tile.b_stride;
    ++step;
  };
  if constexpr (TwoStepsAtATime(reads)) {
    while (step + 1 < tile.steps) {
      multiply_step();
      multiply_step();
    }
  }
  while (step < tile.steps) multiply_step();
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
    return MakeTileKernels<PlainTiles>();
  } else if constexpr (std::is_same_v<Storage, Half>) {
    return MakeTileKernels<TilesOfHalf>();
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
