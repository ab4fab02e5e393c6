// products.h - the two matrix products: of scores, whose vectors are lanes, and of sums, whose vectors are channels. The
// other factor is broadcast, number by number.
#pragma once
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "vector.h"

namespace nb {
// Columns of a product of scores that keep the registers busy, chosen on Zen 4: fewer leave the multiplier waiting, more
// do not fit the registers.
template <class F>
constexpr int kRowsAtOnce = kRegisters == 32 ? (kVectors<F> == 1 ? 10 : kVectors<F> == 2 ? 8 : kVectors<F> == 4 ? 6 : 3)
                                             : (kVectors<F> == 2 ? 5 : kVectors<F> == 4 ? 2 : 1);
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

// Rows of numbers in a list: row i is number[i] of those at `data`.
template <class F>
struct RowList {
  F* data;
  long width;
  const int* number;
  NB_INLINE F* operator[](int i) const { return data + number[i] * width; }
};
constexpr int kInOrder[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

template <class F>
constexpr int kChannels = kVectorBytes / int(sizeof(F));  // of a vector
// A block of sums is so many vectors of channels wide, and so many rows high: it fits the registers, with a row's
// vectors and a weight.
constexpr int kBlockVectors = kRegisters == 32 ? 4 : 2;
constexpr int block_rows(int vectors) {
  if (kRegisters == 32) return vectors == 1 ? 16 : vectors == 4 ? 6 : 8;
  return vectors == 1 ? 8 : 6;
}
// The weight of row k of what is added in sum r is data[r * sum + k * row].
template <class F>
struct Weights {
  const F* data;
  long sum, row;
};

// to[r] = to[r] * factor[r] + sum over k < n of weight(r, k) * from[k], for R sums from `first` on and C vectors of
// channels from `at` on; without factors they count as 1.
template <int R, int C, class F>
NB_APART void add_block(const RowList<F>& to, int first, long at, const RowList<const F>& from, int n,
                        const Weights<F>& weights, const F* factor) {
  typedef typename Simd<F>::V V;
  V sum[R][C];
  NB_UNROLL for (int r = 0; r < R; ++r) {
    const V* const old = reinterpret_cast<const V*>(to[first + r] + at);
    NB_UNROLL for (int c = 0; c < C; ++c) sum[r][c] = factor ? old[c] * splat<F>(factor[first + r]) : old[c];
  }
  const F* weight = weights.data + first * weights.sum;
  for (int k = 0; k < n; ++k, weight += weights.row) {
    const V* const row = reinterpret_cast<const V*>(from[k] + at);
    V x[C];
    NB_UNROLL for (int c = 0; c < C; ++c) x[c] = row[c];
    NB_UNROLL for (int r = 0; r < R; ++r) {
      const V y = splat<F>(weight[r * weights.sum]);
      NB_UNROLL for (int c = 0; c < C; ++c) sum[r][c] += x[c] * y;
    }
  }
  NB_UNROLL for (int r = 0; r < R; ++r) {
    V* const now = reinterpret_cast<V*>(to[first + r] + at);
    NB_UNROLL for (int c = 0; c < C; ++c) now[c] = sum[r][c];
  }
}
template <int C, class F>
inline void add_channels(const RowList<F>& to, int sums, long at, const RowList<const F>& from, int n,
                         const Weights<F>& weights, const F* factor) {
  constexpr int R = block_rows(C);
  int r = 0;
  for (; r + R <= sums; r += R) add_block<R, C>(to, r, at, from, n, weights, factor);
  for (; r + 4 <= sums; r += 4) add_block<4, C>(to, r, at, from, n, weights, factor);
  for (; r < sums; ++r) add_block<1, C>(to, r, at, from, n, weights, factor);
}
// The same for all sums and channels, a multiple of those of a vector.
template <class F>
inline void add_rows(const RowList<F>& to, int sums, const RowList<const F>& from, int n, const Weights<F>& weights,
                     int channels, const F* factor = nullptr) {
  constexpr int L = kChannels<F>;
  long at = 0;
  for (; at + kBlockVectors * L <= channels; at += kBlockVectors * L)
    add_channels<kBlockVectors>(to, sums, at, from, n, weights, factor);
  if constexpr (kBlockVectors > 2) {
    if (channels - at == 3 * L) return add_channels<3>(to, sums, at, from, n, weights, factor);
    if (channels - at == 2 * L) return add_channels<2>(to, sums, at, from, n, weights, factor);
  }
  if (at < channels) add_channels<1>(to, sums, at, from, n, weights, factor);
}
}  // namespace nb
