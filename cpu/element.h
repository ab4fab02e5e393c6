// element.h - rows of the tensors, in any of the four types and with any stride, to and from the kernels' numbers.
#pragma once
#include <string.h>

#include "vector.h"

namespace nb {
enum Type { kHalf = 0, kBfloat = 1, kFloat = 2, kDouble = 3 };
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

NB_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
NB_INLINE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

NB_INLINE float number(Bfloat x) { return float_of(uint32_t(x.bits) << 16); }
NB_INLINE float number(Half x) {  // also where the processor flushes numbers that are not normal
  const uint32_t size = x.bits & 0x7fffu, sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t normal = (size << 13) + 0x38000000u, special = (size << 13) + 0x70000000u;
  const uint32_t small = bits_of(float(int32_t(size)) * 5.9604644775390625e-8f);  // 2^-24
  return float_of(sign | (size < 0x400u ? small : size < 0x7c00u ? normal : special));
}
NB_INLINE float number(float x) { return x; }
NB_INLINE double number(double x) { return x; }

// Rounded to the nearest, ties to even.
NB_INLINE void set(Bfloat& to, float x) {
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  to.bits = uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : rounded);
}
NB_INLINE void set(Half& to, float x) {
  const uint32_t bits = bits_of(x), size = bits & 0x7fffffffu;
  const uint32_t normal = (size + 0xc8000fffu + (size >> 13 & 1u)) >> 13;
  const uint32_t small = bits_of(float_of(size < 0x38800000u ? size : 0u) + 0.5f) - 0x3f000000u;
  const uint32_t special = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t y = size < 0x38800000u ? small : size < 0x47800000u ? normal : special;
  to.bits = uint16_t(bits >> 16 & 0x8000u) | uint16_t(y);
}
NB_INLINE void set(float& to, float x) { to = x; }
NB_INLINE void set(double& to, double x) { to = x; }

template <class T, class F>
NB_INLINE void load_row_of(const void* data, long long at, long long step, int n, F* to) {
  const T* from = static_cast<const T*>(data) + at;
  if (step == 1)
    for (int i = 0; i < n; ++i) to[i] = number(from[i]);
  else
    for (int i = 0; i < n; ++i) to[i] = number(from[i * step]);
}
template <class T, class F>
NB_INLINE void store_row_of(void* data, long long at, int n, const F* from) {
  T* to = static_cast<T*>(data) + at;
  for (int i = 0; i < n; ++i) set(to[i], from[i]);
}

// A row of n elements that lie `step` apart, from element `at` on.
inline void load_row(int type, const void* data, long long at, long long step, int n, float* to) {
  if (type == kFloat) load_row_of<float>(data, at, step, n, to);
  else if (type == kBfloat) load_row_of<Bfloat>(data, at, step, n, to);
  else load_row_of<Half>(data, at, step, n, to);
}
inline void load_row(int, const void* data, long long at, long long step, int n, double* to) {
  load_row_of<double>(data, at, step, n, to);
}
inline void store_row(int type, void* data, long long at, int n, const float* from) {
  if (type == kFloat) store_row_of<float>(data, at, n, from);
  else if (type == kBfloat) store_row_of<Bfloat>(data, at, n, from);
  else store_row_of<Half>(data, at, n, from);
}
inline void store_row(int, void* data, long long at, int n, const double* from) {
  store_row_of<double>(data, at, n, from);
}
}  // namespace nb
