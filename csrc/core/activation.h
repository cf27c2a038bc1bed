#ifndef STOPGRAD_CORE_ACTIVATION_H_
#define STOPGRAD_CORE_ACTIVATION_H_

#include <string_view>
#include <type_traits>
#include <utility>

namespace stopgrad {

// What backward reads to get the derivative: nothing, the output y = f(z), or the pre-activation z
// for functions that are not monotone, where y does not say what z was.
enum class Saved { kNothing, kOutput, kPreactivation };

enum class Activation : int {
  kLinear,
  kRelu,
  kRelu6,
  kLeakyRelu,
  kElu,
  kSelu,
  kGelu,
  kGeluTanh,
  kSigmoid,
  kTanh,
  kSilu,
  kSoftplus,
};

struct ActivationRow {
  Activation activation;
  const char* name;
  Saved saved;
};

// The table of activations. TensorFlow's op, the Python package and the tests take names and
// `saved` from here; the formulas stand in cpu/activation_functions.h.
inline constexpr ActivationRow kActivations[] = {
    {Activation::kLinear, "linear", Saved::kNothing},
    {Activation::kRelu, "relu", Saved::kOutput},
    {Activation::kRelu6, "relu6", Saved::kOutput},
    {Activation::kLeakyRelu, "leaky_relu", Saved::kOutput},
    {Activation::kElu, "elu", Saved::kOutput},
    {Activation::kSelu, "selu", Saved::kOutput},
    {Activation::kGelu, "gelu", Saved::kPreactivation},
    {Activation::kGeluTanh, "gelu_tanh", Saved::kPreactivation},
    {Activation::kSigmoid, "sigmoid", Saved::kOutput},
    {Activation::kTanh, "tanh", Saved::kOutput},
    {Activation::kSilu, "silu", Saved::kPreactivation},
    {Activation::kSoftplus, "softplus", Saved::kOutput},
};
inline constexpr int kNumActivations = sizeof(kActivations) / sizeof(kActivations[0]);

constexpr bool ActivationTableIsInEnumOrder() {
  for (int i = 0; i < kNumActivations; ++i) {
    if (static_cast<int>(kActivations[i].activation) != i) return false;
  }
  return true;
}
static_assert(ActivationTableIsInEnumOrder(), "kActivations is indexed by the enum");

constexpr Saved SavedFor(Activation activation) {
  return kActivations[static_cast<int>(activation)].saved;
}

// Calls `function` with the activation as a constant, which has to be one of the table's:
// `VisitActivation(activation, [&](auto constant) { ...<constant()>... })`.
template <typename Function, int first = 0>
auto VisitActivation(Activation activation, Function&& function) {
  if constexpr (first + 1 < kNumActivations) {
    if (static_cast<int>(activation) != first) {
      return VisitActivation<Function, first + 1>(activation, std::forward<Function>(function));
    }
  }
  return function(std::integral_constant<Activation, static_cast<Activation>(first)>());
}

// Finds an activation by name; false if there is none of that name.
inline bool FindActivation(std::string_view name, Activation* activation) {
  for (const ActivationRow& row : kActivations) {
    if (name == row.name) {
      *activation = row.activation;
      return true;
    }
  }
  return false;
}

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_ACTIVATION_H_
