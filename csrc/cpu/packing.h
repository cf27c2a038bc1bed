#ifndef STOPGRAD_CPU_PACKING_H_
#define STOPGRAD_CPU_PACKING_H_

// What packed pieces are made of, and how they are packed.
#ifdef __F16C__
#include <immintrin.h>
#endif

#include <complex>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/dtype.h"
#include "cpu/gemm_kernels.h"
#include "cpu/storage.h"
#include "cpu/vectors.h"

namespace stopgrad::cpu {

namespace {

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
  ForEachBit(source.inactive, [&](int l) {
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
  ForEachBit(inactive,
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

}  // namespace

}  // namespace stopgrad::cpu

#endif  // STOPGRAD_CPU_PACKING_H_
