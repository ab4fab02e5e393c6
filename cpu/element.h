// element.h - rows of the tensors, in any of the four types and with any stride, to and from the kernels' numbers.
#pragma once
#include <string.h>

#include "vector.h"

namespace nb {
enum Type { kHalf = 0, kBfloat = 1, kFloat = 2, kDouble = 3 };
inline int size_of(int type) { return type == kDouble ? 8 : type == kFloat ? 4 : 2; }
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

// Elements of one row, `step` apart, to `to`.
template <class T, class F>
NB_INLINE void load_row(const T* from, long long step, int n, F* to) {
  int i = 0;
  if (step == 1) {
    if constexpr (sizeof(T) == sizeof(F)) {
      typedef typename Simd<F>::V V;
      typedef V Loose __attribute__((aligned(1), may_alias));
      for (constexpr int L = kVectorBytes / int(sizeof(F)); i + L <= n; i += L)
        *reinterpret_cast<Loose*>(to + i) = *reinterpret_cast<const Loose*>(from + i);
    }
    for (; i < n; ++i) to[i] = number(from[i]);
  } else {
    for (; i < n; ++i) to[i] = number(from[i * step]);
  }
}

constexpr long long kNowhere = -(1ll << 59);  // the offset of a row that is not read, and counts as 0

// Rows of n elements at the given offsets to rows of `width` numbers; what a row lacks is 0.
template <class T, class F>
NB_INLINE void load_rows_of(const void* data, const long long* at, int rows, long long step, int n, F* to, int width) {
  for (int row = 0; row < rows; ++row, to += width) {
    int i = 0;
    if (at[row] != kNowhere) {
      load_row(static_cast<const T*>(data) + at[row], step, n, to);
      i = n;
    }
    for (; i < width; ++i) to[i] = 0;
  }
}
// The inverse; each row has its factor.
template <class T, class F>
NB_INLINE void store_rows_of(void* data, const long long* at, int rows, int n, const F* from, int width,
                             const F* factor) {
  for (int row = 0; row < rows; ++row, from += width) {
    if (at[row] == kNowhere) continue;
    T* const to = static_cast<T*>(data) + at[row];
    for (int i = 0; i < n; ++i) set(to[i], from[i] * factor[row]);
  }
}
NB_APART inline void load_rows(int type, const void* data, const long long* at, int rows, long long step, int n,
                               float* to, int width) {
  if (type == kFloat) load_rows_of<float>(data, at, rows, step, n, to, width);
  else if (type == kBfloat) load_rows_of<Bfloat>(data, at, rows, step, n, to, width);
  else load_rows_of<Half>(data, at, rows, step, n, to, width);
}
NB_APART inline void load_rows(int, const void* data, const long long* at, int rows, long long step, int n, double* to,
                               int width) {
  load_rows_of<double>(data, at, rows, step, n, to, width);
}
// Rows of n bfloat16, two in each of `width` words.
NB_APART inline void load_pairs(const void* data, const long long* at, int rows, long long step, int n, uint32_t* to,
                                int width) {
  for (int row = 0; row < rows; ++row, to += width) {
    const bool read = at[row] != kNowhere;
    const Bfloat* const from = static_cast<const Bfloat*>(data) + (read ? at[row] : 0);
    const int whole = read ? n / 2 : 0;
    if (step == 1) memcpy(to, from, 4 * whole);
    else
      for (int i = 0; i < whole; ++i) to[i] = from[2 * i * step].bits | uint32_t(from[(2 * i + 1) * step].bits) << 16;
    for (int i = whole; i < width; ++i) to[i] = 0;
    if (read && n % 2) to[whole] = from[(n - 1) * step].bits;
  }
}
NB_APART inline void store_rows(int type, void* data, const long long* at, int rows, int n, const float* from,
                                int width, const float* factor) {
  if (type == kFloat) store_rows_of<float>(data, at, rows, n, from, width, factor);
  else if (type == kBfloat) store_rows_of<Bfloat>(data, at, rows, n, from, width, factor);
  else store_rows_of<Half>(data, at, rows, n, from, width, factor);
}
NB_APART inline void store_rows(int, void* data, const long long* at, int rows, int n, const double* from, int width,
                                const double* factor) {
  store_rows_of<double>(data, at, rows, n, from, width, factor);
}
// Adds rows of n numbers, times a factor, to those at the given offsets.
template <class F>
NB_APART void add_to_rows(F* data, const long long* at, int rows, int n, const F* from, long width, F factor) {
  for (int row = 0; row < rows; ++row, from += width) {
    F* const to = data + at[row];
    for (int i = 0; i < n; ++i) to[i] += from[i] * factor;
  }
}
// Asks for rows that will be loaded soon, into the nearest cache (3) or the next one (2); returns their bytes.
template <int kCache>
NB_INLINE int fetch_row(int type, const void* data, long long at, int n) {
  const int size = size_of(type);
  const char* const from = static_cast<const char*>(data) + at * size;
  for (int i = 0; i < n * size; i += 64) __builtin_prefetch(from + i, 0, kCache);
  return n * size;
}
inline void fetch_rows(int type, const void* data, const long long* at, int rows, int n) {
  for (int row = 0; row < rows; ++row)
    if (at[row] != kNowhere) fetch_row<3>(type, data, at[row], n);
}
}  // namespace nb
