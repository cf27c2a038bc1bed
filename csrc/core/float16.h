#ifndef STOPGRAD_CORE_FLOAT16_H_
#define STOPGRAD_CORE_FLOAT16_H_

#include <cstdint>
#include <cstring>

namespace stopgrad {

// The two 16-bit floating types as storage. Arithmetic is done in float32; conversions round to
// nearest, ties to even. They are branch-free, so that loops over them become vector code on any
// target, with or without conversion instructions. They are static because files compiled for
// different instruction sets include them: each must keep its own copy.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace float16_internal {

static inline uint32_t ToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace float16_internal

static inline float ToFloat(BFloat16 value) {
  return float16_internal::FromBits(static_cast<uint32_t>(value.bits) << 16);
}

static inline float ToFloat(Half value) {
  using namespace float16_internal;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  // Normal numbers: move the exponent bias from 15 to 127. Subnormal ones: put the digits behind
  // 2^-14 and take it off again, which works on normal floats alone, as TensorFlow's threads flush
  // subnormal ones to zero. Infinities and NaNs have the largest exponent and get float's largest.
  const uint32_t normal = magnitude + (112u << 23);
  const uint32_t subnormal = ToBits(FromBits(magnitude + (113u << 23)) - FromBits(113u << 23));
  const uint32_t finite = magnitude < (1u << 23) ? subnormal : normal;
  const uint32_t special = magnitude | 0x7f800000;
  return FromBits(sign | (magnitude >= (0x7c00u << 13) ? special : finite));
}

static inline void FromFloat(float value, BFloat16* result) {
  const uint32_t bits = float16_internal::ToBits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  result->bits = static_cast<uint16_t>(is_nan ? ((bits >> 16) | 0x40) : rounded);
}

static inline void FromFloat(float value, Half* result) {
  using namespace float16_internal;
  const uint32_t bits = ToBits(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal results: shift the exponent bias from 127 to 15 and round the 13 bits that go.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal results: adding 0.5 puts the bits that stay at the end of the float, rounded by the
  // hardware; 0.5 is where one unit in the last place is 2^-24, half's smallest step.
  const uint32_t subnormal = ToBits(FromBits(magnitude) + 0.5f) - ToBits(0.5f);
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? 0x7c00 : half;  // 2^16 and more, infinity included
  half = magnitude > 0x7f800000 ? 0x7e00 : half;     // NaN
  result->bits = static_cast<uint16_t>(sign | half);
}

}  // namespace stopgrad

#endif  // STOPGRAD_CORE_FLOAT16_H_
