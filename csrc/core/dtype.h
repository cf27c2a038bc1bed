#ifndef STOPGRAD_CORE_DTYPE_H_
#define STOPGRAD_CORE_DTYPE_H_

#include <complex>
#include <cstdint>

#include "core/float16.h"

namespace stopgrad {

enum class DType : int {
  kFloat,
  kDouble,
  kHalf,
  kBFloat16,
  kComplex64,
  kComplex128,
  kInt32,
  kInt64
};

// Storage type, the type that sums and activations are computed in, and whether the dtype has
// activations and gradients.
template <DType>
struct DTypeTraits;

template <typename StorageType, typename AccumulatorType, bool complex, bool gradients>
struct DTypeRow {
  using Storage = StorageType;
  using Accumulator = AccumulatorType;
  static constexpr bool kComplex = complex;
  static constexpr bool kGradients = gradients;
  static constexpr bool kActivations = gradients && !complex;
};

template <>
struct DTypeTraits<DType::kFloat> : DTypeRow<float, float, false, true> {};
template <>
struct DTypeTraits<DType::kDouble> : DTypeRow<double, double, false, true> {};
template <>
struct DTypeTraits<DType::kHalf> : DTypeRow<Half, float, false, true> {};
template <>
struct DTypeTraits<DType::kBFloat16> : DTypeRow<BFloat16, float, false, true> {};
template <>
struct DTypeTraits<DType::kComplex64>
    : DTypeRow<std::complex<float>, std::complex<float>, true, true> {};
template <>
struct DTypeTraits<DType::kComplex128>
    : DTypeRow<std::complex<double>, std::complex<double>, true, true> {};
// Integers wrap around as in stock TensorFlow; unsigned arithmetic makes that well defined.
template <>
struct DTypeTraits<DType::kInt32> : DTypeRow<uint32_t, uint32_t, false, false> {};
template <>
struct DTypeTraits<DType::kInt64> : DTypeRow<uint64_t, uint64_t, false, false> {};

inline constexpr int kNumDTypes = 8;

inline constexpr const char* kDTypeNames[] = {"float32",   "float64",    "float16", "bfloat16",
                                              "complex64", "complex128", "int32",   "int64"};
static_assert(sizeof(kDTypeNames) / sizeof(kDTypeNames[0]) == kNumDTypes);

inline const char* NameOf(DType dtype) { return kDTypeNames[static_cast<int>(dtype)]; }

template <typename T>
struct RealPart {
  using Type = T;
};
template <typename T>
struct RealPart<std::complex<T>> {
  using Type = T;
};
// The type of a complex type's parts; any other type itself.
template <typename T>
using RealOf = typename RealPart<T>::Type;

// Calls `function` with the traits of `dtype`: `VisitDType(dtype, [&](auto traits) { ... })`.
template <typename Function>
constexpr decltype(auto) VisitDType(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::kFloat:
      return function(DTypeTraits<DType::kFloat>());
    case DType::kDouble:
      return function(DTypeTraits<DType::kDouble>());
    case DType::kHalf:
      return function(DTypeTraits<DType::kHalf>());
    case DType::kBFloat16:
      return function(DTypeTraits<DType::kBFloat16>());
    case DType::kComplex64:
      return function(DTypeTraits<DType::kComplex64>());
    case DType::kComplex128:
      return function(DTypeTraits<DType::kComplex128>());
    case DType::kInt32:
      return function(DTypeTraits<DType::kInt32>());
    case DType::kInt64:
      return function(DTypeTraits<DType::kInt64>());
  }
  __builtin_unreachable();
}

inline int64_t SizeOf(DType dtype) {
  return VisitDType(dtype, [](auto traits) {
    return static_cast<int64_t>(sizeof(typename decltype(traits)::Storage));
  });
}

inline bool IsComplex(DType dtype) {
  return dtype == DType::kComplex64 || dtype == DType::kComplex128;
}

inline bool HasActivations(DType dtype) {
  return VisitDType(dtype, [](auto traits) { return decltype(traits)::kActivations; });
}

inline bool HasGradients(DType dtype) {
  return VisitDType(dtype, [](auto traits) { return decltype(traits)::kGradients; });
}

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_DTYPE_H_
