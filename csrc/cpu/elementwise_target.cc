// The loops of elementwise.h, written once and compiled once for each instruction set. The compiler
// vectorizes them; STOPGRAD_TARGET names the definition that this compilation gives.
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "cpu/activation_functions.h"
#include "cpu/elementwise.h"
#include "cpu/storage.h"

namespace stopgrad::cpu {

namespace {

template <typename Traits, Activation activation, bool has_bias, bool has_z>
void EpilogueRows(const void* sums, int64_t sums_stride, const typename Traits::Storage* bias,
                  typename Traits::Storage* z, typename Traits::Storage* y, int64_t rows,
                  int64_t cols, int64_t row_stride) {
  using Accumulator = typename Traits::Accumulator;
  const ActivationFunction<activation, Accumulator> function;
  const auto* real = static_cast<const RealOf<Accumulator>*>(sums);
  constexpr int64_t kParts = Traits::kComplex ? 2 : 1;
  for (int64_t i = 0; i < rows; ++i, real += kParts * sums_stride) {
    const int64_t row = i * row_stride;
    // Every element is read before it is written, also where y is the sums' memory.
#pragma GCC ivdep
    for (int64_t j = 0; j < cols; ++j) {
      Accumulator value;
      if constexpr (Traits::kComplex) {
        value = Accumulator(real[j], real[sums_stride + j]);
      } else {
        value = real[j];
      }
      if constexpr (has_bias) value += Load(bias[j]);
      if constexpr (has_z) Store(value, &z[row + j]);
      Store(function.Value(value), &y[row + j]);
    }
  }
}

template <typename Traits, Activation activation>
void Epilogue(const void* sums, int64_t sums_stride, const void* bias, void* z, void* y,
              int64_t rows, int64_t cols, int64_t row_stride) {
  using Storage = typename Traits::Storage;
  const auto run = [&](auto has_bias, auto has_z) {
    EpilogueRows<Traits, activation, has_bias, has_z>(
        sums, sums_stride, static_cast<const Storage*>(bias), static_cast<Storage*>(z),
        static_cast<Storage*>(y), rows, cols, row_stride);
  };
  if (bias != nullptr) {
    z != nullptr ? run(std::true_type(), std::true_type())
                 : run(std::true_type(), std::false_type());
  } else {
    z != nullptr ? run(std::false_type(), std::true_type())
                 : run(std::false_type(), std::false_type());
  }
}

template <typename Traits, Activation activation, bool has_dz, bool has_sums>
void RunActivationGradient(const ActivationGradientRows& r) {
  using Storage = typename Traits::Storage;
  using Accumulator = typename Traits::Accumulator;
  using Real = RealOf<Accumulator>;
  const ActivationFunction<activation, Accumulator> function;
  auto* const sums = static_cast<Accumulator*>(r.sums);
  for (int64_t i = 0; i < r.rows; ++i) {
    const int64_t place = r.places != nullptr ? r.places[i] : i * r.row_stride;
    const auto* const dy = static_cast<const Storage*>(r.dy) + place;
    const Storage* saved = nullptr;
    Storage* dz = nullptr;
    if constexpr (activation != Activation::kLinear) {
      saved = static_cast<const Storage*>(r.saved) + place;
    }
    if constexpr (has_dz) dz = static_cast<Storage*>(r.dz) + i * r.dz_stride;
    const Real weight = r.weights != nullptr ? static_cast<Real>(r.weights[i]) : Real(1);
    if (r.active != nullptr && !r.active[i]) {
      if constexpr (has_dz) std::memset(static_cast<void*>(dz), 0, r.cols * sizeof(Storage));
      continue;
    }
#pragma GCC ivdep
    for (int64_t j = 0; j < r.cols; ++j) {
      Accumulator value = Load(dy[j]);
      if constexpr (activation != Activation::kLinear) value *= function.Derivative(Load(saved[j]));
      value *= weight;
      if constexpr (has_dz) Store(value, &dz[j]);
      if constexpr (has_sums) sums[j] += value;
    }
  }
}

template <typename Traits, Activation activation>
void ActivationGradient(const ActivationGradientRows& rows) {
  if (rows.dz != nullptr) {
    rows.sums != nullptr ? RunActivationGradient<Traits, activation, true, true>(rows)
                         : RunActivationGradient<Traits, activation, true, false>(rows);
  } else if (rows.sums != nullptr) {
    RunActivationGradient<Traits, activation, false, true>(rows);
  }
}

template <typename Traits, size_t... activations>
constexpr void FillActivations(int dtype, std::index_sequence<activations...>,
                               ElementwiseLoops* loops) {
  ((loops->epilogue[dtype][activations] = Epilogue<Traits, static_cast<Activation>(activations)>),
   ...);
  ((loops->activation_gradient[dtype][activations] =
        ActivationGradient<Traits, static_cast<Activation>(activations)>),
   ...);
}

constexpr ElementwiseLoops MakeLoops() {
  ElementwiseLoops loops = {};
  for (int dtype = 0; dtype < kNumDTypes; ++dtype) {
    VisitDType(static_cast<DType>(dtype), [&](auto traits) {
      using Traits = decltype(traits);
      if constexpr (Traits::kActivations) {
        FillActivations<Traits>(dtype, std::make_index_sequence<kNumActivations>(), &loops);
      } else {
        FillActivations<Traits>(dtype, std::index_sequence<0>(), &loops);  // linear
      }
    });
  }
  return loops;
}

}  // namespace

// A constant, since code that fills it when the library is loaded would be compiled for this
// instruction set and run on processors without it.
namespace STOPGRAD_TARGET {
extern const ElementwiseLoops elementwise;
constexpr ElementwiseLoops elementwise = MakeLoops();
}  // namespace STOPGRAD_TARGET

}  // namespace stopgrad::cpu
