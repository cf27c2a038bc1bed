#ifndef STOPGRAD_CUDA_MATH_CUH_
#define STOPGRAD_CUDA_MATH_CUH_

#include <cmath>

#include "cuda/storage.cuh"

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

// c0 + c1 x + c2 x^2 + ...
__device__ inline float Polynomial(float, float c0) { return c0; }
template <typename... Coefficients>
__device__ float Polynomial(float x, float c0, Coefficients... others) {
  return Polynomial(x, others...) * x + c0;
}

// What is costly, and how exact it has to be for results that are stored as Storage. `Number` is
// what is computed with.
template <typename Storage>
struct Math {
  using Number = Storage;

  __device__ static Number Exp(Number x) { return cuda::Exp(x); }
  __device__ static Number Reciprocal(Number x) { return Number(1) / x; }

  // The normal distribution and its density.
  struct Normal {
    static constexpr Number kInvSqrtTwoPi = Number(0.39894228040143267794);
    Number x;

    __device__ explicit Normal(Number x) : x(x) {}
    __device__ Number Cdf() const { return NormalCdf(x); }
    __device__ Number Density() const { return kInvSqrtTwoPi * cuda::Exp(Number(-0.5) * x * x); }
  };
};

// For results of 8 or 11 digits float32's own functions would cost more time than the traffic:
// an H100 has 40 instructions for an element of 16 bits that it reads and writes, and normcdff
// alone takes 50. The errors here are below 2^-15, in the
// tails mostly __expf's.
struct MathOfSixteenBits {
  using Number = float;

  __device__ static float Exp(float x) { return __expf(x); }
  // For 2^-126 <= x <= 2^126; 0 beyond, which is as good where it is multiplied with a bell of 0.
  __device__ static float Reciprocal(float x) { return __fdividef(1.0f, x); }

  // Phi(-|x|) = e^(-x^2 / 2) P(1 / (|x| + k)), P without a constant term, since Phi(-|x|) goes as
  // e^(-x^2 / 2) / |x|. P is a minimax fit for 0 <= |x| <= 15, by linear programming on Chebyshev
  // nodes; its relative error is 4.8e-6.
  struct Normal {
    float x;
    float bell;  // e^(-x^2 / 2)

    __device__ explicit Normal(float x) : x(x), bell(Exp(-0.5f * x * x)) {}
    __device__ float Cdf() const {
      const float r = Reciprocal(fabsf(x) + 3.25f);
      const float tail = bell * r *
                         Polynomial(r, 0.39970079f, 1.25605335f, 4.6635861f, 0.92015377f,
                                    68.49706545f, -88.27695347f);
      return x < 0.0f ? tail : 1.0f - tail;
    }
    __device__ float Density() const { return 0.39894228f * bell; }
  };
};
template <>
struct Math<Half> : MathOfSixteenBits {};
template <>
struct Math<BFloat16> : MathOfSixteenBits {};

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_MATH_CUH_
