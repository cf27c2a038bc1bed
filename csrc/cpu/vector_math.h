#ifndef STOPGRAD_CPU_VECTOR_MATH_H_
#define STOPGRAD_CPU_VECTOR_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>

// Elementary functions in a form that the compiler turns into vector code. In float64 they are the
// C library's. glibc has had vector forms of these since 2.35 (libmvec, errors of at most 4 units
// in the last place); declaring them "simd" lets the vectorizer use them without -ffast-math, which
// would also give up infinities and NaNs. Elsewhere the same code calls the scalar functions.
#ifdef STOPGRAD_HAVE_LIBMVEC
#define STOPGRAD_SIMD __attribute__((simd("notinbranch")))
extern "C" {
STOPGRAD_SIMD double exp(double) noexcept;
STOPGRAD_SIMD double expm1(double) noexcept;
STOPGRAD_SIMD double log1p(double) noexcept;
STOPGRAD_SIMD double tanh(double) noexcept;
STOPGRAD_SIMD double erfc(double) noexcept;
}
#undef STOPGRAD_SIMD
#endif

namespace stopgrad {
// Unnamed, because files compiled for different instruction sets include this: each must keep its
// own copy.
namespace {

// NaNs pass through.
template <typename T>
inline T AtLeast(T low, T x) {
  return x < low ? low : x;
}
template <typename T>
inline T AtMost(T high, T x) {
  return x > high ? high : x;
}

// A number that the compiler does not know. Knowing a bound, it would give the elements beyond it
// their result aside and call the vector function with all elements as they were.
template <typename T>
inline T Opaque(T value) {
  asm("" : "+m"(value));
  return value;
}

// --- float64 -----------------------------------------------------------------------------------
// The names that float32 has too; numbers small enough to need scaling are of no concern here.
inline double ScaledExp(double x) { return ::exp(x); }
inline double Unscale(double x) { return x; }
inline double Expm1(double x) { return ::expm1(x); }
inline double Log1p(double x) { return ::log1p(x); }
inline double Tanh(double x) { return ::tanh(x); }
inline double Erfc(double x) { return ::erfc(x); }

// --- float32 -----------------------------------------------------------------------------------
// Without branches, tables and calls. Only a result may be subnormal, and nothing on the way to it,
// since TensorFlow's threads take subnormal numbers for 0. The compiler may fuse a multiplication
// with an addition where the target can; nothing here needs it to. docs/activations.md has the
// errors.
//
// The coefficients are minimax fits: found by linear programming on Chebyshev nodes, against values
// of 40 digits, then rounded to float32 one after the other, each time fitting the rest again. The
// error stated beside them is relative, and that of the rounded coefficients in exact arithmetic;
// half a unit in the last place is 3e-8 to 6e-8.

// c0 + c1 x + c2 x^2 + ...
inline float Polynomial(float, float c0) { return c0; }
template <typename... Coefficients>
inline float Polynomial(float x, float c0, Coefficients... others) {
  return Polynomial(x, others...) * x + c0;
}

inline uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// The first 12 of the 24 digits of x. The product of two such numbers is exact.
inline float Head(float x) { return FromBits(Bits(x) & 0xfffff000u); }

// x = n ln 2 + r with an integer n and |r| <= ln(2) / 2.
struct Reduced {
  float r;
  float n_bits;  // what PowerOfTwo takes
};

// Added to a number, it rounds it to an integer n and leaves n + 127 in the sum's last bits.
// PowerOfTwo moves them to where a float32 has its exponent, which makes 2^n.
constexpr float kRound = 0x1.8p+23f + 127;
inline float PowerOfTwo(float n_bits) { return FromBits(Bits(n_bits) << 23); }

// Of x - excess, an excess that x has no digits for. n belongs to `nearby`, and r is too large by
// what that is off. PowerOfTwo gives 2^(n + shift).
template <int shift>
inline Reduced Reduce(float x, float excess, float nearby) {
  constexpr float kLog2E = 0x1.715476p+0f;
  // High has 15 bits, so that n High is exact for every n here.
  constexpr float kLn2High = 0x1.62e4p-1f;
  constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  const float n_bits = nearby * kLog2E + (kRound + shift);
  const float n = n_bits - (kRound + shift);
  return {((x - n * kLn2High) - excess) - n * kLn2Low, n_bits};
}

// e^r - 1 for |r| <= ln(2) / 2; 1.4e-8.
inline float Expm1OfReduced(float r) {
  const float series =
      Polynomial(r, 0x1.fffffep-2f, 0x1.5554b4p-3f, 0x1.5556f4p-5f, 0x1.122544p-7f, 0x1.6b998p-10f);
  return r * r * series + r;
}

// ScaledExp(x) is e^x times 2^64, for x <= 0, and Unscale takes the factor out again. In between,
// another factor that makes the result a normal number can be applied, although e^x is none.
constexpr int kScale = 64;
inline float Unscale(float x) { return x * 0x1p-64f; }
// From here on e^x is 0 in float32. Scaled, it is still a normal number.
constexpr float kExpLow = -110;

// ScaledExp(x - excess), for x - excess >= -130: rounding the difference to float32 would cost the
// result |x| units in the last place.
inline float ScaledExp(float x, float excess) {
  const Reduced reduced = Reduce<kScale>(x, excess, x - excess);
  return (Expm1OfReduced(reduced.r) + 1) * PowerOfTwo(reduced.n_bits);
}

inline float ScaledExp(float x) { return ScaledExp(AtLeast(kExpLow, x), 0); }

// y times ScaledExp(-x^2 / 2), for |x| <= 14.8. Rounding x^2 would cost x^2 / 2 units in the last
// place. One rounding is saved by y (1 + (e^r - 1)).
inline float TimesScaledExpOfSquare(float y, float x) {
  const float head = Head(x);
  const float excess = 0.5f * ((x - head) * (x + head));
  const float high = -0.5f * (head * head);
  const Reduced reduced = Reduce<kScale>(high, excess, high);
  return (y * Expm1OfReduced(reduced.r) + y) * PowerOfTwo(reduced.n_bits);
}

// e^x - 1, for x <= 0.
inline float Expm1(float x) {
  x = AtLeast(-20.0f, x);  // -1 from here on
  const Reduced reduced = Reduce<0>(x, 0, x);
  const float power = PowerOfTwo(reduced.n_bits);
  return power * Expm1OfReduced(reduced.r) + (power - 1);
}

// log(1 + x), for 0 <= x <= 1; 5.5e-9.
inline float Log1p(float x) {
  return x * Polynomial(x - 0x1.1ap-1f, 0x1.97dd8p-1f, -0x1.1a2d7ap-2f, 0x1.f7256ap-4f,
                        -0x1.f1a6cap-5f, 0x1.04bda6p-5f, -0x1.1c861ap-6f, 0x1.38878ap-7f,
                        -0x1.439deap-8f, 0x1.e9b052p-9f, -0x1.a7a5d2p-9f);
}

// With u = e^(-2 |x|) - 1, tanh |x| is -u / (2 + u).
inline float Tanh(float x) {
  const float u = Expm1(-2 * std::fabs(x));
  return std::copysign(u / (2 + u), x);
}

}  // namespace
}  // namespace stopgrad

#endif  // STOPGRAD_CPU_VECTOR_MATH_H_
