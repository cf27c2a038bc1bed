#ifndef STOPGRAD_CPU_ACTIVATION_FUNCTIONS_H_
#define STOPGRAD_CPU_ACTIVATION_FUNCTIONS_H_

#include "core/activation.h"
#include "cpu/vector_math.h"

namespace stopgrad {
// Unnamed, because files compiled for different instruction sets include this: each must keep its
// own copy.
namespace {

// The formulas of the activations: Value(z), and Derivative of what kActivations says is saved. One
// is made before a loop and used in it.
// Value keeps a NaN a NaN; at a kink, Derivative is what TensorFlow's is.
template <Activation, typename T>
struct ActivationFunction;

template <typename T>
struct ActivationFunction<Activation::kLinear, T> {
  T Value(T z) const { return z; }
  T Derivative(T) const { return T(1); }
};

template <typename T>
struct ActivationFunction<Activation::kRelu, T> {
  T Value(T z) const { return AtLeast(T(0), z); }
  T Derivative(T y) const { return y > T(0) ? T(1) : T(0); }
};

template <typename T>
struct ActivationFunction<Activation::kRelu6, T> {
  T Value(T z) const { return AtMost(T(6), AtLeast(T(0), z)); }
  T Derivative(T y) const { return y > T(0) && y < T(6) ? T(1) : T(0); }
};

template <typename T>
struct ActivationFunction<Activation::kLeakyRelu, T> {
  static constexpr double kSlope = 0.2;  // tf.nn.leaky_relu's and Keras's default
  T Value(T z) const { return z > T(0) ? z : T(kSlope) * z; }
  T Derivative(T y) const { return y > T(0) ? T(1) : T(kSlope); }
};

template <typename T>
struct ActivationFunction<Activation::kElu, T> {
  T Value(T z) const { return z > T(0) ? z : Expm1(z); }
  T Derivative(T y) const { return y > T(0) ? T(1) : y + T(1); }
};

// Klambauer et al., Self-Normalizing Neural Networks, 2017.
template <typename T>
struct ActivationFunction<Activation::kSelu, T> {
  static constexpr double kScale = 1.0507009873554804934193349852946;
  static constexpr double kScaleAlpha = 1.7580993408473768599402175208123;
  T Value(T z) const { return z > T(0) ? T(kScale) * z : T(kScaleAlpha) * Expm1(z); }
  T Derivative(T y) const {
    return y < T(0) ? y + T(kScaleAlpha) : T(kScale);  // kScale at 0, as tf.nn.selu
  }
};

// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: z Phi(z), Phi the normal distribution.
// erfc keeps the digits that 1 + erf would lose where z is negative.
template <typename T>
struct ActivationFunction<Activation::kGelu, T> {
  static constexpr double kSqrtHalf = 0.70710678118654752440;
  static constexpr double kInvSqrtTwoPi = 0.39894228040143267794;
  // Below it the tail of the distribution is as good as 0, and the vector form of erfc gives way to
  // scalar calls that take eighty times as long.
  T low = Opaque(sizeof(T) == 4 ? T(-14.2) : T(-38.4));
  T Value(T z) const {
    z = AtLeast(low, z);
    return T(0.5) * z * Erfc(T(-kSqrtHalf) * z);
  }
  T Derivative(T z) const {
    z = AtMost(-low, AtLeast(low, z));
    const T density = T(kInvSqrtTwoPi) * Exp(T(-0.5) * z * z);
    return T(0.5) * Erfc(T(-kSqrtHalf) * z) + z * density;
  }
};

// The tanh form of the same paper.
template <typename T>
struct ActivationFunction<Activation::kGeluTanh, T> {
  static constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
  static constexpr double kCubic = 0.044715;
  T Value(T z) const {
    return T(0.5) * z * (T(1) + Tanh(T(kSqrtTwoOverPi) * (z + T(kCubic) * z * z * z)));
  }
  T Derivative(T z) const {
    const T t = Tanh(T(kSqrtTwoOverPi) * (z + T(kCubic) * z * z * z));
    const T inner = T(kSqrtTwoOverPi) * (T(1) + T(3 * kCubic) * z * z);
    return T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * inner;
  }
};

template <typename T>
inline T Sigmoid(T z) {
  return T(1) / (T(1) + Exp(-z));
}

template <typename T>
struct ActivationFunction<Activation::kSigmoid, T> {
  T Value(T z) const { return Sigmoid(z); }
  T Derivative(T y) const { return y * (T(1) - y); }
};

template <typename T>
struct ActivationFunction<Activation::kTanh, T> {
  T Value(T z) const { return Tanh(z); }
  T Derivative(T y) const { return T(1) - y * y; }
};

template <typename T>
struct ActivationFunction<Activation::kSilu, T> {
  T Value(T z) const { return z / (T(1) + Exp(-z)); }
  T Derivative(T z) const {
    const T s = Sigmoid(z);
    return s * (T(1) + z * (T(1) - s));
  }
};

// log(1 + e^z), with the large part taken out so that e^z cannot overflow. Its derivative, the
// sigmoid of z, is 1 - e^-y.
template <typename T>
struct ActivationFunction<Activation::kSoftplus, T> {
  T Value(T z) const { return AtLeast(T(0), z) + Log1p(Exp(z < T(0) ? z : -z)); }
  T Derivative(T y) const { return -Expm1(-y); }
};

}  // namespace
}  // namespace stopgrad

#endif  // STOPGRAD_CPU_ACTIVATION_FUNCTIONS_H_
