// fwd_wgmma.cu - the forward for sm_90a: one warp copies boxes of keys and values by tensor maps, warpgroups of 64
// queries compute. The weights of a tile are computed while its scores' successors and its predecessor's sums are.
#include "mask.cuh"
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
                       kTraversal = kBarriers + 2 * Stages::kBytes + 16,
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
  NB_DEVICE Traversal<QueryTile>& traversal() const {
    return *reinterpret_cast<Traversal<QueryTile>*>(base + kTraversal);
  }
  NB_DEVICE Visits visits() const { return Visits(base + kVisits); }
  NB_DEVICE MaskTable<KeyTile> masks() const { return MaskTable<KeyTile>(base + kMasks); }
};

// Copies the queries, then keys and values of all visits; one warp calls it.
NB_DEVICE void produce(const MappedParams& m, const Arena& arena, const Block& block, int total) {
  const Params& p = m.p;
  const auto& traversal = arena.traversal();
  const int key_head = block.head / p.group;
  AxisMap rows[3], columns[3], positions[3];
  class_maps<true>(rows, traversal);
  class_maps<false>(columns, traversal);
  by_position(positions);
  if (threadIdx.x % 32 == 0) {
    mbarrier_arrive_expect(arena.queries(), QueryVectors::kBytes);
    BoxOrigin(m, kQueryMap, rows, block.sample, block.head).load(arena.query(), arena.queries(), first_rows(traversal));
  }
  const BoxOrigin key(m, kKeyMap, columns, block.sample, key_head),
      value(m, kValueMap, columns, block.sample, key_head),
      extra_key(m, kExtraKeyMap, positions, block.sample, key_head),
      extra_value(m, kExtraValueMap, positions, block.sample, key_head);
  for (int n = 0; n < total; ++n) {
    stage_visits(arena.visits(), n, total, [&](StagedVisit& staged, int at) {
      set(staged, visit<KeyTile>(traversal, at, extra_keys(p, block.sample)));
    });
    if (threadIdx.x % 32) continue;
    const StagedVisit& v = arena.visits()[n];
    arena.keys().wait_empty(n);
    mbarrier_arrive_expect(arena.keys().full(n), KeyVectors::kBytes);
    (v.extra() ? extra_key : key).load(arena.key(n), arena.keys().full(n), v.start);
    arena.values().wait_empty(n);
    mbarrier_arrive_expect(arena.values().full(n), ValueVectors::kBytes);
    (v.extra() ? extra_value : value).load(arena.value(n), arena.values().full(n), v.start);
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
}  // namespace nb
