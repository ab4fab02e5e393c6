// dbias_simt.cu - the gradient of the table of relative positions, without tensor cores. The blocks of a head share its
// tiles in a fixed order, and each warp adds to a table of its own, which are added at the end: nothing is atomic.
#include "simt.cuh"

namespace nb {
using Queries = Arena<QueryTile, KeyTile>;

// Adds the gradients of a grid's tiles `first`, `first` + `step`, ... to the table of this warp.
NB_DEVICE void add_tiles(Queries& arena, const Params& p, Accumulator* table, int head, long long first, int step) {
  constexpr int kOwn = Queries::kOwn;
  const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes * kOwn;
  const int tiles = row_tiles<false, QueryTile>(p);
  for (long long n = first; n < static_cast<long long>(tiles) * p.batch; n += step) {
    const Block block = {static_cast<int>(n % tiles), head, static_cast<int>(n / tiles)};
    __syncthreads();  // all threads have used the previous tile
    begin_traversal<false, QueryTile, KeyTile>(*arena.traversal, p, block.tile, block.sample);
    if (!has_rows(*arena.traversal)) continue;
    query_rows(arena, p, block);
    __syncthreads();
    Accumulator lse[kOwn], delta[kOwn];
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
      const long long token = arena.row_token[own + r];
      lse[r] = token < 0 ? Accumulator(0) : static_cast<const Accumulator*>(p.lse)[token];
      delta[r] = token < 0 ? Accumulator(0) : static_cast<const Accumulator*>(p.delta)[2 * token + 1];
    }
    const AddedScores<false, QueryTile, KeyTile> added(p, block.sample, head);
    for (int visited = 0; visited < arena.traversal->total; ++visited) {
      const Visit v = visit<KeyTile>(*arena.traversal, visited, {0, 0});
      __syncthreads();  // all threads have used the offsets of the previous visit
      key_columns(arena, p, v, block.sample, head / p.group);
      Accumulator products[kOwn], grads[kOwn];
      arena.scores(products, p.query, arena.row_a, p.query_stride.channel, p.key, arena.column_a, p.key_stride.channel,
                   kHeadDim);
      arena.scores(grads, p.grad_out, arena.row_b, p.grad_out_stride.channel, p.value, arena.column_b,
                   p.value_stride.channel, kValueDim);
#pragma unroll
      for (int r = 0; r < kOwn; ++r) {  // the columns of one row have different entries, and rows follow one another
        const AddedRow row = added.row(p, *arena.traversal, v.start, lane, own + r);
        const bool read = arena.row_token[own + r] >= 0 &&
                          (v.full || attends<QueryTile, KeyTile>(*arena.traversal, v, own + r, lane));
        Accumulator slope;
        const Accumulator score = score_of(p, products[r], &slope) + added.of(p, row, 0, read);
        if (read) table[added.entry(row, 0) - added.table] += exp_of(score - lse[r]) * (grads[r] - delta[r]);
        __syncwarp();
      }
    }
  }
}

// The parameters of a grid, at the end of the shared memory.
NB_DEVICE const Params& params_of(const Params& p, int number) {
  NB_DYNAMIC_SHARED(shared);
  Params& own = reinterpret_cast<OnGrid*>(shared + NB_SHARED_BYTES - kGridBytes)->params;
  __syncthreads();  // all threads have used the previous grid
  if (threadIdx.x == 0) {
    own = p;
    set_grid(own, static_cast<const Grid*>(p.grids)[number], number,
             {sizeof(Element), sizeof(Accumulator), kHeadDim, kValueDim});
  }
  __syncthreads();
  return own;
}

NB_DEVICE void grad_table(const Params& p) {
  NB_DYNAMIC_SHARED(shared);
  Queries arena(shared);
  const int head = blockIdx.x % p.heads, part = blockIdx.x / p.heads, parts = gridDim.x / p.heads;
  const int entries = table_steps(p).entries, warp = threadIdx.x / kLanes;
  Accumulator* const table = static_cast<Accumulator*>(p.grad_relative_bias) +
                             (static_cast<long long>(part * kWarps + warp) * p.heads + head) * entries;
  for (int e = threadIdx.x % kLanes; e < entries; e += kLanes) table[e] = 0;
  if constexpr (Variant::kGrids) {
    int first = part;  // of this block in the grid, so that small grids are shared by all blocks
    for (int number = 0; number < p.grid_count; ++number) {
      const Params& own = params_of(p, number);
      add_tiles(arena, own, table, head, first, parts);
      first = floor_mod(first - row_tiles<false, QueryTile>(own), parts);
    }
  } else {
    add_tiles(arena, p, table, head, part, parts);
  }
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(128) nb_dbias_simt(const __grid_constant__ nb::Params p) {
  nb::grad_table(p);
}
