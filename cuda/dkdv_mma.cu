// dkdv_mma.cu - gradients of keys and values on tensor cores: rows are keys, columns the queries that attend to
// them, in all query heads of the key head. So only one block adds to a row, without atomics. The last blocks
// compute the extra keys.
#include "vectors.cuh"

namespace nb {
constexpr int kRows = KeyTile::size, kColumns = QueryTile::size;
using KeyVectors = SharedTile<kRows, kHeadDim>;  // the keys; at the end their gradients
using ValueVectors = SharedTile<kRows, kValueDim>;
using QueryVectors = SharedTile<kColumns, kHeadDim>;
using GradVectors = SharedTile<kColumns, kValueDim>;
using Weights = Fragment<kColumns>;
static_assert(kRows == 16 * kWarps * kBlocks && kColumns % 16 == 0, "fragments are 16 x 16");
constexpr int kStageBytes = QueryVectors::kBytes + GradVectors::kBytes + 8 * kColumns;
static_assert(NB_SHARED_BYTES ==
                  Walk<KeyTile>::kBytes + KeyVectors::kBytes + ValueVectors::kBytes + kStages * kStageBytes,
              "nbattn/backends/cuda/tiles.py has drifted");

struct Stage {  // one tile of queries in shared memory
  QueryVectors query;
  GradVectors grad_out;
  float *lse, *delta;  // one per column; lse in units of log 2
  NB_DEVICE explicit Stage(unsigned char* at)
      : query{reinterpret_cast<Element*>(at)},
        grad_out{reinterpret_cast<Element*>(at + QueryVectors::kBytes)},
        lse(reinterpret_cast<float*>(at + QueryVectors::kBytes + GradVectors::kBytes)),
        delta(lse + kColumns) {}

  NB_DEVICE void load(const Walk<KeyTile>& walk, const Params& p, const Visit& v, int sample, int head) const {
    load_columns<QueryTile>(query, walk, v, p.query, p.query_stride, sample, head);
    load_columns<QueryTile>(grad_out, walk, v, p.grad_out, p.grad_out_stride, sample, head);
    for (int i = threadIdx.x; i < kColumns; i += kThreads) {
      const Place place = column_place<QueryTile>(walk, v, i);
      const long long token = place.inside ? token_head(p, sample, place, head, false) : 0;
      lse[i] = place.inside ? in_log2(static_cast<const float*>(p.lse)[token]) : 0.f;
      delta[i] = place.inside ? static_cast<const float*>(p.delta)[token] : 0.f;
    }
  }
};

// Replaces scores by weights, and computes the slopes of the softcap.
NB_DEVICE void weigh(Weights& s, Weights& slopes, const Stage& stage, const Scores& scores) {
#pragma unroll
  for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float lse = stage.lse[column_of(n, e % 2)];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        slopes.at[b][n][e] = scores.slope(s.at[b][n][e]);
        s.at[b][n][e] = ex2(s.at[b][n][e] - lse);
      }
    }
}

// Replaces weights by the gradients of the products.
NB_DEVICE void grad(Weights& s, const Weights& slopes, const Weights& grads, const Stage& stage) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = s.at[b][n][e];
        const float change = slopes.at[b][n][e] * (grads.at[b][n][e] - stage.delta[column_of(n, e % 2)]);
        x = x == 0.f ? 0.f : x * change;  // `change` may be infinite or NaN in masked pairs
      }
}

// Writes the tile's rows to a gradient `[B, *key_space, Hk, kChannels]`, or to the extra keys' `[B, E, Hk, kChannels]`.
template <int kChannels, class Tile, class Sums>
NB_DEVICE void finish(const Params& p, const Walk<KeyTile>& walk, const Block& block, const Tile& staging,
                      const Sums& sums, float scale, void* grid, void* extra) {
  float factor[kBlocks][2];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) factor[b][0] = factor[b][1] = scale;
  store_rows<kChannels>(staging, sums, factor, [&](int row) -> Element* {
    if (walk.extra >= 0) {
      const int e = walk.extra + row;
      if (e >= p.extra) return nullptr;
      return static_cast<Element*>(extra) + extra_offset(p, block.sample, e, block.head, kChannels);
    }
    const Place place = row_place(walk, row);
    if (!place.inside) return nullptr;
    return static_cast<Element*>(grid) + token_head(p, block.sample, place, block.head, true) * kChannels;
  });
}

