// row_output.cuh - writes a warp's rows of accumulators to a tensor, through a swizzled tile, in chunks of 16 bytes.
#pragma once
#include "mma.cuh"
#include "swizzled_tile.cuh"

namespace nb {
// Row r is multiplied by factor[r]; `staging` loses this warp's rows. to(row) is the destination, or null to skip it.
template <int kChannels, class Tile, class Target>
NB_DEVICE void write_rows(const Tile& staging, const Fragment<kChannels>& sums, const float (&factor)[2],
                          const Target& to) {
  constexpr int kChunks = kChannels / 8;
  const int first = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int n = 0; n < kChunks; n += 2) {
    uint32_t rows[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float(&d)[4] = sums.at[0][n + i / 2];
      rows[i] = pack2<Element>(d[i % 2 * 2] * factor[i % 2], d[i % 2 * 2 + 1] * factor[i % 2]);
    }
    stmatrix_x4(staging.chunk(first + lane % 16, n + lane / 16), rows);
  }
  __syncwarp();
  for (int i = lane; i < 16 * kChunks; i += 32) {
    const int row = first + i / kChunks;
    Element* const target = to(row);
    if (target)
      *reinterpret_cast<uint4*>(target + i % kChunks * 8) =
          *reinterpret_cast<const uint4*>(staging.chunk(row, i % kChunks));
  }
}
}  // namespace nb
