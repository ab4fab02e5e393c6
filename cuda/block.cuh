// block.cuh - the tile of rows, the head and the sample of each block, and indices in contiguous tensors.
#pragma once
#include "tile_traversal.cuh"

namespace nb {
struct Block {
  int tile, head, sample;  // head: of the queries in the forward and dQ, of the keys in dK/dV
};

// The tile index varies fastest, so that neighbouring blocks share keys in the L2 cache.
NB_DEVICE Block block_of(int tiles, int heads) {
  const unsigned block = blockIdx.x, head = block / tiles;
  return {static_cast<int>(block % tiles), static_cast<int>(head % heads), static_cast<int>(head / heads)};
}
NB_DEVICE int extra_tiles(Interval extra, int extent) { return Variant::kExtra ? ceil_div(extra.size(), extent) : 0; }

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