NB_DEVICE void load_key_rows(const KeyVectors& key, const ValueVectors& value, const Walk<KeyTile>& walk,
                             const Params& p, const Block& block) {
  if (walk.extra >= 0) {
    const int count = min_of(kRows, p.extra - walk.extra);
    load_extra(key, p, p.extra_key, kHeadDim, walk.extra, count, block.sample, block.head);
    load_extra(value, p, p.extra_value, kValueDim, walk.extra, count, block.sample, block.head);
  } else {
    load_rows<kHeadDim, true>(key, walk, p.key, p.key_stride, block.sample, block.head);
    load_rows<kValueDim, true>(value, walk, p.value, p.value_stride, block.sample, block.head);
  }
}

NB_DEVICE void grad_keys(const Params& p) {
  NB_DYNAMIC_SHARED(shared);
  auto& walk = *reinterpret_cast<Walk<KeyTile>*>(shared);
  unsigned char* const vectors = shared + Walk<KeyTile>::kBytes;
  const KeyVectors key{reinterpret_cast<Element*>(vectors)};
  const ValueVectors value{reinterpret_cast<Element*>(vectors + KeyVectors::kBytes)};
  const auto stage = [&](int n) {
    return Stage(vectors + KeyVectors::kBytes + ValueVectors::kBytes + n % kStages * kStageBytes);
  };
  const Block block = block_of(p, row_tiles<true, KeyTile>(p) + extra_tiles(p, kRows), p.heads / p.group);
  begin_walk<true, KeyTile, QueryTile>(walk, p, block.tile, block.sample);
  if (walk.extra < 0 && !has_rows(walk)) return;

  const int visits = walk.total * p.group;
  const auto fetch = [&](int n) {
    if (n < visits)
      stage(n).load(walk, p, visit<QueryTile>(walk, n % walk.total, 0), block.sample,
                    block.head * p.group + n / walk.total);
    cp_async_commit();
  };
  load_key_rows(key, value, walk, p, block);
#pragma unroll
  for (int n = 0; n < kStages - 1; ++n) fetch(n);

  const Scores scores(p);
#if NB_GRADS & 1
  Fragment<GradVectors::kPadded> value_sums;
  value_sums.clear();
#endif
#if NB_GRADS & 2
  Fragment<QueryVectors::kPadded> key_sums;
  key_sums.clear();
#endif
  for (int n = 0; n < visits; ++n) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // tile n is loaded for all threads, and all have used tile n - 1
    fetch(n + kStages - 1);
    const Stage here = stage(n);
    Weights s, slopes;
    dot<kColumns, kHeadDim>(s, key, here.query);
    score(s, scores);
    hide_from_keys(s, -NB_INFINITY, walk, visit<QueryTile>(walk, n % walk.total, 0));
    weigh(s, slopes, here, scores);
#if NB_GRADS & 1
    accumulate(value_sums, s, here.grad_out);
#endif
#if NB_GRADS & 2
    Weights grads;
    dot<kColumns, kValueDim>(grads, value, here.grad_out);
    grad(s, slopes, grads, here);
    accumulate(key_sums, s, here.query);
#endif
  }
  cp_async_wait<0>();
  __syncthreads();  // without visits, all vectors must be loaded before the gradients overwrite them
#if NB_GRADS & 1
  finish<kValueDim>(p, walk, block, value, value_sums, 1.f, p.grad_value, p.grad_extra_value);
#endif
#if NB_GRADS & 2
  finish<kHeadDim>(p, walk, block, key, key_sums, static_cast<float>(p.scale), p.grad_key, p.grad_extra_key);
#endif
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, NB_WARPS > 4 ? 1 : 2)
    nb_dkdv_mma(const __grid_constant__ nb::Params p) {
  nb::grad_keys(p);
}
