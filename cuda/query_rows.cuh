// query_rows.cuh - blocks for sm_90a whose rows are queries, the forward and dQ: their shared memory, their roles, the
// copies of keys and values.
#pragma once
#include "mask.cuh"
#include "roles.cuh"

namespace nb {
constexpr int kHeadDim = Variant::kHeadDim, kValueDim = Variant::kValueDim, kStages = Variant::kStages;
constexpr int kRows = QueryTile::size, kColumns = KeyTile::size;
using QueryVectors = SwizzledTile<kRows, kHeadDim>;
using KeyVectors = SwizzledTile<kColumns, kHeadDim>;
using ValueVectors = SwizzledTile<kColumns, kValueDim>;
static_assert(kRows == 64 * kConsumers && kColumns % 16 == 0, "64 rows for each warpgroup");

// The block's shared memory; kRowBytes: of the rows' vectors.
template <int kRowBytes>
struct QueryArena {
  static constexpr int kKeys = kRowBytes, kValues = kKeys + kStages * KeyVectors::kBytes,
                       kBarriers = kValues + kStages * ValueVectors::kBytes,
                       kOrigins = kBarriers + 2 * Stages::kBytes + 16, kTraversal = kOrigins + kOriginBytes,
                       kVisits = kTraversal + Traversal<QueryTile>::kBytes, kMasks = kVisits + Visits::kBytes;
  static_assert(NB_SHARED_BYTES == kMasks + MaskTable<KeyTile>::kBytes, "nbattn/backends/cuda/tiles.py has drifted");
  unsigned char* base;
  NB_DEVICE KeyVectors key(unsigned n) const { return KeyVectors(base + kKeys + n % kStages * KeyVectors::kBytes); }
  NB_DEVICE ValueVectors value(unsigned n) const {
    return ValueVectors(base + kValues + n % kStages * ValueVectors::kBytes);
  }
  NB_DEVICE Stages keys() const { return Stages(base + kBarriers); }
  NB_DEVICE Stages values() const { return Stages(base + kBarriers + Stages::kBytes); }
  NB_DEVICE Mbarrier* rows() const { return reinterpret_cast<Mbarrier*>(base + kBarriers + 2 * Stages::kBytes); }
  NB_DEVICE Place& place() const { return *reinterpret_cast<Place*>(rows() + 1); }
  NB_DEVICE BoxOrigin* origins() const { return reinterpret_cast<BoxOrigin*>(base + kOrigins); }
  NB_DEVICE Traversal<QueryTile>& traversal() const {
    return *reinterpret_cast<Traversal<QueryTile>*>(base + kTraversal);
  }
  NB_DEVICE Visits visits() const { return Visits(base + kVisits); }
  NB_DEVICE MaskTable<KeyTile> masks() const { return MaskTable<KeyTile>(base + kMasks); }
};

// Copies the keys and values of all visits; one warp calls it.
template <class Arena>
NB_DEVICE void copy_keys(const MappedParams& m, const Arena& arena, int total) {
  const auto& traversal = arena.traversal();
  BoxOrigin* const origin = arena.origins();  // of keys and values, then of the extra ones
  const bool copies = threadIdx.x % 32 == 0;
  if (copies) key_origins(origin, m, traversal, arena.place());
  for (int n = 0; n < total; ++n) {
    stage_visits(arena.visits(), n, total, [&](StagedVisit& staged, int at) {
      set(staged, visit<KeyTile>(traversal, at, extra_keys(m.p, arena.place().sample)));
    });
    if (!copies) continue;
    const StagedVisit& v = arena.visits()[n];
    arena.keys().wait_empty(n);
    origin[v.extra() * 2].load(arena.key(n), arena.keys().full(n), v.start);
    arena.values().wait_empty(n);
    origin[v.extra() * 2 + 1].load(arena.value(n), arena.values().full(n), v.start);
  }
}

// Runs a block: copy_rows by one thread, consume(total visits) by the consumers. `row_boxes`: what copy_rows
// announces to the barrier of the rows.
template <class Arena, class CopyRows, class Consume>
NB_DEVICE void run_block(const MappedParams& m, const Arena& arena, int row_boxes, const CopyRows& copy_rows,
                         const Consume& consume) {
  const Params& p = m.p;
  const Block block = block_of(blockIdx.x, row_tiles<false, QueryTile>(p), p.heads);
  begin_traversal<false, QueryTile, KeyTile>(arena.traversal(), p, block.tile, block.sample);
  if (!has_rows(arena.traversal())) return;
  if (threadIdx.x == 0) {
    arena.keys().init();
    arena.values().init();
    mbarrier_init(arena.rows(), row_boxes);
    mbarrier_init_fence();
    arena.place() = {block.head, block.sample};
  }
  arena.masks().fill();
  __syncthreads();
  const int total = arena.traversal().total + extra_tiles(extra_keys(p, block.sample), kColumns);
  if (is_consumer()) {
    take_registers<kConsumerRegisters>();
    consume(total);
  } else {
    give_registers<kProducerRegisters>();
    if (threadIdx.x / 32 != 4 * kConsumers || total == 0) return;
    if (threadIdx.x % 32 == 0) copy_rows();
    copy_keys(m, arena, total);
  }
}

// Zeros in place of extra keys or values outside extra_range: their memory may hold NaN, and 0 x NaN is NaN. Every
// consumer calls it, outside of its turn.
template <class Tile>
NB_DEVICE void clear_outside(const Tile& tile, const StagedVisit& v) {
  if constexpr (Variant::kExtraRange) {
    if (!v.extra() || v.count[2] == Tile::kSize) return;
    for (int i = v.count[2] * Tile::kChunks + threadIdx.x; i < Tile::kSize * Tile::kChunks; i += kConsumerThreads)
      *reinterpret_cast<uint4*>(tile.chunk(i / Tile::kChunks, i % Tile::kChunks)) = uint4{0, 0, 0, 0};
    fence_async();
    wait_for_consumers();
  }
}

// What masked pairs of a visit get; scores of the others stay.
template <class Arena>
NB_DEVICE void hide_masked(Fragment<kColumns>& s, const Arena& arena, unsigned n, float hidden) {
  const StagedVisit& v = arena.visits()[n];
  if (!v.full()) apply_mask(s, MaskWords<QueryTile, KeyTile>(arena.traversal(), arena.masks(), v), hidden);
}
}  // namespace nb
