// dkdv_wgmma.cu - gradients of keys and values for sm_90a: rows are keys, columns the queries that attend to them, in
// all query heads of the key head. So only one block adds to a row, without atomics; weights and gradients of scores
// are operands in registers. The last blocks compute the extra keys.
#include "backward.cuh"
#include "roles.cuh"
#include "row_output.cuh"

namespace nb {
constexpr int kHeadDim = Variant::kHeadDim, kValueDim = Variant::kValueDim, kStages = Variant::kStages;
constexpr int kRows = KeyTile::size, kColumns = QueryTile::size;
using KeyVectors = SwizzledTile<kRows, kHeadDim>;  // the keys; at the end their gradients
using ValueVectors = SwizzledTile<kRows, kValueDim>;
using QueryVectors = SwizzledTile<kColumns, kHeadDim>;
using GradVectors = SwizzledTile<kColumns, kValueDim>;
static_assert(kRows == 64 * kConsumers && kColumns % 32 == 0, "64 rows for each warpgroup");

struct Arena {  // the block's shared memory
  static constexpr int kValues = KeyVectors::kBytes, kQueries = kValues + ValueVectors::kBytes,
                       kGrads = kQueries + kStages * QueryVectors::kBytes,
                       kTerms = kGrads + kStages * GradVectors::kBytes,
                       kBarriers = kTerms + kStages * kColumns * sizeof(RowTerms),
                       kOrigins = kBarriers + 2 * Stages::kBytes + 16, kTraversal = kOrigins + kOriginBytes,
                       kVisits = kTraversal + Traversal<KeyTile>::kBytes, kMasks = kVisits + Visits::kBytes;
  static_assert(NB_SHARED_BYTES == kMasks + MaskTable<QueryTile>::kBytes, "nbattn/backends/cuda/tiles.py has drifted");
  unsigned char* base;
  NB_DEVICE KeyVectors key() const { return KeyVectors(base); }
  NB_DEVICE ValueVectors value() const { return ValueVectors(base + kValues); }
  NB_DEVICE QueryVectors query(unsigned n) const {
    return QueryVectors(base + kQueries + n % kStages * QueryVectors::kBytes);
  }
  NB_DEVICE GradVectors grad_out(unsigned n) const {
    return GradVectors(base + kGrads + n % kStages * GradVectors::kBytes);
  }
  NB_DEVICE RowTerms* terms(unsigned n) const {  // one per column
    return reinterpret_cast<RowTerms*>(base + kTerms) + n % kStages * kColumns;
  }
  NB_DEVICE Stages queries() const { return Stages(base + kBarriers); }
  NB_DEVICE Stages grads() const { return Stages(base + kBarriers + Stages::kBytes); }
  NB_DEVICE Mbarrier* rows() const { return reinterpret_cast<Mbarrier*>(base + kBarriers + 2 * Stages::kBytes); }
  NB_DEVICE Place& place() const { return *reinterpret_cast<Place*>(rows() + 1); }  // of keys
  NB_DEVICE BoxOrigin* origins() const { return reinterpret_cast<BoxOrigin*>(base + kOrigins); }
  NB_DEVICE Traversal<KeyTile>& traversal() const {
    return *reinterpret_cast<Traversal<KeyTile>*>(base + kTraversal);
  }
  NB_DEVICE Visits visits() const { return Visits(base + kVisits); }
  NB_DEVICE MaskTable<QueryTile> masks() const { return MaskTable<QueryTile>(base + kMasks); }
};

NB_DEVICE void copy_rows(const MappedParams& m, const Arena& arena) {
  const auto& traversal = arena.traversal();
  if (Variant::kExtra && traversal.extra >= 0) {
    const int first[3] = {0, 0, traversal.extra};
    by_position(m, kExtraKeyMap, arena.place()).load(arena.key(), arena.rows(), first);
    by_position(m, kExtraValueMap, arena.place()).load(arena.value(), arena.rows(), first);
  } else {
    load_rows(arena.key(), arena.rows(), m, kKeyMap, traversal, arena.place());
    load_rows(arena.value(), arena.rows(), m, kValueMap, traversal, arena.place());
  }
}

// Copies the terms of a visit's queries; all lanes of a warp call it.
NB_DEVICE void copy_terms(const Params& p, const Arena& arena, const TokenSteps& tokens, bool by_position, int n) {
  const StagedVisit& v = arena.visits()[n];
#pragma unroll
  for (int j = 0; j < kColumns / 32; ++j) {
    const int column = j * 32 + threadIdx.x % 32;
    const unsigned char* from = static_cast<const unsigned char*>(p.delta) + v.terms;
    bool valid = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int c = QueryTile::coordinate(axis, column), step = by_position ? 1 : p.axis[axis].dilation;
      from += c * (tokens.axis[axis] * step * static_cast<long long>(sizeof(RowTerms)));
      valid = valid && c < v.count[axis];
    }
    cp_async<8>(arena.terms(n) + column, from, valid);
  }
  mbarrier_arrive_after_copies(arena.grads().full(n));
}

