// block.cuh - the tile of rows, the head and the sample of each block, and offsets in contiguous tensors.
#pragma once
#include "walk.cuh"

namespace nb {
struct Block {
  int tile, head, sample;  // head: of the queries in the forward and dQ, of the keys in dK/dV
};

// The tile index varies fastest, so that neighbouring blocks share keys in the L2 cache.
NB_DEVICE Block block_of(const Params& p, int tiles, int heads) {
  const unsigned block = blockIdx.x, head = block / tiles;
  return {static_cast<int>(block % tiles), static_cast<int>(head % heads), static_cast<int>(head / heads)};
}
NB_DEVICE int extra_tiles(const Params& p, int rows) { return ceil_div(p.extra, rows); }

// Offset of extra key `e` in `[B, E, Hk, channels]`, in elements.
NB_DEVICE long long extra_offset(const Params& p, int sample, int e, int key_head, int channels) {
  const int heads = p.heads / p.group;
  return ((static_cast<long long>(sample) * p.extra + e) * heads + key_head) * channels;
}
// Index of a token's head in `[B, *space, H]`, or `[B, *space, Hk]` for keys.
NB_DEVICE long long token_head(const Params& p, int sample, const Place& at, int head, bool keys) {
  const Axis* a = p.axis;
  const int n0 = keys ? a[0].keys : a[0].queries, n1 = keys ? a[1].keys : a[1].queries,
            n2 = keys ? a[2].keys : a[2].queries, heads = keys ? p.heads / p.group : p.heads;
  return (static_cast<long long>(sample) * n0 * n1 * n2 + at.token(n1, n2)) * heads + head;
}
}  // namespace nb
