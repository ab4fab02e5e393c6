// products.h - the two matrix products: lanes are vectors, and every number of a row is broadcast to them.
#pragma once
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vector.h"

namespace nb {
// Rows of a product of scores and columns of a product of sums that keep the registers busy, chosen on Zen 4: fewer
// leave the multiplier waiting, more do not fit the registers.
template <class F>
constexpr int kRowsAtOnce = kRegisters == 32 ? (kVectors<F> == 1 ? 10 : kVectors<F> == 2 ? 8 : kVectors<F> == 4 ? 6 : 3)
                                             : (kVectors<F> == 2 ? 5 : kVectors<F> == 4 ? 2 : 1);
template <class F>
constexpr int kColumnsAtOnce = kRegisters == 32 ? (kVectors<F> == 1 ? 16 : kVectors<F> == 2 ? 12 : kVectors<F> == 4 ? 6 : 3)
                                                : (kVectors<F> == 2 ? 6 : kVectors<F> == 4 ? 2 : 1);

// sum[m] = sum over d of rows[m * step + d] * lanes[d]
template <int M, class F>
NB_INLINE void dot(const F* rows, long step, const Wide<F>* lanes, int n, Wide<F> (&sum)[M]) {
  NB_UNROLL for (int m = 0; m < M; ++m) sum[m] = Wide<F>{};
  for (int d = 0; d < n; ++d)
    NB_UNROLL for (int m = 0; m < M; ++m) {
      const typename Simd<F>::V x = splat<F>(rows[m * step + d]);
      NB_UNROLL for (int v = 0; v < kVectors<F>; ++v) sum[m].v[v] += x * lanes[d].v[v];
    }
}

// The same for rows and lanes of bfloat16: two numbers in each word, and twice as many products at once. Products are
// exact, sums are of floats. This is the only instruction that is not the compiler's choice.
#ifdef __AVX512BF16__
constexpr bool kHasPairs = true;
NB_INLINE Simd<float>::V add_pairs(Simd<float>::V sum, uint32_t row, Simd<float>::V lanes) {
  const __m512i both = _mm512_set1_epi32(int(row));
  return (Simd<float>::V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)both, (__m512bh)lanes);
}
#else
constexpr bool kHasPairs = false;
NB_INLINE Simd<float>::V add_pairs(Simd<float>::V sum, uint32_t, Simd<float>::V) { return sum; }
#endif
template <int M>
NB_INLINE void dot_pairs(const uint32_t* rows, long step, const Wide<float>* lanes, int n, Wide<float> (&sum)[M]) {
  NB_UNROLL for (int m = 0; m < M; ++m) sum[m] = Wide<float>{};
  for (int d = 0; d < n; ++d)
    NB_UNROLL for (int m = 0; m < M; ++m)
      NB_UNROLL for (int v = 0; v < kVectors<float>; ++v)
        sum[m].v[v] = add_pairs(sum[m].v[v], rows[m * step + d], lanes[d].v[v]);
}

// to[m] = factor * to[m] + sum over j of row[j][m] * weights[j]; with no factor, to[m] is set.
template <int M, class F>
NB_APART void add_columns(const F* const* row, long at, const Wide<F>* weights, int n, Wide<F>* to,
                           const Wide<F>* factor) {
  Wide<F> sum[M];
  NB_UNROLL for (int m = 0; m < M; ++m) sum[m] = factor ? to[m] * *factor : Wide<F>{};
  for (int j = 0; j < n; ++j) {
    const F* const from = row[j] + at;
    NB_UNROLL for (int m = 0; m < M; ++m) {
      const typename Simd<F>::V x = splat<F>(from[m]);
      NB_UNROLL for (int v = 0; v < kVectors<F>; ++v) sum[m].v[v] += x * weights[j].v[v];
    }
  }
  NB_UNROLL for (int m = 0; m < M; ++m) to[m] = sum[m];
}
template <class F>
inline void add_rows(const F* const* row, const Wide<F>* weights, int n, int columns, Wide<F>* to,
                     const Wide<F>* factor) {
  constexpr int M = kColumnsAtOnce<F>;
  long at = 0;
  for (; at + M <= columns; at += M) add_columns<M>(row, at, weights, n, to + at, factor);
  if constexpr (M > 8)
    for (; at + 8 <= columns; at += 8) add_columns<8>(row, at, weights, n, to + at, factor);
  if constexpr (M > 4)
    for (; at + 4 <= columns; at += 4) add_columns<4>(row, at, weights, n, to + at, factor);
  for (; at < columns; ++at) add_columns<1>(row, at, weights, n, to + at, factor);
}
}  // namespace nb
