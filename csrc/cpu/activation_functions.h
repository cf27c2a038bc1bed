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
  T Value(T z) const { return z < T(0) ? Expm1(z) : z; }
  T Derivative(T y) const { return y > T(0) ? T(1) : y + T(1); }
};

// Klambauer et al., Self-Normalizing Neural Networks, 2017.
template <typename T>
struct ActivationFunction<Activation::kSelu, T> {
  static constexpr double kScale = 1.0507009873554804934193349852946;
  static constexpr double kScaleAlpha = 1.7580993408473768599402175208123;
  T Value(T z) const { return z < T(0) ? T(kScaleAlpha) * Expm1(z) : T(kScale) * z; }
  T Derivative(T y) const {
    return y < T(0) ? y + T(kScaleAlpha) : T(kScale);  // kScale at 0, as tf.nn.selu
  }
};

// (z < 0 ? e : 1) / (1 + e) with e = e^-|z|, which cannot overflow.
template <typename T>
inline T Sigmoid(T z) {
  const T e = Unscale(ScaledExp(-std::fabs(z)));
  return (z < T(0) ? e : T(1)) / (T(1) + e);
}

// z sigmoid(v), where v has the sign of z, and its derivative sigmoid(v) (1 + (1 - sigmoid(v)) z
// v') for z v' = `slope`. Both take e^-|v| as ScaledExp gives it.
template <typename T>
inline T Gated(T z, T scaled_e) {
  return (z < T(0) ? Unscale(z * scaled_e) : z) / (T(1) + Unscale(scaled_e));
}
template <typename T>
inline T GatedDerivative(T z, T slope, T scaled_e) {
  const T e = Unscale(scaled_e);
  const T sum = T(1) + e;
  const T factor = (sum + slope * (z < T(0) ? T(1) : e)) / (sum * sum);
  return z < T(0) ? Unscale(scaled_e * factor) : factor;
}

// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: z Phi(z), Phi the normal distribution.
// erfc keeps the digits that 1 + erf would lose where z is negative.
template <typename T>
struct ActivationFunction<Activation::kGelu, T> {
  static constexpr double kSqrtHalf = 0.70710678118654752440;
  static constexpr double kInvSqrtTwoPi = 0.39894228040143267794;
  // Below it the tail of the distribution is as good as 0, and the vector form of erfc gives way to
  // scalar calls that take eighty times as long.
  T low = Opaque(T(-38.4));
  T Value(T z) const {
    z = AtLeast(low, z);
    return T(0.5) * z * Erfc(T(-kSqrtHalf) * z);
  }
  T Derivative(T z) const {
    z = AtMost(-low, AtLeast(low, z));
    const T density = T(kInvSqrtTwoPi) * ScaledExp(T(-0.5) * z * z);
    return T(0.5) * Erfc(T(-kSqrtHalf) * z) + z * density;
  }
};

// With x = |z|, the tail is Phi(-x) = e^(-x^2 / 2) R(x), where R is smooth and falls like 1 / x.
// Polynomials in a quotient that squeezes all x into [0, 1] take the place of R.
template <>
struct ActivationFunction<Activation::kGelu, float> {
  // From here on the tail is 0.
  float high = Opaque(14.75f);

  // max(z, 0) - x Phi(-x), and a polynomial for (x + c) R(x); 5.8e-9.
  float Value(float z) const {
    const float x = AtMost(high, std::fabs(z));
    // x / (x + c) could be subnormal: 2^32 times that is not.
    const float quotient = x * 0x1p32f / (x + 0x1.b6p+1f);
    const float flat = Polynomial(quotient * 0x1p-32f - 0.375f, 0x1.ce0bep-1f, -0x1.758b3ap+0f,
                                  0x1.8a20ecp+0f, -0x1.c8bc2p-1f, 0x1.3a7fd8p-7f, 0x1.4c8d68p-2f,
                                  -0x1.cf676ep-5f, -0x1.2fafbp-3f, 0x1.26014ap-6f, 0x1.0b85fcp-4f);
    const float tail = TimesScaledExpOfSquare(quotient * flat, x);
    return AtLeast(0.0f, z) - tail * 0x1p-96f;
  }

