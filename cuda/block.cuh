// block.cuh - the grid, the tile of rows, the head and the sample of each block, and indices in contiguous tensors.
#pragma once
#include "element.cuh"
#include "grids.cuh"
#include "tile_traversal.cuh"

namespace nb {
struct Block {
  int tile, head, sample;  // head: of the queries in the forward and dQ, of the keys in dK/dV
};

// The tile index varies fastest, so that neighbouring blocks share keys in the L2 cache.
NB_DEVICE Block block_of(unsigned block, int tiles, int heads) {
  const unsigned head = block / tiles;
  return {static_cast<int>(block % tiles), static_cast<int>(head % heads), static_cast<int>(head / heads)};
}
NB_DEVICE int extra_tiles(Interval extra, int extent) { return Variant::kExtra ? ceil_div(extra.size(), extent) : 0; }

// Kernels in the order of `Grid::first_tile`.
enum Kernel { kForwardKernel = 0, kGradQueryKernel = 1, kGradKeyKernel = 2 };

// The last grid with no more than `tile` tiles before it. Each lane of a warp looks at one of 32 evenly spaced grids.
template <Kernel kKernel>
NB_DEVICE int grid_of(const Grid* grids, int count, int tile) {
  int first = 0;
  while (count > 1) {
    const int step = ceil_div(count, 32), own = static_cast<int>(threadIdx.x % 32) * step;
    const bool before = own < count && grids[first + own].first_tile[kKernel] <= tile;
    const int skipped = (__popc(__ballot_sync(~0u, before)) - 1) * step;
    first += skipped;
    count = min_of(step, count - skipped);
  }
  return first;
}

// At the end of the shared memory: the parameters of the block's grid, and the number of its first block.
struct alignas(16) OnGrid {
  Params params;
  unsigned first_block;
};
constexpr int kGridBytes = Variant::kGrids ? sizeof(OnGrid) : 0;

// Runs a kernel with the parameters of the block's grid and the block's number in it.
template <Kernel kKernel, class Run>
NB_DEVICE void on_grid(const Params& p, const Run& run) {
  if constexpr (Variant::kGrids) {
    NB_DYNAMIC_SHARED(shared);
    OnGrid& own = *reinterpret_cast<OnGrid*>(shared + NB_SHARED_BYTES - kGridBytes);
    if (threadIdx.x < 32) {
      const int heads = kKernel == kGradKeyKernel ? p.heads / p.group : p.heads;
      const Grid* const grids = static_cast<const Grid*>(p.grids);
      const int number = grid_of<kKernel>(grids, p.grid_count, static_cast<int>(blockIdx.x / heads));
      if (threadIdx.x == 0) {
        own.params = p;
        own.first_block = static_cast<unsigned>(grids[number].first_tile[kKernel]) * heads;
        set_grid(own.params, grids[number], number,
                 {sizeof(Element), sizeof(Accumulator), Variant::kHeadDim, Variant::kValueDim});
      }
    }
    __syncthreads();
    run(own.params, blockIdx.x - own.first_block);
  } else {
    run(p, blockIdx.x);
  }
}

// Offset of extra key `e` in `[B, E, Hk, channels]`, in elements.
NB_DEVICE long long extra_offset(const Params& p, int sample, int e, int key_head, int channels) {
  const int heads = p.heads / p.group;
  return ((static_cast<long long>(sample) * p.extra + e) * heads + key_head) * channels;
}

// Steps, in heads, of `[B, *space, H]` for queries and `[B, *space, Hk]` for keys. Packed query heads are axis 0:
// then heads, in a block, are those of the keys.
struct TokenSteps {
  long long batch, axis[3], head;
  NB_DEVICE long long of(int sample, int h, const Coord& coord) const {
    return sample * batch + h * head + coord.at[0] * axis[0] + coord.at[1] * axis[1] + coord.at[2] * axis[2];
  }
};
template <bool kKeys>
NB_DEVICE TokenSteps token_steps(const Params& p) {
  const Held* held = p.held;
  const int n0 = kKeys ? held[0].keys : held[0].queries, n1 = kKeys ? held[1].keys : held[1].queries,
            n2 = kKeys ? held[2].keys : held[2].queries, heads = kKeys ? p.heads / p.group : p.heads;
  TokenSteps s;
  s.axis[2] = kKeys ? heads : static_cast<long long>(heads) * p.packed;
  s.axis[1] = s.axis[2] * n2;
  s.axis[0] = kKeys || p.packed == 1 ? s.axis[1] * n1 : 1;
  s.batch = kKeys || p.packed == 1 ? s.axis[0] * n0 : s.axis[1] * n1;
  s.head = kKeys ? 1 : p.packed;
  return s;
}
}  // namespace nb
