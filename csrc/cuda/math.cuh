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

// 2^x and 1/x by one instruction each, to 2 and 1 units in the last place (PTX ISA, ex2.approx and
// rcp.approx). What would be subnormal is 0.
#ifdef __CUDACC__
__device__ inline float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float FastReciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#else  // on the emulated GPU
inline float FlushSubnormal(float x) { return std::fabs(x) < 1.17549435e-38f ? 0.0f * x : x; }
inline float FastExp2(float x) { return FlushSubnormal(std::exp2(x)); }
inline float FastReciprocal(float x) { return FlushSubnormal(1.0f / x); }
#endif
__device__ inline float Reciprocal(float x) { return FastReciprocal(x); }
__device__ inline double Reciprocal(double x) { return 1.0 / x; }

// The normal distribution and its density, at x >= 0: Phi(-x), and phi(x).
template <typename T>
struct Normal;
template <>
struct Normal<double> {
  double x;

  __device__ explicit Normal(double x) : x(x) {}
  __device__ double Tail() const { return normcdf(-x); }
  __device__ double Density() const { return 0.39894228040143267794 * exp(-0.5 * x * x); }
};

// With normcdff a kernel has half as many instructions again as there is time for. Phi(-x) =
// e^(-x^2 / 2) P(1 / (x + k)), P without a constant term, since Phi(-x) goes as e^(-x^2 / 2) / x. P
// is a minimax fit for 0 <= x <= 14.5, by linear programming on Chebyshev nodes; its relative error
// is 1.5e-8, and that of Tail 5 units in the last place, as normcdff's.
template <>
struct Normal<float> {
  float x;
  float bell;  // e^(-x^2 / 2)

  __device__ explicit Normal(float x) : x(x) {
    // In two parts, since the exponent is large: x^2 and its rounding error, times log2(e) / 2.
    constexpr float kHigh = -0.72134752f, kLow = -9.62981517e-09f;
    const float square = x * x, square_low = fmaf(x, x, -square);
    const float exponent = kHigh * square;
    float exponent_low = fmaf(kHigh, square, -exponent);
    exponent_low = fmaf(kLow, square, exponent_low);
    exponent_low = fmaf(kHigh, square_low, exponent_low);
    const float rounded = FastExp2(exponent);
    bell = fmaf(rounded, 0.69314718f * exponent_low, rounded);
  }
  __device__ float Tail() const {
    const float r = FastReciprocal(x + 2.5f);
    return bell *
           (r * Polynomial(r, 0.398940057f, 0.997656882f, 2.08059406f, 3.5648458f, -2.60351014f,
                           29.106493f, -228.139709f, 583.138977f, -674.32196f, 307.161102f));
  }
  __device__ float Density() const { return 0.39894228f * bell; }
};

// sigmoid(v) and sigmoid(-v), by e = e^-|v|, which cannot overflow.
template <typename T>
struct Gate {
  T open, closed;

  __device__ explicit Gate(T v) {
    const T e = Exp(-Abs(v)), larger = Reciprocal(T(1) + e), smaller = e * larger;
    open = v < T(0) ? smaller : larger;
    closed = v < T(0) ? larger : smaller;
  }
};

// What is costly, and how exact it has to be for results that are stored as Storage. `Number` is
// what is computed with.
template <typename Storage>
struct Math {
  using Number = Storage;
  using Normal = cuda::Normal<Number>;
  using Gate = cuda::Gate<Number>;

  __device__ static Number Exp(Number x) { return cuda::Exp(x); }
};

// For results of 8 or 11 digits float32's own functions would cost more time than the traffic: an
// H100 has some 30 instructions for an element of 16 bits that it reads and writes, and normcdff
// alone takes 50. The errors here are below 2^-15, in the tails mostly of e^x for a rounded x.
struct MathOfSixteenBits {
  using Number = float;
  static constexpr float kLog2E = 1.44269504f;

  __device__ static float Exp(float x) { return FastExp2(kLog2E * x); }

  // Phi(-x) = e^(-x^2 / 2) P(1 / (x + k)), P without a constant term, since Phi(-x) goes as
  // e^(-x^2 / 2) / x. P is a minimax fit for 0 <= x <= 15, by linear programming on Chebyshev
  // nodes; its relative error is 4.8e-6.
  struct Normal {
    float x;
    float bell;  // e^(-x^2 / 2)

    __device__ explicit Normal(float x) : x(x), bell(FastExp2(-0.5f * kLog2E * (x * x))) {}
    __device__ float Tail() const {
      const float r = FastReciprocal(x + 3.25f);
      return bell * (r * Polynomial(r, 0.39970079f, 1.25605335f, 4.6635861f, 0.92015377f,
                                    68.49706545f, -88.27695347f));
    }
    __device__ float Density() const { return 0.39894228f * bell; }
  };

  struct Gate {
    float open, closed;

    __device__ explicit Gate(float v) : open(FastReciprocal(1.0f + Exp(-v))), closed(1.0f - open) {}
  };
};
template <>
struct Math<Half> : MathOfSixteenBits {};
template <>
struct Math<BFloat16> : MathOfSixteenBits {};

}  // namespace stopgrad::cuda

#endif  // STOPGRAD_CUDA_MATH_CUH_