  // The derivative at -x is e^(-x^2 / 2) (R(x) - x / sqrt(2 pi)), and the bracket has a zero. With
  // a polynomial for bracket / (zero - x), 3.9e-9, the derivative keeps its digits where its two
  // terms cancel.
  float Derivative(float z) const {
    const float x = AtMost(high, std::fabs(z));
    const float distance = (0x1.80ead2p-1f - x) - 0x1.a03fd4p-27f;
    const float quotient = x / (x + 0x1.c8p+1f);
    const float flat = Polynomial(quotient - 0.5f, 0x1.dfa3fcp-2f, -0x1.c3b5b4p-3f, 0x1.e0fb04p-3f,
                                  -0x1.76ce44p-3f, 0x1.5b41acp-4f, 0x1.60d8ep-10f, -0x1.ccdd88p-6f,
                                  0x1.9b5674p-8f, 0x1.532a6p-7f);
    const float tail = Unscale(TimesScaledExpOfSquare(distance * flat, x));
    return z < 0 ? tail : 1 - tail;
  }
};

// The tanh form of the same paper, z (1 + tanh(v / 2)) / 2 = z sigmoid(v).
template <typename T>
struct ActivationFunction<Activation::kGeluTanh, T> {
  static constexpr double kLinear = 1.5957691216057307117;  // 2 sqrt(2 / pi)
  static constexpr double kCubic = 0.044715 * kLinear;
  // Beyond them the smaller of sigmoid(v) and sigmoid(-v) is 0.
  static constexpr T kLow = sizeof(T) == 4 ? T(-11) : T(-22);
  static double ScaledE(double z) {
    return ScaledExp(-std::fabs(z) * (kLinear + kCubic * (z * z)));
  }
  // Where sigmoid(v) is small, v is large, and each rounding of v costs |v| units in the last
  // place. Hence v = x (linear + cubic x^2) in two parts, of which the first is exact.
  static float ScaledE(float z) {
    constexpr float kLinearHead = 0x1.988p+0f, kLinearRest = 0x1.14cf5p-14f;
    constexpr float kCubicHead = 0x1.244p-4f, kCubicRest = 0x1.3ca936p-18f;
    const float x = AtMost(float(-kLow), std::fabs(z));
    const float x_head = Head(x), x_rest = x - x_head;
    const float square = x_head * x_head;
    const float square_head = Head(square);
    const float square_rest = (square - square_head) + x_rest * (x + x_head);
    const float factor_head = Head(float(kLinear) + float(kCubic) * square_head);
    const float factor_rest =
        ((kLinearHead - factor_head) + kCubicHead * square_head) +
        (float(kCubic) * square_rest + (kCubicRest * square_head + kLinearRest));
    return ScaledExp(-(x_head * factor_head), x_rest * factor_head + x * factor_rest);
  }
  T Value(T z) const {
    z = AtLeast(kLow, z);
    return Gated(z, ScaledE(z));
  }
  T Derivative(T z) const {
    z = AtMost(-kLow, AtLeast(kLow, z));
    return GatedDerivative(z, z * (T(kLinear) + T(3 * kCubic) * z * z), ScaledE(z));
  }
};

template <typename T>
struct ActivationFunction<Activation::kSigmoid, T> {
  T Value(T z) const { return Sigmoid(z); }
  T Derivative(T y) const { return y * (T(1) - y); }
};

// 1 - y^2 would lose the digits of 1 - y.
template <typename T>
struct ActivationFunction<Activation::kTanh, T> {
  T Value(T z) const { return Tanh(z); }
  T Derivative(T y) const { return (T(1) - y) * (T(1) + y); }
};

template <typename T>
struct ActivationFunction<Activation::kSilu, T> {
  // Beyond them the smaller of sigmoid(z) and sigmoid(-z) is 0.
  static constexpr T kLow = sizeof(T) == 4 ? T(-110) : T(-760);
  T Value(T z) const {
    z = AtLeast(kLow, z);
    return Gated(z, ScaledExp(-std::fabs(z)));
  }
  T Derivative(T z) const {
    z = AtMost(-kLow, AtLeast(kLow, z));
    return GatedDerivative(z, z, ScaledExp(-std::fabs(z)));
  }
};

// log(1 + e^z), with the large part taken out so that e^z cannot overflow. Its derivative, the
// sigmoid of z, is 1 - e^-y.
template <typename T>
struct ActivationFunction<Activation::kSoftplus, T> {
  T Value(T z) const { return AtLeast(T(0), z) + Log1p(Unscale(ScaledExp(-std::fabs(z)))); }
  T Derivative(T y) const { return -Expm1(-y); }
};

}  // namespace
}  // namespace stopgrad

#endif  // STOPGRAD_CPU_ACTIVATION_FUNCTIONS_H_
