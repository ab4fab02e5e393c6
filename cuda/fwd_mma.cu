// fwd_mma.cu - the forward on tensor cores: one tile of queries visits tiles of keys and values. cp.async loads a
// tile while the previous one is used; the online softmax is in registers.
#include "epilogue.cuh"
#include "mask.cuh"
#include "softmax.cuh"

namespace nb {
constexpr int kHeadDim = Variant::kHeadDim, kValueDim = Variant::kValueDim, kStages = Variant::kStages;
constexpr int kRows = QueryTile::size, kColumns = KeyTile::size, kRowBlocks = Variant::kRowBlocks;
constexpr int kWide = kHeadDim > kValueDim ? kHeadDim : kValueDim;
using RowVectors = SharedTile<kRows, kWide>;  // the queries; at the end the output
using KeyVectors = SharedTile<kColumns, kHeadDim>;
using ValueVectors = SharedTile<kColumns, kValueDim>;
using Output = Fragment<ValueVectors::kPadded>;
static_assert(kRows == 16 * Variant::kWarps * kRowBlocks && kColumns % 16 == 0, "fragments are 16 x 16");
constexpr bool kKeep = kRowBlocks == 1 && kHeadDim <= 128;  // whether registers suffice to keep the queries
constexpr int kStageBytes = KeyVectors::kBytes + ValueVectors::kBytes;

struct Arena {  // the block's shared memory
  static constexpr int kVisits = Traversal<QueryTile>::kBytes, kMasks = kVisits + Visits::kBytes,
                       kVectors = kMasks + MaskTable<KeyTile>::kBytes, kStage = kVectors + RowVectors::kBytes;
  static_assert(NB_SHARED_BYTES == kStage + kStages * kStageBytes + kGridBytes,
                "nbattn/backends/cuda/tiles.py has drifted");
  unsigned char* base;
  NB_DEVICE Traversal<QueryTile>& traversal() const { return *reinterpret_cast<Traversal<QueryTile>*>(base); }
  NB_DEVICE Visits visits() const { return Visits(base + kVisits); }
  NB_DEVICE MaskTable<KeyTile> masks() const { return MaskTable<KeyTile>(base + kMasks); }
  NB_DEVICE RowVectors query() const { return RowVectors(base + kVectors); }
  NB_DEVICE KeyVectors key(int n) const { return KeyVectors(base + kStage + n % kStages * kStageBytes); }
  NB_DEVICE ValueVectors value(int n) const {
    return ValueVectors(base + kStage + n % kStages * kStageBytes + KeyVectors::kBytes);
  }
};

// Changes the signs of this warp's queries: then the scale is positive, and the largest product is the largest score.
NB_DEVICE void negate_rows(const RowVectors& query) {
  const int first = threadIdx.x / 32 * kRowBlocks * 16;
  for (int i = threadIdx.x % 32; i < kRowBlocks * 16 * RowVectors::kChunks; i += 32) {
    uint32_t* const pair =
        reinterpret_cast<uint32_t*>(query.chunk(first + i / RowVectors::kChunks, i % RowVectors::kChunks));
    for (int e = 0; e < 4; ++e) pair[e] ^= 0x80008000u;
  }
  __syncwarp();
}

NB_DEVICE void begin(Softmax& state, const Params& p, const Traversal<QueryTile>& traversal, const Block& block) {
#pragma unroll
  for (int b = 0; b < kRowBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sink = -NB_INFINITY;
      if (p.sink) {
        const Coord coord = row_coord(traversal, row_of(b, h));
        const int more = p.packed > 1 && coord.inside ? coord.at[0] : 0;
        sink = static_cast<const float*>(p.sink)[block.head * p.packed + more];
      }
      state.begin(b, h, sink);
    }
}

NB_DEVICE void epilogue(const Params& p, const Traversal<QueryTile>& traversal, const Block& block,
                        const RowVectors& staging, const Softmax& state, const Output& out) {
  const TokenSteps steps = token_steps<false>(p);
  float inverse[kRowBlocks][2];
#pragma unroll
  for (int b = 0; b < kRowBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float sum = row_sum(state.sum[b][h]);
      inverse[b][h] = sum == 0.f ? 0.f : 1.f / sum;
      const Coord coord = row_coord(traversal, row_of(b, h));
      if (p.lse && coord.inside && threadIdx.x % 4 == 0)
        static_cast<float*>(p.lse)[steps.of(block.sample, block.head, coord)] =
            sum == 0.f ? -NB_INFINITY : (state.max[b][h] + log2f(sum)) * kLn2;
    }
  store_rows<kValueDim>(staging, out, inverse, [&](int row) -> Element* {
    const Coord coord = row_coord(traversal, row);
    if (!coord.inside) return nullptr;
    return static_cast<Element*>(p.out) + steps.of(block.sample, block.head, coord) * kValueDim;
  });
}

NB_DEVICE void forward(const Params& p, unsigned number) {
  NB_DYNAMIC_SHARED(shared);
  const Arena arena{shared};
  auto& traversal = arena.traversal();
  const Visits visits = arena.visits();
  const MaskTable<KeyTile> masks = arena.masks();
  const RowVectors query = arena.query();
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
  cp_async_commit();
  stage(0);
  masks.fill();
  __syncthreads();  // the first visits are staged
#pragma unroll
  for (int n = 0; n < kStages - 1; ++n) fetch(n);

  Scores scores(p);
  Softmax state;
  begin(state, p, traversal, block);
  Output out;
  out.clear();
  cp_async_wait<kStages - 1>();
  __syncthreads();  // the queries are loaded for all threads
  if (scores.factor < 0.f) {
    negate_rows(query);
    scores.factor = -scores.factor;
  }
  KeptRows<kHeadDim> kept;
  if (kKeep) kept.keep(query);
  // A visit of 64 x 64 at head size 128 issues 507 instructions on sm_90, with 128 HMMA: tests/golden/kernels.json.
  for (int n = 0; n < total; ++n) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // tile n is loaded for all threads, and all have used tile n - 1
    stage(n + kStages);
    fetch(n + kStages - 1);
    Fragment<kColumns> s;
    if (kKeep) dot<kColumns, kHeadDim>(s, kept, arena.key(n));
    else dot<kColumns, kHeadDim>(s, query, arena.key(n));
    scores.softcap(s);
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
    online_softmax(s, state, out, scores.factor);
    accumulate(out, s, arena.value(n));
  }
  epilogue(p, traversal, block, query, state, out);
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, NB_WARPS > 4 ? 1 : 2)
    nb_fwd_mma(const __grid_constant__ nb::Params p) {
  nb::on_grid<nb::kForwardKernel>(p, [](const nb::Params& own, unsigned number) { nb::forward(own, number); });
}
