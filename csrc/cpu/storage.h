#ifndef STOPGRAD_CPU_STORAGE_H_
#define STOPGRAD_CPU_STORAGE_H_

#include "core/float16.h"

namespace stopgrad {
// Unnamed, because files compiled for different instruction sets include this: each must keep its
// own copy.
namespace {

// Between storage and accumulator: 16-bit types convert, all others are the same type.
template <typename T>
T Load(const T& value) {
  return value;
}
inline float Load(const Half& value) { return ToFloat(value); }
inline float Load(const BFloat16& value) { return ToFloat(value); }

template <typename T>
void Store(const T& value, T* result) {
  *result = value;
}
inline void Store(float value, Half* result) { FromFloat(value, result); }
inline void Store(float value, BFloat16* result) { FromFloat(value, result); }

}  // namespace
}  // namespace stopgrad

#endif  // STOPGRAD_CPU_STORAGE_H_
