// mma.cuh - shared by the tensor-core kernels: tiles of vectors in shared memory, and the two matrix products of
// attention on fragments. A warp computes 16 x NB_ROW_BLOCKS rows; ptx.cuh defines the layout of accumulators.
#pragma once
#include "block.cuh"
#include "element.cuh"
#include "ptx.cuh"

namespace nb {
constexpr int kWarps = NB_WARPS, kThreads = 32 * kWarps, kBlocks = NB_ROW_BLOCKS, kStages = NB_STAGES;
constexpr int kHeadDim = NB_HEAD_DIM, kValueDim = NB_VALUE_DIM;
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Accumulators of a warp's rows: their scores with kColumns columns, or their sums in kColumns channels.
template <int kColumns>
struct Fragment {
  float at[kBlocks][kColumns / 8][4];
  NB_DEVICE void clear() {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) at[b][n][e] = 0.f;
  }
};

// kVectors vectors of channels in shared memory, padded with zeros to a multiple of 16 channels. One more chunk of
// 16 bytes makes the number of chunks per vector odd, so the 8 vectors of a matrix are in different banks.
template <int kVectors, int kChannels>
struct SharedTile {
  static constexpr int kPadded = (kChannels + 15) / 16 * 16, kPitch = kPadded + 8, kChunks = kPadded / 8;
  static constexpr int kBytes = kVectors * kPitch * 2;
  Element* data;

  NB_DEVICE Element* chunk(int vector, int c) const { return data + vector * kPitch + c * 8; }

  // Copies vector i from source(i), a pointer to kGiven channels or null for zeros; `base` is any legal address,
  // `step` the channel stride. The vectors can be used after the next cp_async_wait and barrier.
  template <int kGiven = kChannels, class Source>
  NB_DEVICE void load(const Source& source, const void* base, long long step) const {
#pragma unroll 4
    for (int i = threadIdx.x; i < kVectors * kChunks; i += kThreads) {
      const int vector = i / kChunks, c = i % kChunks;
      const Element* const from = source(vector);
      const bool inside = from && c * 8 < kGiven;
#if NB_VECTOR
      cp_async16(chunk(vector, c), inside ? from + c * 8 : base, inside);
#else
      for (int e = 0; e < 8; ++e) chunk(vector, c)[e] = inside ? from[(c * 8 + e) * step] : Element(0.f);
#endif
    }
  }

  // Loads this warp's rows as operand a: channels 16 k to 16 k + 15 of row block b.
  NB_DEVICE void rows(uint32_t (&a)[4], int b, int k) const {
    const int lane = threadIdx.x % 32, row = (threadIdx.x / 32 * kBlocks + b) * 16;
    ldmatrix_x4(a, chunk(row + lane % 16, k * 2 + lane / 16));
  }
  // Loads vectors 16 n to 16 n + 15 as columns: two operands b with channels 16 k to 16 k + 15.
  NB_DEVICE void columns(uint32_t (&b)[4], int n, int k) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(b, chunk(n * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
  }
  // Loads vectors 16 k to 16 k + 15 as the summed dimension: two operands b with channels 16 n to 16 n + 15.
  NB_DEVICE void summed(uint32_t (&b)[4], int k, int n) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(b, chunk(k * 16 + lane % 16, n * 2 + lane / 16));
  }
};

// This warp's rows of a tile in registers: loaded once instead of once per visit.
template <int kChannels>
struct KeptRows {
  static constexpr int kSteps = (kChannels + 15) / 16;
  uint32_t at[kBlocks][kSteps][4];
  template <class Tile>
  NB_DEVICE void keep(const Tile& tile) {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int k = 0; k < kSteps; ++k) tile.rows(at[b][k], b, k);
  }
  NB_DEVICE void rows(uint32_t (&a)[4], int b, int k) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = at[b][k][i];
  }
};

// scores[r][c] = dot product of this warp's row r and vector c over kChannels channels.
template <int kColumns, int kChannels, class RowTile, class ColumnTile>
NB_DEVICE void dot(Fragment<kColumns>& scores, const RowTile& rows, const ColumnTile& vectors) {
  scores.clear();
#pragma unroll
  for (int k = 0; k < (kChannels + 15) / 16; ++k) {
    uint32_t a[kBlocks][4];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) rows.rows(a[b], b, k);
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t operand[4];
      vectors.columns(operand, n, k);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        mma_m16n8k16<Element>(scores.at[b][2 * n], a[b], operand[0], operand[1]);
        mma_m16n8k16<Element>(scores.at[b][2 * n + 1], a[b], operand[2], operand[3]);
      }
    }
  }
}

