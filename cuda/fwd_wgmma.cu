// fwd_wgmma.cu - the forward for sm_90a: one warp copies boxes of keys and values by tensor maps, warpgroups of 64
// queries compute. The weights of a tile are computed while its scores' successors and its predecessor's sums are.
#include "mask.cuh"
#include "roles.cuh"
#include "row_output.cuh"

namespace nb {
constexpr int kHeadDim = Variant::kHeadDim, kValueDim = Variant::kValueDim, kStages = Variant::kStages;
constexpr int kRows = QueryTile::size, kColumns = KeyTile::size;
constexpr int kWide = kHeadDim > kValueDim ? kHeadDim : kValueDim;
using QueryVectors = SwizzledTile<kRows, kHeadDim>;
using KeyVectors = SwizzledTile<kColumns, kHeadDim>;
using ValueVectors = SwizzledTile<kColumns, kValueDim>;
using OutputVectors = SwizzledTile<kRows, kValueDim>;  // in place of the queries
static_assert(kRows == 64 * kConsumers && kColumns % 16 == 0, "64 rows for each warpgroup");

struct Arena {  // the block's shared memory
  static constexpr int kKeys = kRows * kWide * 2, kValues = kKeys + kStages * KeyVectors::kBytes,
                       kBarriers = kValues + kStages * ValueVectors::kBytes,
                       kOrigins = kBarriers + 2 * Stages::kBytes + 16,
                       kTraversal = kOrigins + kOriginBytes,
                       kVisits = kTraversal + Traversal<QueryTile>::kBytes, kMasks = kVisits + Visits::kBytes;
  static_assert(NB_SHARED_BYTES == kMasks + MaskTable<KeyTile>::kBytes, "nbattn/backends/cuda/tiles.py has drifted");
  unsigned char* base;
  NB_DEVICE QueryVectors query() const { return QueryVectors(base); }
  NB_DEVICE OutputVectors output() const { return OutputVectors(base); }
  NB_DEVICE KeyVectors key(int n) const { return KeyVectors(base + kKeys + n % kStages * KeyVectors::kBytes); }
  NB_DEVICE ValueVectors value(int n) const {
    return ValueVectors(base + kValues + n % kStages * ValueVectors::kBytes);
  }
  NB_DEVICE Stages keys() const { return Stages(base + kBarriers); }
  NB_DEVICE Stages values() const { return Stages(base + kBarriers + Stages::kBytes); }
  NB_DEVICE Mbarrier* queries() const { return reinterpret_cast<Mbarrier*>(base + kBarriers + 2 * Stages::kBytes); }
  NB_DEVICE BoxOrigin* origins() const { return reinterpret_cast<BoxOrigin*>(base + kOrigins); }
  NB_DEVICE Traversal<QueryTile>& traversal() const {
    return *reinterpret_cast<Traversal<QueryTile>*>(base + kTraversal);
  }
  NB_DEVICE Visits visits() const { return Visits(base + kVisits); }
  NB_DEVICE MaskTable<KeyTile> masks() const { return MaskTable<KeyTile>(base + kMasks); }
};

// Copies the queries, then keys and values of all visits; one warp calls it.
NB_DEVICE void produce(const MappedParams& m, const Arena& arena, const Block& block, int total) {
  const auto& traversal = arena.traversal();
  BoxOrigin* const origin = arena.origins();  // of keys and values, then of the extra ones
  const bool copies = threadIdx.x % 32 == 0;
  if (copies) {
    load_rows(arena.query(), arena.queries(), m, kQueryMap, traversal, block.sample, block.head);
    key_origins(origin, m, traversal, block);
  }
  for (int n = 0; n < total; ++n) {
    stage_visits(arena.visits(), n, total, [&](StagedVisit& staged, int at) {
      set(staged, visit<KeyTile>(traversal, at, extra_keys(m.p, block.sample)));
    });
    if (!copies) continue;
    const StagedVisit& v = arena.visits()[n];
    arena.keys().wait_empty(n);
    origin[v.extra() * 2].load(arena.key(n), arena.keys().full(n), v.start);
    arena.values().wait_empty(n);
    origin[v.extra() * 2 + 1].load(arena.value(n), arena.values().full(n), v.start);
  }
}

// One warpgroup's 64 queries.
struct Consumer {
  const MappedParams& m;
  const Arena& arena;
  const Block& block;
  Scores scores;
  Softmax state;
  Fragment<kColumns> s;
  Fragment<kValueDim> out;
  uint32_t weights[kColumns / 16][4];
  bool negative;  // a negative scale: the largest product is the smallest score

  NB_DEVICE Consumer(const MappedParams& m, const Arena& arena, const Block& block)
      : m(m), arena(arena), block(block), scores(m.p), negative(scores.factor < 0.f) {
    scores.factor = fabsf(scores.factor);
    out.clear();
  }

