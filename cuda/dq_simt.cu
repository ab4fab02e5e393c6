// dq_simt.cu - gradients of the queries without tensor cores: the same traversal as the forward, with the weights
// recomputed from the final logsumexp.
#include "simt.cuh"

namespace nb {
using Queries = Arena<QueryTile, KeyTile>;

NB_DEVICE void grad_queries(const Params& p, unsigned number) {
  constexpr int kOwn = Queries::kOwn;
  NB_DYNAMIC_SHARED(shared);
  Queries arena(shared);
  const Block block = block_of(number, row_tiles<false, QueryTile>(p), p.heads);
  const int key_head = block.head / p.group, lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes * kOwn;
  begin_traversal<false, QueryTile, KeyTile>(*arena.traversal, p, block.tile, block.sample);
  if (!has_rows(*arena.traversal)) return;
  query_rows(arena, p, block);
  __syncthreads();
  Accumulator lse[kOwn], delta[kOwn], scale[kOwn];
#pragma unroll
  for (int r = 0; r < kOwn; ++r) {
    const long long token = arena.row_token[own + r];
    lse[r] = token < 0 ? Accumulator(0) : static_cast<const Accumulator*>(p.lse)[token];
    delta[r] = token < 0 ? Accumulator(0) : static_cast<const Accumulator*>(p.delta)[2 * token + 1];
    scale[r] = static_cast<Accumulator>(p.scale);
  }

  Accumulator sums[Chunks<kHeadDim>::count][kOwn] = {};
  const AddedScores<false, QueryTile, KeyTile> added(p, block.sample, block.head);
  const Interval extra = extra_keys(p, block.sample);
  const int visits = arena.traversal->total + extra_tiles(extra, KeyTile::size);
  for (int n = 0; n < visits; ++n) {
    const Visit v = visit<KeyTile>(*arena.traversal, n, extra);
    const void *key = v.extra ? p.extra_key : p.key, *value = v.extra ? p.extra_value : p.value;
    const long long key_step = v.extra ? 1 : p.key_stride.channel, value_step = v.extra ? 1 : p.value_stride.channel;
    __syncthreads();  // all threads have used the offsets of the previous visit
    key_columns(arena, p, v, block.sample, key_head);
    Accumulator products[kOwn], grads[kOwn];
    arena.scores(products, p.query, arena.row_a, p.query_stride.channel, key, arena.column_a, key_step, kHeadDim);
    arena.scores(grads, p.grad_out, arena.row_b, p.grad_out_stride.channel, value, arena.column_b, value_step,
                 kValueDim);
    const bool inside = !v.extra || lane < v.count[2];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      Accumulator slope;
      const Accumulator capped = score_of(p, products[r], &slope);
      const bool read =
          inside && (v.full || v.extra || attends<QueryTile, KeyTile>(*arena.traversal, v, own + r, lane));
      const Accumulator score = with_bias(capped, added, p, *arena.traversal, v, own + r, read);
      arena.keep(r, read ? exp_of(score - lse[r]) * (grads[r] - delta[r]) * slope : Accumulator(0));
    }
    arena.accumulate<kHeadDim>(sums, key, arena.column_a, key_step);
  }
  arena.write<kHeadDim>(p.grad_query, arena.row_token, sums, scale);
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(128) nb_dq_simt(const __grid_constant__ nb::Params p) {
  nb::on_grid<nb::kGradQueryKernel>(p, [](const nb::Params& own, unsigned number) { nb::grad_queries(own, number); });
}
