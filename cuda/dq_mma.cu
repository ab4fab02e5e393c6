// dq_mma.cu - gradients of the queries on tensor cores: the same walk as the forward, with the weights recomputed
// from the final logsumexp. Both products of a visit use the keys.
#include "vectors.cuh"

namespace nb {
constexpr int kRows = QueryTile::size, kColumns = KeyTile::size;
using RowVectors = SharedTile<kRows, kHeadDim>;  // the queries; at the end their gradients
using GradVectors = SharedTile<kRows, kValueDim>;
using KeyVectors = SharedTile<kColumns, kHeadDim>;
using ValueVectors = SharedTile<kColumns, kValueDim>;
using Weights = Fragment<kColumns>;
using Sums = Fragment<KeyVectors::kPadded>;
static_assert(kRows == 16 * kWarps * kBlocks && kColumns % 16 == 0, "fragments are 16 x 16");
constexpr int kStageBytes = KeyVectors::kBytes + ValueVectors::kBytes;
static_assert(NB_SHARED_BYTES ==
                  Walk<QueryTile>::kBytes + RowVectors::kBytes + GradVectors::kBytes + kStages * kStageBytes,
              "nbattn/backends/cuda/tiles.py has drifted");

struct Statistics {  // this thread's rows: their logsumexp in units of log 2, and delta
  float lse[kBlocks][2], delta[kBlocks][2];
};

NB_DEVICE void load(Statistics& rows, const Params& p, const Walk<QueryTile>& walk, const Block& block) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Place place = row_place(walk, row_of(b, h));
      const long long token = place.inside ? token_head(p, block.sample, place, block.head, false) : 0;
      rows.lse[b][h] = place.inside ? in_log2(static_cast<const float*>(p.lse)[token]) : 0.f;
      rows.delta[b][h] = place.inside ? static_cast<const float*>(p.delta)[token] : 0.f;
    }
}

// Replaces scores by the gradients of the products.
NB_DEVICE void grad(Weights& s, const Weights& grads, const Scores& scores, const Statistics& rows) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& x = s.at[b][n][e];
        const float weight = ex2(x - rows.lse[b][e / 2]);
        const float change = weight * scores.slope(x) * (grads.at[b][n][e] - rows.delta[b][e / 2]);
        x = weight == 0.f ? 0.f : change;  // `change` may be infinite or NaN in masked pairs
      }
}

NB_DEVICE void grad_queries(const Params& p) {
  NB_DYNAMIC_SHARED(shared);
  auto& walk = *reinterpret_cast<Walk<QueryTile>*>(shared);
  unsigned char* const vectors = shared + Walk<QueryTile>::kBytes;
  const RowVectors query{reinterpret_cast<Element*>(vectors)};
  const GradVectors grad_out{reinterpret_cast<Element*>(vectors + RowVectors::kBytes)};
  const auto stage = [&](int n) {
    return vectors + RowVectors::kBytes + GradVectors::kBytes + n % kStages * kStageBytes;
  };
  const auto key = [&](int n) { return KeyVectors{reinterpret_cast<Element*>(stage(n))}; };
  const auto value = [&](int n) { return ValueVectors{reinterpret_cast<Element*>(stage(n) + KeyVectors::kBytes)}; };
  const Block block = block_of(p, row_tiles<false, QueryTile>(p), p.heads);
  const int key_head = block.head / p.group;
  begin_walk<false, QueryTile, KeyTile>(walk, p, block.tile, block.sample);
  if (!has_rows(walk)) return;

  const int visits = walk.total + extra_tiles(p, kColumns);
  const auto fetch = [&](int n) {
    if (n < visits)
      load_keys(key(n), value(n), walk, visit<KeyTile>(walk, n, p.extra), p, block.sample, key_head);
    cp_async_commit();
  };
  load_rows<kHeadDim>(query, walk, p.query, p.query_stride, block.sample, block.head);
  load_rows<kValueDim>(grad_out, walk, p.grad_out, p.grad_out_stride, block.sample, block.head);
#pragma unroll
  for (int n = 0; n < kStages - 1; ++n) fetch(n);

  const Scores scores(p);
  Statistics rows;
  load(rows, p, walk, block);
  Sums sums;
  sums.clear();
  for (int n = 0; n < visits; ++n) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // tile n is loaded for all threads, and all have used tile n - 1
    fetch(n + kStages - 1);
    Weights s, grads;
    dot<kColumns, kHeadDim>(s, query, key(n));
    score(s, scores);
    hide_from_queries(s, -NB_INFINITY, walk, visit<KeyTile>(walk, n, p.extra));
    dot<kColumns, kValueDim>(grads, grad_out, value(n));
    grad(s, grads, scores, rows);
    accumulate(sums, s, key(n));
  }
  cp_async_wait<0>();
  __syncthreads();  // without visits, all vectors must be loaded before the gradients overwrite them

  float factor[kBlocks][2];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) factor[b][0] = factor[b][1] = static_cast<float>(p.scale);
  store_rows<kHeadDim>(query, sums, factor, [&](int row) -> Element* {
    const Place place = row_place(walk, row);
    if (!place.inside) return nullptr;
    return static_cast<Element*>(p.grad_query) + token_head(p, block.sample, place, block.head, false) * kHeadDim;
  });
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, NB_WARPS > 4 ? 1 : 2)
    nb_dq_mma(const __grid_constant__ nb::Params p) {
  nb::grad_queries(p);
}