// Copies the queries, their output's gradients and their terms of all visits; one warp calls it.
NB_DEVICE void copy_queries(const MappedParams& m, const Arena& arena, int total) {
  const Params& p = m.p;
  const auto& traversal = arena.traversal();
  const bool extra = Variant::kExtra && traversal.extra >= 0, copies = threadIdx.x % 32 == 0;
  const Mapped query = extra ? kAnyQueryMap : kQueryMap, grad_out = extra ? kAnyGradOutMap : kGradOutMap;
  const TokenSteps tokens = token_steps<false>(p);
  const Place first = {arena.place().head * p.group, arena.place().sample};
  BoxOrigin* const origin = arena.origins();  // of the first query head
  if (copies) {
    copy_rows(m, arena);
    const auto columns = [&](int axis) { return traversal.axis[axis].column; };
    origin[0] = box_origin(m, query, first, columns);
    origin[1] = box_origin(m, grad_out, first, columns);
  }
  for (int n = 0; n < total; ++n) {
    stage_visits(arena.visits(), n, total, [&](StagedVisit& staged, int at) {
      const Visit v = visit<QueryTile>(traversal, at % traversal.total, {0, 0});
      set(staged, v);
      staged.head = at / traversal.total;
      staged.terms =
          tokens.of(first.sample, first.head + staged.head, column_coord<QueryTile>(traversal, v, 0)) *
          static_cast<long long>(sizeof(RowTerms));
    });
    if (copies) {
      const StagedVisit& v = arena.visits()[n];
      arena.queries().wait_empty(n);
      origin[0].load(arena.query(n), arena.queries().full(n), v.start, v.head, m.boxes[query]);
      arena.grads().wait_empty(n);
      origin[1].load(arena.grad_out(n), arena.grads().full(n), v.start, v.head, m.boxes[grad_out]);
    }
    __syncwarp();  // the stage is empty, for all lanes
    copy_terms(p, arena, tokens, extra, n);
  }
  // The warp ends after its copies.
  for (int n = max_of(0, total - kStages); n < total; ++n) arena.grads().wait_full(n);
}

// One warpgroup's 64 keys.
struct Consumer {
  const MappedParams& m;
  const Arena& arena;
  const int group;  // of the block's consumers
  Scores scores;
  Fragment<kHeadDim> key_sums;
  Fragment<kValueDim> value_sums;
  uint32_t weights[kColumns / 16][4], products[kColumns / 16][4];  // products: their gradients

  NB_DEVICE Consumer(const MappedParams& m, const Arena& arena)
      : m(m), arena(arena), group(warpgroup()), scores(m.p) {
    key_sums.clear();
    value_sums.clear();
  }

  // Starts the scores of visit n while the sums of the one before run; ends with its own sums running.
  template <bool kFirst>
  NB_DEVICE void visit(unsigned n) {
    Fragment<kColumns> s, grads;
    arena.queries().wait_full(n);
    wgmma_fence();
    dot_async<kColumns, kHeadDim, KeyVectors, QueryVectors>(s.at[0], arena.key().k_major(64 * group),
                                                            arena.query(n).k_major());
    wgmma_commit();
    if (!kFirst) {
      wgmma_wait<1>();
      pin(key_sums.at[0]);
      pin(value_sums.at[0]);
      arena.queries().release(n - 1);
      arena.grads().release(n - 1);
    }
    arena.grads().wait_full(n);
    wgmma_fence();
    dot_async<kColumns, kValueDim, ValueVectors, GradVectors>(grads.at[0], arena.value().k_major(64 * group),
                                                              arena.grad_out(n).k_major());
    wgmma_commit();
    wgmma_wait<1>();
    pin(s.at[0]);
    scores.softcap(s);
    const Capped<kColumns> capped(s);
    const StagedVisit& v = arena.visits()[n];
    if (!v.full())
      apply_mask(s, MaskWords<KeyTile, QueryTile>(arena.traversal(), arena.masks(), v), scores.hidden());
    wgmma_wait<0>();
    pin(grads.at[0]);
    const RowTerms* const terms = arena.terms(n);
    recompute_p<true>(s, grads, capped, scores, [&](int, int c, int e) { return terms[column_of(c, e % 2)]; });
    pack(weights, s.at[0]);
    pack(products, grads.at[0]);
    pin(weights);
    pin(products);
    wgmma_fence();
    accumulate_async<kColumns / 16, kValueDim / 8, GradVectors>(value_sums.at[0], weights,
                                                                arena.grad_out(n).mn_major());
    accumulate_async<kColumns / 16, kHeadDim / 8, QueryVectors>(key_sums.at[0], products, arena.query(n).mn_major());
    wgmma_commit();
  }