// sums += weights times vectors; the weights are rounded to the element type.
template <int kColumns, int kPadded, class ColumnTile>
NB_DEVICE void accumulate(Fragment<kPadded>& sums, const Fragment<kColumns>& weights, const ColumnTile& vectors) {
#pragma unroll
  for (int k = 0; k < kColumns / 16; ++k) {
    uint32_t a[kBlocks][4];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const auto& w = weights.at[b];
      a[b][0] = pack2<Element>(w[2 * k][0], w[2 * k][1]);
      a[b][1] = pack2<Element>(w[2 * k][2], w[2 * k][3]);
      a[b][2] = pack2<Element>(w[2 * k + 1][0], w[2 * k + 1][1]);
      a[b][3] = pack2<Element>(w[2 * k + 1][2], w[2 * k + 1][3]);
    }
#pragma unroll
    for (int n = 0; n < kPadded / 16; ++n) {
      uint32_t operand[4];
      vectors.summed(operand, k, n);
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        mma_m16n8k16<Element>(sums.at[b][2 * n], a[b], operand[0], operand[1]);
        mma_m16n8k16<Element>(sums.at[b][2 * n + 1], a[b], operand[2], operand[3]);
      }
    }
  }
}

// The row, in the tile, of half h (0, 1) of row block b in this thread's fragment.
NB_DEVICE int row_of(int b, int h) {
  return (threadIdx.x / 32 * kBlocks + b) * 16 + threadIdx.x % 32 / 4 + h * 8;
}
// The column of this thread's element j (0, 1) in fragment n.
NB_DEVICE int column_of(int n, int j) { return n * 8 + threadIdx.x % 4 * 2 + j; }

// Computes scores in units of log 2 from products of queries and keys.
struct Scores {
  float scale, bend, cap;  // score scale x log2(e); scale of tanh's argument; softcap x log2(e)
  NB_DEVICE explicit Scores(const Params& p)
      : scale(static_cast<float>(p.scale) * kLog2e),
        bend(p.softcap ? static_cast<float>(p.scale / p.softcap) : 0.f),
        cap(static_cast<float>(p.softcap) * kLog2e) {}
  NB_DEVICE float of(float product) const {
#if NB_SOFTCAP
    const float x = product * bend, square = x * x;
    // Near 0, where a large cap puts all scores, `far` would lose digits; the series has an error of 3e-7 there.
    const float near = x * (1.f + square * (-1.f / 3 + square * (2.f / 15 - square * (17.f / 315))));
    const float far = 1.f - 2.f * reciprocal(1.f + ex2(2 * kLog2e * x));
    return cap * (square < 0.0625f ? near : far);
#else
    return product * scale;
#endif
  }
  // Derivative of the softcap at a score; the score may be masked (-inf).
  NB_DEVICE float slope(float score) const {
#if NB_SOFTCAP
    const float bent = fmaxf(score, -cap) / cap;
    return 1.f - bent * bent;
#else
    return 1.f;
#endif
  }
};

// A logsumexp in units of log 2; 0 for rows without keys, whose scores are all masked.
NB_DEVICE float in_log2(float lse) { return lse == -NB_INFINITY ? 0.f : lse * kLog2e; }

// Replaces products by scores.
template <int kColumns>
NB_DEVICE void score(Fragment<kColumns>& s, const Scores& scores) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) s.at[b][n][e] = scores.of(s.at[b][n][e]);
}

// Writes this warp's accumulator rows, row r times factor[r], through shared memory `staging`, which overwrites this
// warp's rows there. to(row) is the destination, or null to skip the row.
template <int kChannels, class Tile, int kPadded, class Target>
NB_DEVICE void store_rows(const Tile& staging, const Fragment<kPadded>& sums, const float (&factor)[kBlocks][2],
                          const Target& to) {
  constexpr int kChunks = kChannels / 8;
  __syncwarp();
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int n = 0; n < kChunks; ++n)
        *reinterpret_cast<uint32_t*>(staging.chunk(row_of(b, h), n) + threadIdx.x % 4 * 2) = pack2<Element>(
            sums.at[b][n][2 * h] * factor[b][h], sums.at[b][n][2 * h + 1] * factor[b][h]);
  __syncwarp();
  const int first = threadIdx.x / 32 * kBlocks * 16;
  for (int i = threadIdx.x % 32; i < kBlocks * 16 * kChunks; i += 32) {
    const int row = first + i / kChunks;
    Element* const target = to(row);
    if (target)
      *reinterpret_cast<uint4*>(target + i % kChunks * 8) =
          *reinterpret_cast<const uint4*>(staging.chunk(row, i % kChunks));
  }
}
}  // namespace nb
