// fwd_wgmma.cu - the forward for sm_90a: one warp copies boxes of keys and values by tensor maps, warpgroups of 64
// queries compute. The weights of a visit are computed while the next scores and the sums before run.
#include "query_rows.cuh"
#include "row_output.cuh"

namespace nb {
using OutputVectors = SwizzledTile<kRows, kValueDim>;  // at the end, in place of the queries
using Arena = QueryArena<kRows * (kHeadDim > kValueDim ? kHeadDim : kValueDim) * 2>;

// One warpgroup's 64 queries.
struct Consumer {
  const MappedParams& m;
  const Arena& arena;
  const int group;  // of the block's consumers
  Scores scores;
  bool negative;  // a negative scale: the largest product is the smallest score
  Softmax state;
  Fragment<kColumns> s;
  Fragment<kValueDim> out;
  uint32_t weights[kColumns / 16][4];

  NB_DEVICE Consumer(const MappedParams& m, const Arena& arena)
      : m(m), arena(arena), group(warpgroup()), scores(m.p), negative(scores.factor < 0.f) {
    const float sink = m.p.sink ? static_cast<const float*>(m.p.sink)[arena.place().head] : -NB_INFINITY;
    state.begin(0, 0, sink);
    state.begin(0, 1, sink);
    scores.factor = fabsf(scores.factor);
    out.clear();
  }

  // Starts the scores of visit n and, unless it is the first, the sums of the one before; ends with the weights of n.
  template <bool kFirst>
  NB_DEVICE void visit(unsigned n, const Turns& turns) {
    arena.keys().wait_full(n);
    if (!kFirst) clear(n - 1);
    turns.begin();
    pin(s.at[0]);
    pin(out.at[0]);
    if (!kFirst) pin(weights);
    wgmma_fence();
    dot_async<kColumns, kHeadDim, QueryVectors, KeyVectors>(
        s.at[0], QueryVectors(arena.base).k_major(64 * group), arena.key(n).k_major());
    wgmma_commit();
    if (!kFirst) add(n - 1);
    turns.end();
    wgmma_wait<kFirst ? 0 : 1>();
    pin(s.at[0]);
    arena.keys().release(n);
    if (negative) negate(s);
    scores.softcap(s);
    hide_masked(s, arena, n, -NB_INFINITY);
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

  // Before its values are added.
  NB_DEVICE void clear(unsigned n) const {
    if (!Variant::kExtraRange) return;
    arena.values().wait_full(n);
    clear_outside(arena.value(n), arena.visits()[n]);
  }

  // Starts to add the values of visit n.
  NB_DEVICE void add(unsigned n) {
    arena.values().wait_full(n);
    accumulate_async<kColumns / 16, kValueDim / 8, ValueVectors>(out.at[0], weights, arena.value(n).mn_major());
    wgmma_commit();
  }

  NB_DEVICE void visits(unsigned total) {
    mbarrier_wait(arena.rows(), 0);
    const Turns turns(group);
    visit<true>(0, turns);
    // A visit of 128 columns at head size 128 issues 399 instructions, 16 of them HGMMA: tests/golden/kernels.json.
    for (unsigned n = 1; n < total; ++n) visit<false>(n, turns);
    turns.finish();
    clear(total - 1);
    pin(out.at[0]);
    pin(weights);
    wgmma_fence();
    add(total - 1);
    wgmma_wait<0>();
    pin(out.at[0]);
  }

  NB_DEVICE void epilogue() const {
    const Params& p = m.p;
    const TokenSteps steps = token_steps<false>(p);
    const Place place = arena.place();
    float inverse[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = row_sum(state.sum[0][h]);
      inverse[h] = sum == 0.f ? 0.f : 1.f / sum;
      const Coord coord = row_coord(arena.traversal(), row_of(0, h));
      if (p.lse && coord.inside && threadIdx.x % 4 == 0)
        static_cast<float*>(p.lse)[steps.of(place.sample, place.head, coord)] =
            sum == 0.f ? -NB_INFINITY : (state.max[0][h] + log2f(sum)) * kLn2;
    }
    // All warps have used the queries; rows of another size are where another consumer's queries are.
    if (kHeadDim == kValueDim) wait_for_group(group);
    else wait_for_consumers();
    write_rows<kValueDim>(OutputVectors(arena.base), out, inverse, [&](int row) -> Element* {
      const Coord coord = row_coord(arena.traversal(), row);
      if (!coord.inside) return nullptr;
      return static_cast<Element*>(p.out) + steps.of(place.sample, place.head, coord) * kValueDim;
    });
  }
};
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, 1)
    nb_fwd_wgmma(const __grid_constant__ nb::MappedParams m) {
  using namespace nb;
  NB_DYNAMIC_SHARED(shared);
  const Arena arena{shared};
  run_block(
      m, arena, 1,
      [&] {
        load_rows(QueryVectors(shared), arena.rows(), m, kQueryMap, arena.traversal(), arena.place());
      },
      [&](int total) {
        Consumer c(m, arena);
        if (total) c.visits(total);
        c.epilogue();
      });
}
