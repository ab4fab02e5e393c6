// mma.cuh - the two matrix products of attention on fragments. A warp computes 16 x kRowBlocks rows; ptx.cuh defines
// the layout of accumulators.
#pragma once
#include "shared_tile.cuh"

namespace nb {
// Accumulators of a warp's rows: their scores with kColumns columns, or their sums in kColumns channels.
template <int kColumns>
struct Fragment {
  float at[Variant::kRowBlocks][kColumns / 8][4];
  NB_DEVICE void clear() {
#pragma unroll
    for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) at[b][n][e] = 0.f;
  }
};

template <int kColumns>
NB_DEVICE void clear_row(Fragment<kColumns>& sums, int b, int h) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n) sums.at[b][n][2 * h] = sums.at[b][n][2 * h + 1] = 0.f;
}

// The row, in the tile, of half h (0, 1) of row block b in this thread's fragment.
NB_DEVICE int row_of(int b, int h) {
  return (threadIdx.x / 32 * Variant::kRowBlocks + b) * 16 + threadIdx.x % 32 / 4 + h * 8;
}
// The column of this thread's element j (0, 1) in fragment n.
NB_DEVICE int column_of(int n, int j) { return n * 8 + threadIdx.x % 4 * 2 + j; }

// products[r][c] = dot product of this warp's row r and vector c over kChannels channels.
// HMMA of a visit: kRowBlocks x kColumns / 8 x kChannels / 16. An LDSM loads two column operands for all row blocks.
template <int kColumns, int kChannels, class RowTile, class ColumnTile>
NB_DEVICE void dot(Fragment<kColumns>& products, const RowTile& rows, const ColumnTile& vectors) {
#pragma unroll
  for (int k = 0; k < (kChannels + 15) / 16; ++k) {
    uint32_t a[Variant::kRowBlocks][4];
#pragma unroll
    for (int b = 0; b < Variant::kRowBlocks; ++b) rows.load_a(a[b], b, k);
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t operand[4];
      vectors.load_b(operand, n, k);
#pragma unroll
      for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float(&d)[4] = products.at[b][2 * n + i];
          if (k == 0) mma_m16n8k16_first<Element>(d, a[b], operand[2 * i], operand[2 * i + 1]);
          else mma_m16n8k16<Element>(d, a[b], operand[2 * i], operand[2 * i + 1]);
        }
    }
  }
}

// sums += weights times vectors; the weights are rounded to the element type.
template <int kColumns, int kPadded, class ColumnTile>
NB_DEVICE void accumulate(Fragment<kPadded>& sums, const Fragment<kColumns>& weights, const ColumnTile& vectors) {
#pragma unroll
  for (int k = 0; k < kColumns / 16; ++k) {
    uint32_t a[Variant::kRowBlocks][4];
#pragma unroll
    for (int b = 0; b < Variant::kRowBlocks; ++b) {
      const auto& w = weights.at[b];
      a[b][0] = pack2<Element>(w[2 * k][0], w[2 * k][1]);
      a[b][1] = pack2<Element>(w[2 * k][2], w[2 * k][3]);
      a[b][2] = pack2<Element>(w[2 * k + 1][0], w[2 * k + 1][1]);
      a[b][3] = pack2<Element>(w[2 * k + 1][2], w[2 * k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < kPadded / 16; ++n) {
      uint32_t operand[4];
      vectors.load_b_trans(operand, k, n);
#pragma unroll
      for (int b = 0; b < Variant::kRowBlocks; ++b) {
        mma_m16n8k16<Element>(sums.at[b][2 * n], a[b], operand[0], operand[1]);
        mma_m16n8k16<Element>(sums.at[b][2 * n + 1], a[b], operand[2], operand[3]);
      }
    }
  }
}
}  // namespace nb
