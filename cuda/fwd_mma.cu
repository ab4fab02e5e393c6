// fwd_mma.cu - the forward on tensor cores: one tile of queries visits tiles of keys and values. cp.async loads a
// tile while the previous one is used; the online softmax is in registers.
#include "vectors.cuh"

namespace nb {
constexpr int kRows = QueryTile::size, kColumns = KeyTile::size;
constexpr int kWide = kHeadDim > kValueDim ? kHeadDim : kValueDim;
using RowVectors = SharedTile<kRows, kWide>;  // the queries; at the end the output
using KeyVectors = SharedTile<kColumns, kHeadDim>;
using ValueVectors = SharedTile<kColumns, kValueDim>;
using Weights = Fragment<kColumns>;
using Output = Fragment<ValueVectors::kPadded>;
static_assert(kRows == 16 * kWarps * kBlocks && kColumns % 16 == 0, "fragments are 16 x 16");
constexpr bool kKeep = kBlocks == 1 && kHeadDim <= 128;  // whether registers suffice to keep the queries
constexpr int kStageBytes = KeyVectors::kBytes + ValueVectors::kBytes;
static_assert(NB_SHARED_BYTES == Walk<QueryTile>::kBytes + RowVectors::kBytes + kStages * kStageBytes,
              "nbattn/backends/cuda/tiles.py has drifted");

struct State {  // the running softmax: the maximum in units of log 2, and this thread's part of the sum
  float max[kBlocks][2], sum[kBlocks][2];
};

// Replaces scores by weights relative to the running maximum, and rescales the output where the maximum grows.
NB_DEVICE void soften(Weights& s, State& state, Output& out) {
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = state.max[b][h];
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) top = fmaxf(top, fmaxf(s.at[b][n][2 * h], s.at[b][n][2 * h + 1]));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      const float base = top == -NB_INFINITY ? 0.f : top, shrink = ex2(state.max[b][h] - base);
      state.max[b][h] = top;
      float sum = state.sum[b][h] * shrink;
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& x = s.at[b][n][2 * h + j];
          x = ex2(x - base);
          sum += x;
        }
      state.sum[b][h] = sum;
#pragma unroll
      for (int n = 0; n < ValueVectors::kPadded / 8; ++n) {
        out.at[b][n][2 * h] *= shrink;
        out.at[b][n][2 * h + 1] *= shrink;
      }
    }
}

NB_DEVICE void begin(State& state, const Params& p, int head) {
  const float sink = p.sink ? static_cast<const float*>(p.sink)[head] * kLog2e : -NB_INFINITY;
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      state.max[b][h] = sink;
      state.sum[b][h] = sink != -NB_INFINITY && threadIdx.x % 4 == 0 ? 1.f : 0.f;
    }
}

NB_DEVICE void finish(const Params& p, const Walk<QueryTile>& walk, const Block& block, const RowVectors& staging,
                      const State& state, const Output& out) {
  float inverse[kBlocks][2];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = state.sum[b][h];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      inverse[b][h] = sum == 0.f ? 0.f : 1.f / sum;
      const Place place = row_place(walk, row_of(b, h));
      if (p.lse && place.inside && threadIdx.x % 4 == 0)
        static_cast<float*>(p.lse)[token_head(p, block.sample, place, block.head, false)] =
            sum == 0.f ? -NB_INFINITY : (state.max[b][h] + log2f(sum)) * kLn2;
    }
  store_rows<kValueDim>(staging, out, inverse, [&](int row) -> Element* {
    const Place place = row_place(walk, row);
    if (!place.inside) return nullptr;
    return static_cast<Element*>(p.out) + token_head(p, block.sample, place, block.head, false) * kValueDim;
  });
}

NB_DEVICE void forward(const Params& p) {
  NB_DYNAMIC_SHARED(shared);
  auto& walk = *reinterpret_cast<Walk<QueryTile>*>(shared);
  unsigned char* const vectors = shared + Walk<QueryTile>::kBytes;
  const RowVectors query{reinterpret_cast<Element*>(vectors)};
  const auto key = [&](int n) {
    return KeyVectors{reinterpret_cast<Element*>(vectors + RowVectors::kBytes + n % kStages * kStageBytes)};
  };
  const auto value = [&](int n) {
    return ValueVectors{reinterpret_cast<Element*>(vectors + RowVectors::kBytes + n % kStages * kStageBytes +
                                                   KeyVectors::kBytes)};
  };
  const Block block = block_of(p, row_tiles<false, QueryTile>(p), p.heads);
  const int key_head = block.head / p.group;
  begin_walk<false, QueryTile, KeyTile>(walk, p, block.tile, block.sample);
  if (!has_rows(walk)) return;

  const auto is_visit = [&](int n) { return n < walk.total + extra_tiles(p, kColumns); };  // saves a register
  const auto fetch = [&](int n) {
    if (is_visit(n))
      load_keys(key(n), value(n), walk, visit<KeyTile>(walk, n, p.extra), p, block.sample, key_head);
    cp_async_commit();
  };
  load_rows<kHeadDim>(query, walk, p.query, p.query_stride, block.sample, block.head);
#pragma unroll
  for (int n = 0; n < kStages - 1; ++n) fetch(n);

  const Scores scores(p);
  State state;
  begin(state, p, block.head);
  Output out;
  out.clear();
  KeptRows<kHeadDim> kept;
  for (int n = 0; is_visit(n); ++n) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // tile n is loaded for all threads, and all have used tile n - 1
    fetch(n + kStages - 1);
    Weights s;
    if (kKeep && n == 0) kept.keep(query);
    if (kKeep) dot<kColumns, kHeadDim>(s, kept, key(n));
    else dot<kColumns, kHeadDim>(s, query, key(n));
    score(s, scores);
    hide_from_queries(s, -NB_INFINITY, walk, visit<KeyTile>(walk, n, p.extra));
    soften(s, state, out);
    accumulate(out, s, value(n));
  }
  cp_async_wait<0>();
  __syncthreads();  // without visits, the queries must be loaded before the output overwrites them
  finish(p, walk, block, query, state, out);
}
}  // namespace nb

extern "C" __global__ void __launch_bounds__(32 * NB_WARPS, NB_WARPS > 4 ? 1 : 2)
    nb_fwd_mma(const __grid_constant__ nb::Params p) {
  nb::forward(p);
}