  NB_DEVICE void visits(unsigned total) {
    mbarrier_wait(arena.rows(), 0);
    visit<true>(0);
    // A visit of 64 columns at head size 128 issues 307 instructions, 24 of them HGMMA: tests/golden/kernels.json.
    for (unsigned n = 1; n < total; ++n) visit<false>(n);
    wgmma_wait<0>();
    pin(key_sums.at[0]);
    pin(value_sums.at[0]);
  }

  // Writes the rows to a gradient `[B, *key_space, Hk, kChannels]`, or to the extra keys' `[B, E, Hk, kChannels]`.
  template <int kChannels, class Tile>
  NB_DEVICE void write(const Tile& staging, Fragment<kChannels>& sums, float scale, void* grid, void* extra) const {
    const Params& p = m.p;
    const auto& traversal = arena.traversal();
    const Place place = arena.place();
    if (Variant::kExtraRange && traversal.extra >= 0) {  // what is outside has weights; its gradients are 0
      const Interval range = extra_keys(p, place.sample);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (!range.has(traversal.extra + row_of(0, h))) clear_row(sums, 0, h);
    }
    const TokenSteps steps = token_steps<true>(p);
    const float factor[2] = {scale, scale};
    write_rows<kChannels>(staging, sums, factor, [&](int row) -> Element* {
      if (Variant::kExtra && traversal.extra >= 0) {
        const int e = traversal.extra + row;
        if (e >= p.extra) return nullptr;
        return static_cast<Element*>(extra) + extra_offset(p, place.sample, e, place.head, kChannels);
      }
      const Coord coord = row_coord(traversal, row);
      if (!coord.inside) return nullptr;
      return static_cast<Element*>(grid) + steps.of(place.sample, place.head, coord) * kChannels;
    });
  }

  NB_DEVICE void epilogue() {
    const Params& p = m.p;
    wait_for_group(group);  // all warps have used the keys and values
    write<kValueDim>(arena.value(), value_sums, 1.f, p.grad_value, p.grad_extra_value);
    write<kHeadDim>(arena.key(), key_sums, static_cast<float>(p.scale), p.grad_key, p.grad_extra_key);
  }
};
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, 1)
    nb_dkdv_wgmma(const __grid_constant__ nb::MappedParams m) {
  using namespace nb;
  NB_DYNAMIC_SHARED(shared);
  const Arena arena{shared};
  const Params& p = m.p;
  auto& traversal = arena.traversal();
  const int tiles = row_tiles<true, KeyTile>(p) + extra_tiles({0, p.extra}, kRows);
  const Block block = block_of(blockIdx.x, tiles, p.heads / p.group);
  begin_traversal<true, KeyTile, QueryTile>(traversal, p, block.tile, block.sample);
  if (traversal.extra < 0 && !has_rows(traversal)) return;
  if (threadIdx.x == 0) {
    arena.queries().init();
    arena.grads().init(32);  // each lane that copies terms
    mbarrier_init(arena.rows(), 2);
    mbarrier_init_fence();
    arena.place() = {block.head, block.sample};
  }
  arena.masks().fill();
  __syncthreads();
  const int total = traversal.total * p.group;
  if (is_consumer()) {
    take_registers<kConsumerRegisters>();
    Consumer c(m, arena);
    if (total) c.visits(total);
    c.epilogue();
  } else {
    give_registers<kProducerRegisters>();
    if (threadIdx.x / 32 == 4 * kConsumers && total) copy_queries(m, arena, total);
  }
}
