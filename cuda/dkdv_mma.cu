// dkdv_mma.cu - gradients of keys and values on tensor cores: rows are keys, columns the queries that attend to
// them, in all query heads of the key head. So only one block adds to a row, without atomics. The last blocks
// compute the extra keys.
#include "backward.cuh"
#include "epilogue.cuh"

namespace nb {
constexpr int kHeadDim = Variant::kHeadDim, kValueDim = Variant::kValueDim, kStages = Variant::kStages;
constexpr int kRows = KeyTile::size, kColumns = QueryTile::size, kRowBlocks = Variant::kRowBlocks;
using KeyVectors = SharedTile<kRows, kHeadDim>;  // the keys; at the end their gradients
using ValueVectors = SharedTile<kRows, kValueDim>;
using QueryVectors = SharedTile<kColumns, kHeadDim>;
using GradVectors = SharedTile<kColumns, kValueDim>;
static_assert(kRows == 16 * Variant::kWarps * kRowBlocks && kColumns % 16 == 0, "fragments are 16 x 16");
constexpr int kStageBytes = QueryVectors::kBytes + GradVectors::kBytes + 8 * kColumns;

struct Stage {  // one tile of queries in shared memory
  QueryVectors query;
  GradVectors grad_out;
  RowTerms* terms;  // one per column
  NB_DEVICE explicit Stage(unsigned char* at)
      : query(at),
        grad_out(at + QueryVectors::kBytes),
        terms(reinterpret_cast<RowTerms*>(at + QueryVectors::kBytes + GradVectors::kBytes)) {}
};

struct Arena {  // the block's shared memory
  static constexpr int kVisits = Traversal<KeyTile>::kBytes, kMasks = kVisits + Visits::kBytes,
                       kVectors = kMasks + MaskTable<QueryTile>::kBytes,
                       kStage = kVectors + KeyVectors::kBytes + ValueVectors::kBytes;
  static_assert(NB_SHARED_BYTES == kStage + kStages * kStageBytes + kGridBytes,
                "nbattn/backends/cuda/tiles.py has drifted");
  unsigned char* base;
  NB_DEVICE Traversal<KeyTile>& traversal() const { return *reinterpret_cast<Traversal<KeyTile>*>(base); }
  NB_DEVICE Visits visits() const { return Visits(base + kVisits); }
  NB_DEVICE MaskTable<QueryTile> masks() const { return MaskTable<QueryTile>(base + kMasks); }
  NB_DEVICE KeyVectors key() const { return KeyVectors(base + kVectors); }
  NB_DEVICE ValueVectors value() const { return ValueVectors(base + kVectors + KeyVectors::kBytes); }
  NB_DEVICE Stage stage(int n) const { return Stage(base + kStage + n % kStages * kStageBytes); }
};

// Queries, their output's gradients and their terms, of all query heads of a key head.
struct QueryColumns {
  BoxCopy<QueryTile, QueryVectors, kHeadDim> query;
  BoxCopy<QueryTile, GradVectors, kValueDim> grad_out;
  TokenSteps tokens;
  long long step[3];           // bytes from one column's terms to the next
  const unsigned char* terms;  // this thread's part of every address
  NB_DEVICE QueryColumns(const Params& p, bool by_position)
      : query(p.query, box_steps(p, p.query_stride, by_position)),
        grad_out(p.grad_out, box_steps(p, p.grad_out_stride, by_position)),
        tokens(token_steps<false>(p)),
        terms(static_cast<const unsigned char*>(p.delta)) {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      step[axis] = tokens.axis[axis] * ((Variant::kExtra && by_position ? 1 : p.axis[axis].dilation) * 8);
      terms += QueryTile::coordinate(axis, threadIdx.x) * step[axis];
    }
  }
  NB_DEVICE void fill(StagedVisit& staged, int n, const Params& p, const Traversal<KeyTile>& traversal,
                      const Block& block) const {
    const Visit v = visit<QueryTile>(traversal, n % traversal.total, {0, 0});
    const int head = block.head * p.group + n / traversal.total;
    set(staged, v);
    const Coord corner = column_coord<QueryTile>(traversal, v, 0);
    staged.offset[0] = offset_of(p.query_stride, block.sample, head, corner);
    staged.offset[1] = offset_of(p.grad_out_stride, block.sample, head, corner);
    staged.terms = tokens.of(block.sample, head, corner) * 8;
    if (Variant::kBias) staged.head = head;
  }
  NB_DEVICE void load(const Stage& to, const StagedVisit& v) const {
    Interval inside[3];
    columns_inside(inside, v);
    query.load(to.query, v.offset[0], inside);
    grad_out.load(to.grad_out, v.offset[1], inside);
    constexpr int kThreads = Variant::kThreads, kCopies = kColumns > kThreads ? kColumns / kThreads : 1;
    if (kThreads > kColumns && threadIdx.x >= kColumns) return;
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      const unsigned char* from = terms + v.terms;
      bool valid = true;
#pragma unroll
      for (int axis = 0; axis < 3; ++axis) {
        const int c = QueryTile::coordinate(axis, j * kThreads);
        from += c * step[axis];
        valid = valid && QueryTile::coordinate(axis, threadIdx.x) + c < v.count[axis];
      }
      cp_async<8>(to.terms + threadIdx.x + j * kThreads, from, valid);
    }
  }
};

