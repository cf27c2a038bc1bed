#ifndef STOPGRAD_CUDA_ACTIVATION_FUNCTIONS_CUH_
#define STOPGRAD_CUDA_ACTIVATION_FUNCTIONS_CUH_

#include <cmath>

#include "core/activation.h"

namespace stopgrad::cuda {

// CUDA's mathematical functions by one name for both types. Their errors are a few units in the
// last place: table in the CUDA C++ Programming Guide, "Mathematical Functions".
__device__ inline float Exp(float x) { return expf(x); }
__device__ inline double Exp(double x) { return exp(x); }
__device__ inline float Expm1(float x) { return expm1f(x); }
__device__ inline double Expm1(double x) { return expm1(x); }
__device__ inline float Log1p(float x) { return log1pf(x); }
__device__ inline double Log1p(double x) { return log1p(x); }
__device__ inline float Tanh(float x) { return tanhf(x); }
__device__ inline double Tanh(double x) { return tanh(x); }
__device__ inline float NormalCdf(float x) { return normcdff(x); }
__device__ inline double NormalCdf(double x) { return normcdf(x); }
__device__ inline float Abs(float x) { return fabsf(x); }
__device__ inline double Abs(double x) { return fabs(x); }

// Unlike fmax and fmin, these keep a NaN in `value`.
template <typename T>
__device__ T AtLeast(T least, T value) {
  return value < least ? least : value;
}
template <typename T>
__device__ T AtMost(T most, T value) {
  return value > most ? most : value;
}

// The formulas of the activations: Value(z), and Derivative of what kActivations says is saved.
// Value keeps a NaN a NaN; at a kink, Derivative is what TensorFlow's is.
template <Activation, typename T>
struct ActivationFunction;

template <typename T>
struct ActivationFunction<Activation::kLinear, T> {
  __device__ static T Value(T z) { return z; }
  __device__ static T Derivative(T) { return T(1); }
};

template <typename T>
struct ActivationFunction<Activation::kRelu, T> {
  __device__ static T Value(T z) { return AtLeast(T(0), z); }
  __device__ static T Derivative(T y) { return y > T(0) ? T(1) : T(0); }
};

template <typename T>
struct ActivationFunction<Activation::kRelu6, T> {
  __device__ static T Value(T z) { return AtMost(T(6), AtLeast(T(0), z)); }
  __device__ static T Derivative(T y) { return y > T(0) && y < T(6) ? T(1) : T(0); }
};

template <typename T>
struct ActivationFunction<Activation::kLeakyRelu, T> {
  static constexpr T kSlope = T(0.2);  // tf.nn.leaky_relu's and Keras's default
  __device__ static T Value(T z) { return z > T(0) ? z : kSlope * z; }
  __device__ static T Derivative(T y) { return y > T(0) ? T(1) : kSlope; }
};

template <typename T>
struct ActivationFunction<Activation::kElu, T> {
  __device__ static T Value(T z) { return z < T(0) ? Expm1(z) : z; }
  __device__ static T Derivative(T y) { return y > T(0) ? T(1) : y + T(1); }
};

// Klambauer et al., Self-Normalizing Neural Networks, 2017.
template <typename T>
struct ActivationFunction<Activation::kSelu, T> {
  static constexpr T kScale = T(1.0507009873554804934193349852946);
  static constexpr T kScaleAlpha = T(1.7580993408473768599402175208123);
  __device__ static T Value(T z) { return z < T(0) ? kScaleAlpha * Expm1(z) : kScale * z; }
  __device__ static T Derivative(T y) { return y < T(0) ? y + kScaleAlpha : kScale; }
};

// Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: z Phi(z), Phi the normal distribution.
template <typename T>
struct ActivationFunction<Activation::kGelu, T> {
  static constexpr T kInvSqrtTwoPi = T(0.39894228040143267794);
  static constexpr T kLow = T(-40);  // Phi is 0 below, and -inf 0 would be a NaN
  __device__ static T Value(T z) {
    z = AtLeast(kLow, z);
    return z * NormalCdf(z);
  }
  __device__ static T Derivative(T z) {
    z = AtMost(-kLow, AtLeast(kLow, z));
    return NormalCdf(z) + z * (kInvSqrtTwoPi * Exp(T(-0.5) * z * z));
  }
};

// z sigmoid(v), and its derivative sigmoid(v) (1 + z v' sigmoid(-v)), by e = e^-|v|, which cannot
// overflow.
template <typename T>
struct Gate {
  T open, closed;  // sigmoid(v) and sigmoid(-v)

  __device__ explicit Gate(T v) {
    const T e = Exp(-Abs(v)), sum = T(1) + e;
    open = (v < T(0) ? e : T(1)) / sum;
    closed = (v < T(0) ? T(1) : e) / sum;
  }
  __device__ T Value(T z) const { return z * open; }
  __device__ T Derivative(T z_times_slope) const { return open * (T(1) + z_times_slope * closed); }
};

// The tanh form of the same paper, z (1 + tanh(v / 2)) / 2.
template <typename T>
struct ActivationFunction<Activation::kGeluTanh, T> {
  static constexpr T kLinear = T(1.5957691216057307117);  // 2 sqrt(2 / pi)
  static constexpr T kCubic = T(0.044715 * 1.5957691216057307117);
  static constexpr T kLow = T(-22);  // the gate is closed below
  __device__ static T Value(T z) {
    z = AtLeast(kLow, z);
    return Gate<T>(z * (kLinear + kCubic * z * z)).Value(z);
  }
  __device__ static T Derivative(T z) {
    z = AtMost(-kLow, AtLeast(kLow, z));
    const T square = z * z;
    return Gate<T>(z * (kLinear + kCubic * square))
        .Derivative(z * (kLinear + T(3) * kCubic * square));
  }
};

template <typename T>
struct ActivationFunction<Activation::kSigmoid, T> {
  __device__ static T Value(T z) { return Gate<T>(z).open; }
  __device__ static T Derivative(T y) { return y * (T(1) - y); }
};

// 1 - y^2 would lose the digits of 1 - y.
template <typename T>
struct ActivationFunction<Activation::kTanh, T> {
  __device__ static T Value(T z) { return Tanh(z); }
  __device__ static T Derivative(T y) { return (T(1) - y) * (T(1) + y); }
};

template <typename T>
struct ActivationFunction<Activation::kSilu, T> {
  static constexpr T kLow = T(-760);  // the gate is closed below
  __device__ static T Value(T z) {
    z = AtLeast(kLow, z);
    return Gate<T>(z).Value(z);
  }
  __device__ static T Derivative(T z) {
    z = AtMost(-kLow, AtLeast(kLow, z));
    return Gate<T>(z).Derivative(z);
  }
};

// log(1 + e^z), with the large part taken out so that e^z cannot overflow. Its derivative, the
// sigmoid of z, is 1 - e^-y.
template <typename T>
struct ActivationFunction<Activation::kSoftplus, T> {
  __device__ static T Value(T z) { return AtLeast(T(0), z) + Log1p(Exp(-Abs(z))); }
  __device__ static T Derivative(T y) { return -Expm1(-y); }
};

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_ACTIVATION_FUNCTIONS_CUH_
