// dkdv_simt.cu - gradients of keys and values without tensor cores: rows are keys, columns the queries that attend
// to them, in all query heads of the key head. The last blocks compute the extra keys.
#include "simt.cuh"

namespace nb {
using Keys = Arena<KeyTile, QueryTile>;

NB_DEVICE void key_rows(Keys& arena, const Params& p, const Block& block) {
  const int extra = arena.traversal->extra;
  const Interval range = extra_keys(p, block.sample);
  const TokenSteps steps = token_steps<true>(p);
  for (int i = threadIdx.x; i < Keys::kRows; i += kThreads) {
    if (extra >= 0) {
      const bool inside = extra + i < p.extra, read = range.has(extra + i);
      arena.row_a[i] = read ? extra_offset(p, block.sample, extra + i, block.head, kHeadDim) : -1;
      arena.row_b[i] = read ? extra_offset(p, block.sample, extra + i, block.head, kValueDim) : -1;
      arena.row_token[i] = inside ? extra_offset(p, block.sample, extra + i, block.head, 1) : -1;
    } else {
      const Coord coord = row_coord(*arena.traversal, i), valid = key_row_coord(*arena.traversal, i);
      arena.row_a[i] = offset_in(p.key_stride, block.sample, block.head, valid);
      arena.row_b[i] = offset_in(p.value_stride, block.sample, block.head, valid);
      arena.row_token[i] = coord.inside ? steps.of(block.sample, block.head, coord) : -1;
    }
  }
}

// Sets the offsets of the columns for the queries of a visit: a in the queries, b in grad_out.
NB_DEVICE void query_columns(Keys& arena, const Params& p, const Visit& v, int sample, int head) {
  const int lane = threadIdx.x;
  if (lane >= kLanes) return;
  const Coord coord = column_coord<QueryTile>(*arena.traversal, v, lane);
  arena.column_a[lane] = offset_in(p.query_stride, sample, head, coord);
  arena.column_b[lane] = offset_in(p.grad_out_stride, sample, head, coord);
  arena.column_token[lane] = coord.inside ? token_steps<false>(p).of(sample, head, coord) : -1;
}

NB_DEVICE void grad_keys(const Params& p, unsigned number) {
  constexpr int kOwn = Keys::kOwn;
  NB_DYNAMIC_SHARED(shared);
  Keys arena(shared);
  const Block block =
      block_of(number, row_tiles<true, KeyTile>(p) + extra_tiles({0, p.extra}, KeyTile::size), p.heads / p.group);
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes * kOwn;
  begin_traversal<true, KeyTile, QueryTile>(*arena.traversal, p, block.tile, block.sample);
  const bool extra = arena.traversal->extra >= 0;
  if (!extra && !has_rows(*arena.traversal)) return;
  key_rows(arena, p, block);
  const void *key = extra ? p.extra_key : p.key, *value = extra ? p.extra_value : p.value;
  const long long key_step = extra ? 1 : p.key_stride.channel, value_step = extra ? 1 : p.value_stride.channel;

#if NB_GRADS & 1
  Accumulator value_sums[Chunks<kValueDim>::count][kOwn] = {};
#endif
#if NB_GRADS & 2
  Accumulator key_sums[Chunks<kHeadDim>::count][kOwn] = {};
#endif
  const int visits = arena.traversal->total;
  for (int n = 0; n < visits * p.group; ++n) {
    const int head = block.head * p.group + n / visits;
    const Visit v = visit<QueryTile>(*arena.traversal, n % visits, {0, 0});
    const AddedScores<true, KeyTile, QueryTile> added(p, block.sample, head);
    __syncthreads();  // all threads have used the offsets of the previous visit
    query_columns(arena, p, v, block.sample, head);
    Accumulator products[kOwn], weights[kOwn], slopes[kOwn];
    arena.scores(products, key, arena.row_a, key_step, p.query, arena.column_a, p.query_stride.channel, kHeadDim);
    const long long token = arena.column_token[lane];
    const Accumulator lse = token < 0 ? Accumulator(0) : static_cast<const Accumulator*>(p.lse)[token];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const Accumulator capped = score_of(p, products[r], &slopes[r]);
      const bool read = v.full || attends<KeyTile, QueryTile>(*arena.traversal, v, own + r, lane);
      const Accumulator score = with_bias(capped, added, p, *arena.traversal, v, own + r, read);
      weights[r] = read ? exp_of(score - lse) : Accumulator(0);
    }
#if NB_GRADS & 1
#pragma unroll
    for (int r = 0; r < kOwn; ++r) arena.keep(r, weights[r]);
    arena.accumulate<kValueDim>(value_sums, p.grad_out, arena.column_b, p.grad_out_stride.channel);
#endif
#if NB_GRADS & 2
    const Accumulator delta = token < 0 ? Accumulator(0) : static_cast<const Accumulator*>(p.delta)[2 * token + 1];
    Accumulator grads[kOwn];
    arena.scores(grads, value, arena.row_b, value_step, p.grad_out, arena.column_b, p.grad_out_stride.channel,
                 kValueDim);
    __syncthreads();  // all threads have used the weights
#pragma unroll
    for (int r = 0; r < kOwn; ++r)  // the gradient may be infinite or NaN in masked pairs
      arena.keep(r, weights[r] == 0 ? Accumulator(0) : weights[r] * (grads[r] - delta) * slopes[r]);
    arena.accumulate<kHeadDim>(key_sums, p.query, arena.column_a, p.query_stride.channel);
#endif
  }

  Accumulator factor[kOwn];
  __syncthreads();
  if (Variant::kExtraRange && extra) {  // rows outside, of zeros, have weights; their gradients are 0
    const Interval range = extra_keys(p, block.sample);
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      if (range.has(arena.traversal->extra + own + r)) continue;
#if NB_GRADS & 1
#pragma unroll
      for (int i = 0; i < Chunks<kValueDim>::count; ++i) value_sums[i][r] = 0;
#endif
#if NB_GRADS & 2
#pragma unroll
      for (int i = 0; i < Chunks<kHeadDim>::count; ++i) key_sums[i][r] = 0;
#endif
    }
  }
#if NB_GRADS & 1
#pragma unroll
  for (int r = 0; r < kOwn; ++r) factor[r] = 1;
  arena.write<kValueDim>(extra ? p.grad_extra_value : p.grad_value, arena.row_token, value_sums, factor);
#endif
#if NB_GRADS & 2
#pragma unroll
  for (int r = 0; r < kOwn; ++r) factor[r] = static_cast<Accumulator>(p.scale);
  arena.write<kHeadDim>(extra ? p.grad_extra_key : p.grad_key, arena.row_token, key_sums, factor);
#endif
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(128) nb_dkdv_simt(const __grid_constant__ nb::Params p) {
  nb::on_grid<nb::kGradKeyKernel>(p, [](const nb::Params& own, unsigned number) { nb::grad_keys(own, number); });
}
