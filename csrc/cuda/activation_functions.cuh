#ifndef STOPGRAD_CUDA_ACTIVATION_FUNCTIONS_CUH_
#define STOPGRAD_CUDA_ACTIVATION_FUNCTIONS_CUH_

#include "core/activation.h"
#include "cuda/math.cuh"

namespace stopgrad::cuda {

// The formulas of the activations: Value(z), and Derivative of what kActivations says is saved, as
// exact as M, a Math, is. Value keeps a NaN a NaN; at a kink, Derivative is what TensorFlow's is.
template <Activation, typename M>
struct ActivationFunction;

template <typename M>
struct ActivationFunction<Activation::kLinear, M> {
  using T = typename M::Number;
  __device__ static T Value(T z) { return z; }
  __device__ static T Derivative(T) { return T(1); }
};

template <typename M>
struct ActivationFunction<Activation::kRelu, M> {
  using T = typename M::Number;
  __device__ static T Value(T z) { return AtLeast(T(0), z); }
  __device__ static T Derivative(T y) { return y > T(0) ? T(1) : T(0); }
};

template <typename M>
struct ActivationFunction<Activation::kRelu6, M> {
  using T = typename M::Number;
  __device__ static T Value(T z) { return AtMost(T(6), AtLeast(T(0), z)); }
  __device__ static T Derivative(T y) { return y > T(0) && y < T(6) ? T(1) : T(0); }
};

template <typename M>
struct ActivationFunction<Activation::kLeakyRelu, M> {
  using T = typename M::Number;
  static constexpr T kSlope = T(0.2);  // tf.nn.leaky_relu's and Keras's default
  __device__ static T Value(T z) { return z > T(0) ? z : kSlope * z; }
  __device__ static T Derivative(T y) { return y > T(0) ? T(1) : kSlope; }
};

template <typename M>
struct ActivationFunction<Activation::kElu, M> {
  using T = typename M::Number;
  __device__ static T Value(T z) { return z < T(0) ? Expm1(z) : z; }
  __device__ static T Derivative(T y) { return y > T(0) ? T(1) : y + T(1); }
};

// Klambauer et al., Self-Normalizing Neural Networks, 2017.
template <typename M>
struct ActivationFunction<Activation::kSelu, M> {
  using T = typename M::Number;
  static constexpr T kScale = T(1.0507009873554804934193349852946);
  static constexpr T kScaleAlpha = T(1.7580993408473768599402175208123);
  __device__ static T Value(T z) { return z < T(0) ? kScaleAlpha * Expm1(z) : kScale * z; }
  __device__ static T Derivative(T y) { return y < T(0) ? y + kScaleAlpha : kScale; }
};

// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: z Phi(z), Phi the normal distribution.
// By Phi(-|z|), which keeps its digits where it is small.
template <typename M>
struct ActivationFunction<Activation::kGelu, M> {
  using T = typename M::Number;
  static constexpr T kHigh = T(40);  // Phi(-z) is 0 above, and 0 inf would be a NaN
  __device__ static T Value(T z) {
    const T size = AtMost(kHigh, Abs(z));
    return AtLeast(T(0), z) - size * typename M::Normal(size).Tail();
  }
  __device__ static T Derivative(T z) {
    const T size = AtMost(kHigh, Abs(z));
    const typename M::Normal normal(size);
    const T below = normal.Tail() - size * normal.Density();  // at -|z|
    return z < T(0) ? below : T(1) - below;
  }
};

// With a gate: z sigmoid(v), and its derivative sigmoid(v) (1 + z v' sigmoid(-v)).
template <typename Gate, typename T>
__device__ T GatedDerivative(const Gate& gate, T z_times_slope) {
  return gate.open * (T(1) + z_times_slope * gate.closed);
}

// The tanh form of the same paper, z (1 + tanh(v / 2)) / 2.
template <typename M>
struct ActivationFunction<Activation::kGeluTanh, M> {
  using T = typename M::Number;
  static constexpr T kLinear = T(1.5957691216057307117);  // 2 sqrt(2 / pi)
  static constexpr T kCubic = T(0.044715 * 1.5957691216057307117);
  static constexpr T kLow = T(-22);  // the gate is closed below
  __device__ static T Value(T z) {
    z = AtLeast(kLow, z);
    return z * typename M::Gate(z * (kLinear + kCubic * z * z)).open;
  }
  __device__ static T Derivative(T z) {
    z = AtMost(-kLow, AtLeast(kLow, z));
    const T square = z * z;
    const typename M::Gate gate(z * (kLinear + kCubic * square));
    return GatedDerivative(gate, z * (kLinear + T(3) * kCubic * square));
  }
};

template <typename M>
struct ActivationFunction<Activation::kSigmoid, M> {
  using T = typename M::Number;
  __device__ static T Value(T z) { return typename M::Gate(z).open; }
  __device__ static T Derivative(T y) { return y * (T(1) - y); }
};

// 1 - y^2 would lose the digits of 1 - y.
template <typename M>
struct ActivationFunction<Activation::kTanh, M> {
  using T = typename M::Number;
  __device__ static T Value(T z) { return Tanh(z); }
  __device__ static T Derivative(T y) { return (T(1) - y) * (T(1) + y); }
};

template <typename M>
struct ActivationFunction<Activation::kSilu, M> {
  using T = typename M::Number;
  static constexpr T kLow = T(-760);  // the gate is closed below
  __device__ static T Value(T z) {
    z = AtLeast(kLow, z);
    return z * typename M::Gate(z).open;
  }
  __device__ static T Derivative(T z) {
    z = AtMost(-kLow, AtLeast(kLow, z));
    return GatedDerivative(typename M::Gate(z), z);
  }
};

// log(1 + e^z), with the large part taken out so that e^z cannot overflow. Its derivative, the
// sigmoid of z, is 1 - e^-y.
template <typename M>
struct ActivationFunction<Activation::kSoftplus, M> {
  using T = typename M::Number;
  __device__ static T Value(T z) { return AtLeast(T(0), z) + Log1p(M::Exp(-Abs(z))); }
  __device__ static T Derivative(T y) { return -Expm1(-y); }
};

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_ACTIVATION_FUNCTIONS_CUH_
