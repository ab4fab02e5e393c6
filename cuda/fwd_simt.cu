// fwd_simt.cu - the forward without tensor cores, for any dtype and head size. A warp has its own rows and a lane one
// column, so that a softmax is a reduction over a warp.
#include "simt.cuh"

namespace nb {
using Forward = Arena<QueryTile, KeyTile>;
using Added = AddedScores<false, QueryTile, KeyTile>;

struct State {  // the running softmax of this warp's rows
  Accumulator max[Forward::kOwn], sum[Forward::kOwn];
};

// Adds the scores of one visit to the running softmax, and stores its weights.
NB_DEVICE void join(Forward& arena, const Params& p, const Added& added, const Visit& v, State& state,
                    Accumulator (&out)[Chunks<kValueDim>::count][Forward::kOwn],
                    const Accumulator (&products)[Forward::kOwn]) {
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes * Forward::kOwn;
  const bool inside = !v.extra || lane < v.count[2];
#pragma unroll
  for (int r = 0; r < Forward::kOwn; ++r) {
    Accumulator slope, score = score_of(p, products[r], &slope);
    const bool read =
        inside && (v.full || v.extra || attends<QueryTile, KeyTile>(*arena.traversal, v, own + r, lane));
    score = with_bias(score, added, p, *arena.traversal, v, own + r, read);
    if (!read) score = -NB_INFINITY;
    const Accumulator top = larger(state.max[r], warp_max(score));
    const Accumulator base = top == -NB_INFINITY ? Accumulator(0) : top;
    const Accumulator weight = exp_of(score - base), shrink = exp_of(state.max[r] - base);
    state.sum[r] = state.sum[r] * shrink + warp_sum(weight);
    state.max[r] = top;
    arena.keep(r, weight);
#pragma unroll
    for (int i = 0; i < Chunks<kValueDim>::count; ++i) out[i][r] *= shrink;
  }
}

// The sink of a row: packed query heads are its coordinate on axis 0.
NB_DEVICE Accumulator sink_of(const Params& p, const Traversal<QueryTile>& traversal, const Block& block, int row) {
  const Coord coord = row_coord(traversal, row);
  const int more = p.packed > 1 && coord.inside ? coord.at[0] : 0;
  return static_cast<const Accumulator*>(p.sink)[block.head * p.packed + more];
}

NB_DEVICE void forward(const Params& p, unsigned number) {
  NB_DYNAMIC_SHARED(shared);
  Forward arena(shared);
  const int tiles = row_tiles<false, QueryTile>(p);
  const Block block = block_of(number, tiles, p.heads);
  const int key_head = block.head / p.group, thread = threadIdx.x;
  begin_traversal<false, QueryTile, KeyTile>(*arena.traversal, p, block.tile, block.sample);
  if (!has_rows(*arena.traversal)) return;
  query_rows(arena, p, block);
  __syncthreads();

  State state;
#pragma unroll
  for (int r = 0; r < Forward::kOwn; ++r) {
    const Accumulator sink = p.sink ? sink_of(p, *arena.traversal, block, thread / kLanes * Forward::kOwn + r)
                                    : Accumulator(-NB_INFINITY);
    state.max[r] = sink;
    state.sum[r] = sink == -NB_INFINITY ? 0 : 1;
  }
  Accumulator out[Chunks<kValueDim>::count][Forward::kOwn] = {};
  const Added added(p, block.sample, block.head);
  const Interval extra = extra_keys(p, block.sample);
  const int visits = arena.traversal->total + extra_tiles(extra, KeyTile::size);
  for (int n = 0; n < visits; ++n) {
    const Visit v = visit<KeyTile>(*arena.traversal, n, extra);
    __syncthreads();  // all threads have used the offsets of the previous visit
    key_columns(arena, p, v, block.sample, key_head);
    Accumulator products[Forward::kOwn];
    arena.scores(products, p.query, arena.row_a, p.query_stride.channel, v.extra ? p.extra_key : p.key,
                 arena.column_a, v.extra ? 1 : p.key_stride.channel, kHeadDim);
    join(arena, p, added, v, state, out, products);
    arena.accumulate<kValueDim>(out, v.extra ? p.extra_value : p.value, arena.column_b,
                                v.extra ? 1 : p.value_stride.channel);
  }

  Accumulator inverse[Forward::kOwn];
  const int own = thread / kLanes * Forward::kOwn;
#pragma unroll
  for (int r = 0; r < Forward::kOwn; ++r) {
    inverse[r] = state.sum[r] == 0 ? Accumulator(0) : 1 / state.sum[r];
    if (p.lse && thread % kLanes == 0 && arena.row_token[own + r] >= 0)
      static_cast<Accumulator*>(p.lse)[arena.row_token[own + r]] =
          state.sum[r] == 0 ? Accumulator(-NB_INFINITY) : state.max[r] + log_of(state.sum[r]);
  }
  arena.write<kValueDim>(p.out, arena.row_token, out, inverse);
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(128) nb_fwd_simt(const __grid_constant__ nb::Params p) {
  nb::on_grid<nb::kForwardKernel>(p, [](const nb::Params& own, unsigned number) { nb::forward(own, number); });
}
