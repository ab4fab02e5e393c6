// dq_wgmma.cu - gradients of the queries for sm_90a: roles and traversal of the forward, with weights recomputed from
// the final logsumexp. The gradients of scores are operands in registers; both products of a visit use the keys.
#include "backward.cuh"
#include "query_rows.cuh"
#include "row_output.cuh"

namespace nb {
using GradVectors = SwizzledTile<kRows, kValueDim>;
using Arena = QueryArena<QueryVectors::kBytes + GradVectors::kBytes>;

NB_DEVICE RowTerms terms_of(const Params& p, const Traversal<QueryTile>& traversal, const Place& place, int row) {
  const Coord coord = row_coord(traversal, row);
  if (!coord.inside) return {0.f, 0.f};
  return static_cast<const RowTerms*>(p.delta)[token_steps<false>(p).of(place.sample, place.head, coord)];
}

// One warpgroup's 64 queries.
struct Consumer {
  const MappedParams& m;
  const Arena& arena;
  const int group;  // of the block's consumers
  Scores scores;
  RowTerms terms[2];
  Fragment<kHeadDim> sums;
  uint32_t products[kColumns / 16][4];  // their gradients

  NB_DEVICE Consumer(const MappedParams& m, const Arena& arena)
      : m(m), arena(arena), group(warpgroup()), scores(m.p) {
#pragma unroll
    for (int h = 0; h < 2; ++h) terms[h] = terms_of(m.p, arena.traversal(), arena.place(), row_of(0, h));
    sums.clear();
  }

  // Starts the scores of visit n while the sums of the one before run; ends with its own sums running.
  template <bool kFirst>
  NB_DEVICE void visit(unsigned n) {
    Fragment<kColumns> s, grads;
    arena.keys().wait_full(n);
    if (Variant::kExtraRange) {
      arena.values().wait_full(n);
      clear_outside(arena.key(n), arena.visits()[n]);
      clear_outside(arena.value(n), arena.visits()[n]);
    }
    wgmma_fence();
    dot_async<kColumns, kHeadDim, QueryVectors, KeyVectors>(
        s.at[0], QueryVectors(arena.base).k_major(64 * group), arena.key(n).k_major());
    wgmma_commit();
    if (!kFirst) {
      wgmma_wait<1>();
      pin(sums.at[0]);
      arena.keys().release(n - 1);
    }
    arena.values().wait_full(n);
    wgmma_fence();
    dot_async<kColumns, kValueDim, GradVectors, ValueVectors>(
        grads.at[0], GradVectors(arena.base + QueryVectors::kBytes).k_major(64 * group), arena.value(n).k_major());
    wgmma_commit();
    wgmma_wait<1>();
    pin(s.at[0]);
    scores.softcap(s);
    const Capped<kColumns> capped(s);
    hide_masked(s, arena, n, scores.hidden());
    wgmma_wait<0>();
    pin(grads.at[0]);
    arena.values().release(n);
    recompute_p<true>(s, grads, capped, scores, [&](int, int, int e) { return terms[e / 2]; });
    pack(products, grads.at[0]);
    pin(products);
    wgmma_fence();
    accumulate_async<kColumns / 16, kHeadDim / 8, KeyVectors>(sums.at[0], products, arena.key(n).mn_major());
    wgmma_commit();
  }

  NB_DEVICE void visits(unsigned total) {
    mbarrier_wait(arena.rows(), 0);
    visit<true>(0);
    // A visit of 128 columns at head size 128 issues 417 instructions, 24 of them HGMMA: tests/golden/kernels.json.
    for (unsigned n = 1; n < total; ++n) visit<false>(n);
    wgmma_wait<0>();
    pin(sums.at[0]);
  }

  NB_DEVICE void epilogue() const {
    const float scale = static_cast<float>(m.p.scale), factor[2] = {scale, scale};
    const TokenSteps steps = token_steps<false>(m.p);
    const Place place = arena.place();
    wait_for_group(group);  // all warps have used the queries
    write_rows<kHeadDim>(QueryVectors(arena.base), sums, factor, [&](int row) -> Element* {
      const Coord coord = row_coord(arena.traversal(), row);
      if (!coord.inside) return nullptr;
      return static_cast<Element*>(m.p.grad_query) + steps.of(place.sample, place.head, coord) * kHeadDim;
    });
  }
};
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, 1)
    nb_dq_wgmma(const __grid_constant__ nb::MappedParams m) {
  using namespace nb;
  NB_DYNAMIC_SHARED(shared);
  const Arena arena{shared};
  run_block(
      m, arena, 2,
      [&] {
        const auto& traversal = arena.traversal();
        load_rows(QueryVectors(shared), arena.rows(), m, kQueryMap, traversal, arena.place());
        load_rows(GradVectors(shared + QueryVectors::kBytes), arena.rows(), m, kGradOutMap, traversal,
                  arena.place());
      },
      [&](int total) {
        Consumer c(m, arena);
        if (total) c.visits(total);
        c.epilogue();
      });
}