  // Starts the scores of visit n and, unless it is the first, the sums of the one before; ends with the weights of n.
  template <bool kFirst>
  NB_DEVICE void visit(int n) {
    arena.keys().wait_full(n);
    begin_turn();
    pin(s.at[0]);
    pin(out.at[0]);
    wgmma_fence();
    dot_async<kColumns, kHeadDim, QueryVectors, KeyVectors>(s.at[0], arena.query().k_major(64 * warpgroup()),
                                                            arena.key(n).k_major());
    wgmma_commit();
    if (!kFirst) sum(n - 1);
    end_turn();
    wgmma_wait<kFirst ? 0 : 1>();
    pin(s.at[0]);
    arena.keys().release(n);
    hide(n);
    float shrink[1][2];
    const bool moves = move_maxima(s, state, shrink, scores.factor);
    weigh(s, state, scores.factor);
    if (!kFirst) {
      wgmma_wait<0>();
      pin(out.at[0]);
      arena.values().release(n - 1);
      if (moves) rescale(out, shrink);
    }
    pack(weights, s.at[0]);
  }

  // Starts to add the values of visit n, with the weights of n.
  NB_DEVICE void sum(int n) {
    arena.values().wait_full(n);
    pin(weights);
    accumulate_async<kColumns / 16, kValueDim / 8, ValueVectors>(out.at[0], weights, arena.value(n).mn_major());
    wgmma_commit();
  }

  // Turns products into scores, those of pairs that are not read into -infinity.
  NB_DEVICE void hide(int n) {
    if (negative) negate(s);
    scores.softcap(s);
    const StagedVisit& v = arena.visits()[n];
    if (v.full()) return;
    apply_mask(s, MaskWords<QueryTile, KeyTile>(arena.traversal(), arena.masks(), v), -NB_INFINITY);
  }
};

NB_DEVICE void epilogue(const MappedParams& m, const Arena& arena, const Block& block, const Consumer& c) {
  const Params& p = m.p;
  const auto& traversal = arena.traversal();
  const TokenSteps steps = token_steps<false>(p);
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = row_sum(c.state.sum[0][h]);
    inverse[h] = sum == 0.f ? 0.f : 1.f / sum;
    const Coord coord = row_coord(traversal, row_of(0, h));
    if (p.lse && coord.inside && threadIdx.x % 4 == 0)
      static_cast<float*>(p.lse)[steps.of(block.sample, block.head, coord)] =
          sum == 0.f ? -NB_INFINITY : (c.state.max[0][h] + log2f(sum)) * kLn2;
  }
  if (kHeadDim != kValueDim) wait_for_consumers();  // rows of another size are where another one's queries are
  write_rows<kValueDim>(arena.output(), c.out, inverse, [&](int row) -> Element* {
    const Coord coord = row_coord(traversal, row);
    if (!coord.inside) return nullptr;
    return static_cast<Element*>(p.out) + steps.of(block.sample, block.head, coord) * kValueDim;
  });
}

NB_DEVICE void consume(const MappedParams& m, const Arena& arena, const Block& block, int total) {
  Consumer c(m, arena, block);
  const float sink = m.p.sink ? static_cast<const float*>(m.p.sink)[block.head] : -NB_INFINITY;
  c.state.begin(0, 0, sink);
  c.state.begin(0, 1, sink);
  if (total) {
    mbarrier_wait(arena.queries(), 0);
    begin_turns();
    c.visit<true>(0);
    // A visit of 128 columns at head size 128 issues 0 instructions: tests/golden/kernels.json.
    for (int n = 1; n < total; ++n) c.visit<false>(n);
    wgmma_fence();
    c.sum(total - 1);
    wgmma_wait<0>();
    pin(c.out.at[0]);
  }
  epilogue(m, arena, block, c);
}

NB_DEVICE void forward(const MappedParams& m) {
  NB_DYNAMIC_SHARED(shared);
  const Arena arena{shared};
  const Params& p = m.p;
  const Block block = block_of(blockIdx.x, row_tiles<false, QueryTile>(p), p.heads);
  begin_traversal<false, QueryTile, KeyTile>(arena.traversal(), p, block.tile, block.sample);
  if (!has_rows(arena.traversal())) return;
  if (threadIdx.x == 0) {
    arena.keys().init();
    arena.values().init();
    mbarrier_init(arena.queries(), 1);
    mbarrier_init_fence();
  }
  arena.masks().fill();
  __syncthreads();
  const int total = arena.traversal().total + extra_tiles(extra_keys(p, block.sample), kColumns);
  if (is_consumer()) {
    take_registers<kConsumerRegisters>();
    consume(m, arena, block, total);
  } else {
    give_registers<kProducerRegisters>();
    if (threadIdx.x / 32 == kConsumers * 4 && total) produce(m, arena, block, total);
  }
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, 1)
    nb_fwd_wgmma(const __grid_constant__ nb::MappedParams m) {
  nb::forward(m);
}
