#ifndef STOPGRAD_CPU_VECTOR_MATH_H_
#define STOPGRAD_CPU_VECTOR_MATH_H_

#include <cmath>

// Elementary functions that the compiler may call on whole vectors. glibc has had vector forms of
// all of these since 2.35 (libmvec, errors of at most 4 units in the last place); declaring them
// "simd" lets the vectorizer use them without -ffast-math, which would also give up infinities and
// NaNs. Elsewhere the same code calls the scalar functions.
#ifdef STOPGRAD_HAVE_LIBMVEC
#define STOPGRAD_SIMD __attribute__((simd("notinbranch")))
extern "C" {
STOPGRAD_SIMD float expf(float) noexcept;
STOPGRAD_SIMD double exp(double) noexcept;
STOPGRAD_SIMD float expm1f(float) noexcept;
STOPGRAD_SIMD double expm1(double) noexcept;
STOPGRAD_SIMD float log1pf(float) noexcept;
STOPGRAD_SIMD double log1p(double) noexcept;
STOPGRAD_SIMD float tanhf(float) noexcept;
STOPGRAD_SIMD double tanh(double) noexcept;
STOPGRAD_SIMD float erfcf(float) noexcept;
STOPGRAD_SIMD double erfc(double) noexcept;
}
#undef STOPGRAD_SIMD
#endif

namespace stopgrad {
namespace {

inline float Exp(float x) { return ::expf(x); }
inline double Exp(double x) { return ::exp(x); }
inline float Erfc(float x) { return ::erfcf(x); }
inline double Erfc(double x) { return ::erfc(x); }
inline float Expm1(float x) { return ::expm1f(x); }
inline double Expm1(double x) { return ::expm1(x); }
inline float Log1p(float x) { return ::log1pf(x); }
inline double Log1p(double x) { return ::log1p(x); }
inline float Tanh(float x) { return ::tanhf(x); }
inline double Tanh(double x) { return ::tanh(x); }

// A number that the compiler does not know. Knowing a bound, it would give the elements beyond it
// their result aside and call the vector function with all elements as they were.
template <typename T>
inline T Opaque(T value) {
  asm("" : "+m"(value));
  return value;
}

// NaNs pass through.
template <typename T>
inline T AtLeast(T low, T x) {
  return x < low ? low : x;
}
template <typename T>
inline T AtMost(T high, T x) {
  return x > high ? high : x;
}

}  // namespace
}  // namespace stopgrad

#endif  // STOPGRAD_CPU_VECTOR_MATH_H_
