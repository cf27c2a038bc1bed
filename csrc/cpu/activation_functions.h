#ifndef STOPGRAD_CPU_ACTIVATION_FUNCTIONS_H_
#define STOPGRAD_CPU_ACTIVATION_FUNCTIONS_H_

#include "core/activation.h"
#include "cpu/vector_math.h"

namespace stopgrad {
// Unnamed, because files compiled for different instruction sets include this: each must keep its
// own copy.
namespace {

// The formulas of the activations: Value(z), and Derivative of what kActivations says is saved.
// Value keeps a NaN a NaN; at a kink, Derivative is what TensorFlow's is.
template <Activation>
struct ActivationFunction;

template <>
struct ActivationFunction<Activation::kLinear> {
  template <typename T>
  static T Value(T z) {
    return z;
  }
  template <typename T>
  static T Derivative(T) {
    return T(1);
  }
};

template <>
struct ActivationFunction<Activation::kRelu> {
  template <typename T>
  static T Value(T z) {
    return z < T(0) ? T(0) : z;
  }
  template <typename T>
  static T Derivative(T y) {
    return y > T(0) ? T(1) : T(0);
  }
};

template <>
struct ActivationFunction<Activation::kRelu6> {
  template <typename T>
  static T Value(T z) {
    return z < T(0) ? T(0) : (z > T(6) ? T(6) : z);
  }
  template <typename T>
  static T Derivative(T y) {
    return y > T(0) && y < T(6) ? T(1) : T(0);
  }
};

template <>
struct ActivationFunction<Activation::kLeakyRelu> {
  static constexpr double kSlope = 0.2;  // tf.nn.leaky_relu's and Keras's default
  template <typename T>
  static T Value(T z) {
    return z > T(0) ? z : T(kSlope) * z;
  }
  template <typename T>
  static T Derivative(T y) {
    return y > T(0) ? T(1) : T(kSlope);
  }
};

template <>
struct ActivationFunction<Activation::kElu> {
  template <typename T>
  static T Value(T z) {
    return z > T(0) ? z : Expm1(z);
  }
  template <typename T>
  static T Derivative(T y) {
    return y > T(0) ? T(1) : y + T(1);
  }
};

// Klambauer et al., Self-Normalizing Neural Networks, 2017.
template <>
struct ActivationFunction<Activation::kSelu> {
  static constexpr double kScale = 1.0507009873554804934193349852946;
  static constexpr double kScaleAlpha = 1.7580993408473768599402175208123;
  template <typename T>
  static T Value(T z) {
    return z > T(0) ? T(kScale) * z : T(kScaleAlpha) * Expm1(z);
  }
  template <typename T>
  static T Derivative(T y) {
    return y < T(0) ? y + T(kScaleAlpha) : T(kScale);  // kScale at 0, as tf.nn.selu
  }
};

// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: z Phi(z), Phi the normal distribution.
// erfc keeps the digits that 1 + erf would lose where z is negative.
template <>
struct ActivationFunction<Activation::kGelu> {
  static constexpr double kSqrtHalf = 0.70710678118654752440;
  static constexpr double kInvSqrtTwoPi = 0.39894228040143267794;
  template <typename T>
  static T Value(T z) {
    return T(0.5) * z * Erfc(T(-kSqrtHalf) * z);
  }
  template <typename T>
  static T Derivative(T z) {
    const T density = T(kInvSqrtTwoPi) * Exp(T(-0.5) * z * z);
    return T(0.5) * Erfc(T(-kSqrtHalf) * z) + z * density;
  }
};

// The tanh form of the same paper.
template <>
struct ActivationFunction<Activation::kGeluTanh> {
  static constexpr double kSqrtTwoOverPi = 0.79788456080286535588;
  static constexpr double kCubic = 0.044715;
  template <typename T>
  static T Value(T z) {
    return T(0.5) * z * (T(1) + Tanh(T(kSqrtTwoOverPi) * (z + T(kCubic) * z * z * z)));
  }
  template <typename T>
  static T Derivative(T z) {
    const T t = Tanh(T(kSqrtTwoOverPi) * (z + T(kCubic) * z * z * z));
    const T inner = T(kSqrtTwoOverPi) * (T(1) + T(3 * kCubic) * z * z);
    return T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * inner;
  }
};

template <>
struct ActivationFunction<Activation::kSigmoid> {
  template <typename T>
  static T Value(T z) {
    return T(1) / (T(1) + Exp(-z));
  }
  template <typename T>
  static T Derivative(T y) {
    return y * (T(1) - y);
  }
};

template <>
struct ActivationFunction<Activation::kTanh> {
  template <typename T>
  static T Value(T z) {
    return Tanh(z);
  }
  template <typename T>
  static T Derivative(T y) {
    return T(1) - y * y;
  }
};

template <>
struct ActivationFunction<Activation::kSilu> {
  template <typename T>
  static T Value(T z) {
    return z / (T(1) + Exp(-z));
  }
  template <typename T>
  static T Derivative(T z) {
    const T s = T(1) / (T(1) + Exp(-z));
    return s * (T(1) + z * (T(1) - s));
  }
};

// log(1 + e^z), with the large part taken out so that e^z cannot overflow. Its derivative, the
// sigmoid of z, is 1 - e^-y.
template <>
struct ActivationFunction<Activation::kSoftplus> {
  template <typename T>
  static T Value(T z) {
    return (z < T(0) ? T(0) : z) + Log1p(Exp(z < T(0) ? z : -z));
  }
  template <typename T>
  static T Derivative(T y) {
    return -Expm1(-y);
  }
};

}  // namespace
}  // namespace stopgrad

#endif  // STOPGRAD_CPU_ACTIVATION_FUNCTIONS_H_