NB_DEVICE void load_key_rows(const KeyVectors& key, const ValueVectors& value, const Traversal<KeyTile>& traversal,
                             const Params& p, const Block& block) {
  if (Variant::kExtra && traversal.extra >= 0) {
    const Interval rows = cut(extra_keys(p, block.sample).plus(-traversal.extra), {0, kRows});
    load_extra<kHeadDim, kRows, true>(key, p, p.extra_key, traversal.extra, rows, block.sample, block.head);
    load_extra<kValueDim, kRows, true>(value, p, p.extra_value, traversal.extra, rows, block.sample, block.head);
  } else {
    load_rows<kHeadDim, true>(key, p, traversal, p.key, p.key_stride, block.sample, block.head);
    load_rows<kValueDim, true>(value, p, traversal, p.value, p.value_stride, block.sample, block.head);
  }
}

// Writes the tile's rows to a gradient `[B, *key_space, Hk, kChannels]`, or to the extra keys' `[B, E, Hk, kChannels]`.
template <int kChannels, class Tile, class Sums>
NB_DEVICE void epilogue(const Params& p, const Traversal<KeyTile>& traversal, const Block& block, const Tile& staging,
                        Sums& sums, float scale, void* grid, void* extra) {
  if (Variant::kExtraRange && traversal.extra >= 0) {  // rows outside, of zeros, have weights; their gradients are 0
    const Interval range = extra_keys(p, block.sample);
#pragma unroll
    for (int b = 0; b < kRowBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (!range.has(traversal.extra + row_of(b, h))) clear_row(sums, b, h);
  }
  const TokenSteps steps = token_steps<true>(p);
  float factor[kRowBlocks][2];
#pragma unroll
  for (int b = 0; b < kRowBlocks; ++b) factor[b][0] = factor[b][1] = scale;
  store_rows<kChannels>(staging, sums, factor, [&](int row) -> Element* {
    if (Variant::kExtra && traversal.extra >= 0) {
      const int e = traversal.extra + row;
      if (e >= p.extra) return nullptr;
      return static_cast<Element*>(extra) + extra_offset(p, block.sample, e, block.head, kChannels);
    }
    const Coord coord = row_coord(traversal, row);
    if (!coord.inside) return nullptr;
    return static_cast<Element*>(grid) + steps.of(block.sample, block.head, coord) * kChannels;
  });
}

NB_DEVICE void grad_keys(const Params& p, unsigned number) {
  NB_DYNAMIC_SHARED(shared);
  const Arena arena{shared};
  auto& traversal = arena.traversal();
  const Visits visits = arena.visits();
  const MaskTable<QueryTile> masks = arena.masks();
  const KeyVectors key = arena.key();
  const ValueVectors value = arena.value();
  const int tiles = row_tiles<true, KeyTile>(p) + extra_tiles({0, p.extra}, kRows);
  const Block block = block_of(number, tiles, p.heads / p.group);
  begin_traversal<true, KeyTile, QueryTile>(traversal, p, block.tile, block.sample);
  if (traversal.extra < 0 && !has_rows(traversal)) return;

  const int total = traversal.total * p.group;
  const QueryColumns columns(p, Variant::kExtra && traversal.extra >= 0);
  const auto stage = [&](int n) {
    visits.stage(n, total, [&](StagedVisit& staged, int at) { columns.fill(staged, at, p, traversal, block); });
  };
  const auto fetch = [&](int n) {
    if (n < total) columns.load(arena.stage(n), visits[n]);
    cp_async_commit();
  };
  load_key_rows(key, value, traversal, p, block);
  stage(0);
  masks.fill();
  __syncthreads();  // the first visits are staged
#pragma unroll
  for (int n = 0; n < kStages - 1; ++n) fetch(n);

  const Scores scores(p);
  Fragment<GradVectors::kPadded> value_sums;
  Fragment<QueryVectors::kPadded> key_sums;
  value_sums.clear();
  key_sums.clear();
  // A visit of 64 x 64 at head size 64 issues 527 instructions on sm_90, with 128 HMMA: tests/golden/kernels.json.
  for (int n = 0; n < total; ++n) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // tile n is loaded for all threads, and all have used tile n - 1
    stage(n + kStages);
    fetch(n + kStages - 1);
    const Stage here = arena.stage(n);
    Fragment<kColumns> s, grads;
    dot<kColumns, kHeadDim>(s, key, here.query);
    scores.softcap(s);
    const Capped<kColumns> capped(s);
    const StagedVisit& v = visits[n];
    const auto add_bias = [&](const auto& read) {
      scores.add_bias<true, KeyTile, QueryTile>(s, p, traversal, v, block.sample, v.head, read);
    };
    if (v.full()) {
      add_bias([](int, int, int) { return true; });
    } else {
      const MaskWords<KeyTile, QueryTile> words(traversal, masks, v);
      add_bias([&](int b, int h, int bit) { return words.of[b][h] >> bit & 1; });
      apply_mask(s, words, scores.hidden());
    }
    if (Variant::kGradKey) dot<kColumns, kValueDim>(grads, value, here.grad_out);
    recompute_p<Variant::kGradKey>(s, grads, capped, scores,
                                   [&](int, int n, int e) { return here.terms[column_of(n, e % 2)]; });
    if (Variant::kGradValue) accumulate(value_sums, s, here.grad_out);
    if (Variant::kGradKey) accumulate(key_sums, grads, here.query);
  }
  cp_async_wait<0>();
  __syncthreads();  // without visits, all vectors must be loaded before the gradients overwrite them
  if (Variant::kGradValue)
    epilogue<kValueDim>(p, traversal, block, value, value_sums, 1.f, p.grad_value, p.grad_extra_value);
  if (Variant::kGradKey)
    epilogue<kHeadDim>(p, traversal, block, key, key_sums, static_cast<float>(p.scale), p.grad_key,
                       p.grad_extra_key);
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, NB_WARPS > 4 ? 1 : 2)
    nb_dkdv_mma(const __grid_constant__ nb::Params p) {
  nb::on_grid<nb::kGradKeyKernel>(p, [](const nb::Params& own, unsigned number) { nb::grad_keys(own, number); });
}
