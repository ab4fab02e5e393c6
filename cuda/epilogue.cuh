// epilogue.cuh - writes a warp's accumulators to a tensor, through shared memory, in chunks of 16 bytes.
#pragma once
#include "mma.cuh"

namespace nb {
// Row r is multiplied by factor[r]; `staging` loses this warp's rows. to(row) is the destination, or null to skip it.
template <int kChannels, class Tile, int kPadded, class Target>
NB_DEVICE void store_rows(const Tile& staging, const Fragment<kPadded>& sums,
                          const float (&factor)[Variant::kRowBlocks][2], const Target& to) {
  constexpr int kChunks = kChannels / 8, kRows = Variant::kRowBlocks * 16;
  __syncwarp();
#pragma unroll
  for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int n = 0; n < kChunks; ++n)
        *reinterpret_cast<uint32_t*>(staging.chunk(row_of(b, h), n) + threadIdx.x % 4 * 2) = pack2<Element>(
            sums.at[b][n][2 * h] * factor[b][h], sums.at[b][n][2 * h + 1] * factor[b][h]);
  __syncwarp();
  const int first = threadIdx.x / 32 * kRows;
  for (int i = threadIdx.x % 32; i < kRows * kChunks; i += 32) {
    const int row = first + i / kChunks;
    Element* const target = to(row);
    if (target)
      *reinterpret_cast<uint4*>(target + i % kChunks * 8) =
          *reinterpret_cast<const uint4*>(staging.chunk(row, i % kChunks));
  }
}
}  // namespace nb
