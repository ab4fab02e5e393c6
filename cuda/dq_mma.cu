// dq_mma.cu - gradients of the queries on tensor cores: the same traversal as the forward, with the weights
// recomputed from the final logsumexp. Both products of a visit use the keys.
#include "backward.cuh"
#include "epilogue.cuh"

namespace nb {
constexpr int kHeadDim = Variant::kHeadDim, kValueDim = Variant::kValueDim, kStages = Variant::kStages;
constexpr int kRows = QueryTile::size, kColumns = KeyTile::size, kRowBlocks = Variant::kRowBlocks;
using RowVectors = SharedTile<kRows, kHeadDim>;  // the queries; at the end their gradients
using GradVectors = SharedTile<kRows, kValueDim>;
using KeyVectors = SharedTile<kColumns, kHeadDim>;
using ValueVectors = SharedTile<kColumns, kValueDim>;
static_assert(kRows == 16 * Variant::kWarps * kRowBlocks && kColumns % 16 == 0, "fragments are 16 x 16");
constexpr int kStageBytes = KeyVectors::kBytes + ValueVectors::kBytes;

struct Arena {  // the block's shared memory
  static constexpr int kVisits = Traversal<QueryTile>::kBytes, kMasks = kVisits + Visits::kBytes,
                       kVectors = kMasks + MaskTable<KeyTile>::kBytes,
                       kStage = kVectors + RowVectors::kBytes + GradVectors::kBytes;
  static_assert(NB_SHARED_BYTES == kStage + kStages * kStageBytes + kGridBytes,
                "nbattn/backends/cuda/tiles.py has drifted");
  unsigned char* base;
  NB_DEVICE Traversal<QueryTile>& traversal() const { return *reinterpret_cast<Traversal<QueryTile>*>(base); }
  NB_DEVICE Visits visits() const { return Visits(base + kVisits); }
  NB_DEVICE MaskTable<KeyTile> masks() const { return MaskTable<KeyTile>(base + kMasks); }
  NB_DEVICE RowVectors query() const { return RowVectors(base + kVectors); }
  NB_DEVICE GradVectors grad_out() const { return GradVectors(base + kVectors + RowVectors::kBytes); }
  NB_DEVICE KeyVectors key(int n) const { return KeyVectors(base + kStage + n % kStages * kStageBytes); }
  NB_DEVICE ValueVectors value(int n) const {
    return ValueVectors(base + kStage + n % kStages * kStageBytes + KeyVectors::kBytes);
  }
};

NB_DEVICE void load_terms(RowTerms (&terms)[kRowBlocks][2], const Params& p, const Traversal<QueryTile>& traversal,
                          const Block& block, const TokenSteps& steps) {
#pragma unroll
  for (int b = 0; b < kRowBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Coord coord = row_coord(traversal, row_of(b, h));
      terms[b][h] = {0.f, 0.f};
      if (coord.inside)
        terms[b][h] = static_cast<const RowTerms*>(p.delta)[steps.of(block.sample, block.head, coord)];
    }
}

NB_DEVICE void grad_queries(const Params& p, unsigned number) {
  NB_DYNAMIC_SHARED(shared);
  const Arena arena{shared};
  auto& traversal = arena.traversal();
  const Visits visits = arena.visits();
  const MaskTable<KeyTile> masks = arena.masks();
  const RowVectors query = arena.query();
  const GradVectors grad_out = arena.grad_out();
  const Block block = block_of(number, row_tiles<false, QueryTile>(p), p.heads);
  const int key_head = block.head / p.group;
  begin_traversal<false, QueryTile, KeyTile>(traversal, p, block.tile, block.sample);
  if (!has_rows(traversal)) return;

  const int total = traversal.total + extra_tiles(extra_keys(p, block.sample), kColumns);
  const KeyColumns<KeyVectors, ValueVectors> columns(p);
  const auto stage = [&](int n) {
    visits.stage(n, total, [&](StagedVisit& staged, int at) {
      columns.fill(staged, at, p, traversal, block.sample, key_head);
    });
  };
  const auto fetch = [&](int n) {
    if (n < total) columns.load(arena.key(n), arena.value(n), visits[n], p, block.sample, key_head);
    cp_async_commit();
  };
  load_rows<kHeadDim>(query, p, traversal, p.query, p.query_stride, block.sample, block.head);
  load_rows<kValueDim>(grad_out, p, traversal, p.grad_out, p.grad_out_stride, block.sample, block.head);
  stage(0);
  masks.fill();
  __syncthreads();  // the first visits are staged
#pragma unroll
  for (int n = 0; n < kStages - 1; ++n) fetch(n);

  const Scores scores(p);
  const TokenSteps steps = token_steps<false>(p);
  RowTerms terms[kRowBlocks][2];
  load_terms(terms, p, traversal, block, steps);
  Fragment<KeyVectors::kPadded> sums;
  sums.clear();
  // A visit of 64 x 64 at head size 128 issues 615 instructions on sm_90, with 192 HMMA: tests/golden/kernels.json.
  for (int n = 0; n < total; ++n) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // tile n is loaded for all threads, and all have used tile n - 1
    stage(n + kStages);
    fetch(n + kStages - 1);
    Fragment<kColumns> s, grads;
    dot<kColumns, kHeadDim>(s, query, arena.key(n));
    scores.softcap(s);
    const Capped<kColumns> capped(s);
    const StagedVisit& v = visits[n];
    const auto add_bias = [&](const auto& read) {
      scores.add_bias<false, QueryTile, KeyTile>(s, p, traversal, v, block.sample, block.head, read);
    };
    if (v.full()) {
      add_bias([](int, int, int) { return true; });
    } else {
      const MaskWords<QueryTile, KeyTile> words(traversal, masks, v);
      add_bias([&](int b, int h, int bit) { return words.of[b][h] >> bit & 1; });
      apply_mask(s, words, scores.hidden());
    }
    dot<kColumns, kValueDim>(grads, grad_out, arena.value(n));
    recompute_p<true>(s, grads, capped, scores, [&](int b, int, int e) { return terms[b][e / 2]; });
    accumulate(sums, grads, arena.key(n));
  }
  cp_async_wait<0>();
  __syncthreads();  // without visits, all vectors must be loaded before the gradients overwrite them

  float factor[kRowBlocks][2];
#pragma unroll
  for (int b = 0; b < kRowBlocks; ++b) factor[b][0] = factor[b][1] = static_cast<float>(p.scale);
  store_rows<kHeadDim>(query, sums, factor, [&](int row) -> Element* {
    const Coord coord = row_coord(traversal, row);
    if (!coord.inside) return nullptr;
    return static_cast<Element*>(p.grad_query) + steps.of(block.sample, block.head, coord) * kHeadDim;
  });
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, NB_WARPS > 4 ? 1 : 2)
    nb_dq_mma(const __grid_constant__ nb::Params p) {
  nb::on_grid<nb::kGradQueryKernel>(p, [](const nb::Params& own, unsigned number) { nb::grad_queries(own, number); });
}
