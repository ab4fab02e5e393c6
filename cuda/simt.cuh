// simt.cuh - shared by the kernels without tensor cores: a block has four warps, each with its own rows; each lane
// computes one column of a visit. Products are summed over chunks of 32 channels in shared memory.
#pragma once
#include "added_scores.cuh"
#include "block.cuh"

namespace nb {
constexpr int kWarps = 4, kThreads = 128, kLanes = 32, kPitch = 33;  // odd, against bank conflicts
constexpr int kHeadDim = Variant::kHeadDim, kValueDim = Variant::kValueDim;
template <int kChannels>
struct Chunks {
  static constexpr int count = (kChannels + kLanes - 1) / kLanes;
};

template <class Rows, class Columns>
struct Arena {
  static_assert(Rows::size % kWarps == 0 && Columns::size == kLanes, "a lane for every column");
  static constexpr int kRows = Rows::size, kOwn = kRows / kWarps;  // rows of one warp
  static constexpr int kBytes = Traversal<Rows>::kBytes + 8 * (3 * kRows + 3 * kLanes) +
                                (2 * kRows + kLanes) * kPitch * static_cast<int>(sizeof(Accumulator));
  static_assert(NB_SHARED_BYTES == kBytes + kGridBytes, "nbattn/backends/cuda/tiles.py has drifted");
  Traversal<Rows>* traversal;
  long long *row_a, *row_b;        // offsets of the rows in two tensors; -1: outside, loaded as zeros
  long long *column_a, *column_b;  // the same for the columns
  long long *row_token, *column_token;  // indices of (token, head) in `[B, *space, H]`; -1 outside
  Accumulator *rows, *columns;      // vectors of 32 channels
  Accumulator* weights;             // one per row and column

  NB_DEVICE explicit Arena(unsigned char* shared) {
    traversal = reinterpret_cast<Traversal<Rows>*>(shared);
    row_a = reinterpret_cast<long long*>(shared + Traversal<Rows>::kBytes);
    row_b = row_a + kRows;
    row_token = row_b + kRows;
    column_a = row_token + kRows;
    column_b = column_a + kLanes;
    column_token = column_b + kLanes;
    rows = reinterpret_cast<Accumulator*>(column_token + kLanes);
    columns = rows + kRows * kPitch;
    weights = columns + kLanes * kPitch;
  }

  // Loads `count` vectors of 32 channels from `channel` on; zeros outside.
  NB_DEVICE static void load(Accumulator* to, int count, const void* from, const long long* offsets, int channel,
                             int channels, long long step) {
    for (int i = threadIdx.x; i < count * kLanes; i += kThreads) {
      const int vector = i / kLanes, c = channel + i % kLanes;
      const bool inside = offsets[vector] >= 0 && c < channels;
      to[vector * kPitch + i % kLanes] =
          inside ? widen(static_cast<const Element*>(from)[offsets[vector] + c * step]) : Accumulator(0);
    }
  }

  // products[r] = dot product of this warp's row r and the lane's column.
  NB_DEVICE void scores(Accumulator (&products)[kOwn], const void* row_tensor, const long long* row_offsets,
                        long long row_step, const void* column_tensor, const long long* column_offsets,
                        long long column_step, int channels) {
    const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes * kOwn;
#pragma unroll
    for (int r = 0; r < kOwn; ++r) products[r] = 0;
    for (int channel = 0; channel < channels; channel += kLanes) {
      __syncthreads();  // all threads have used the previous chunks
      load(rows, kRows, row_tensor, row_offsets, channel, channels, row_step);
      load(columns, kLanes, column_tensor, column_offsets, channel, channels, column_step);
      __syncthreads();
      for (int k = 0; k < kLanes; ++k)
#pragma unroll
        for (int r = 0; r < kOwn; ++r) products[r] += rows[(own + r) * kPitch + k] * columns[lane * kPitch + k];
    }
  }

  // sums[i][r] += sum over columns of row r's weight times the column's channel 32 i + lane.
  template <int kChannels>
  NB_DEVICE void accumulate(Accumulator (&sums)[Chunks<kChannels>::count][kOwn], const void* tensor,
                            const long long* offsets, long long step) {
    const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes * kOwn;
#pragma unroll
    for (int i = 0; i < Chunks<kChannels>::count; ++i) {
      __syncthreads();
      load(columns, kLanes, tensor, offsets, i * kLanes, kChannels, step);
      __syncthreads();
      for (int k = 0; k < kLanes; ++k)
#pragma unroll
        for (int r = 0; r < kOwn; ++r) sums[i][r] += weights[(own + r) * kPitch + k] * columns[k * kPitch + lane];
    }
  }

  // Stores a weight of row r and the lane's column; this warp can use it after the next barrier of accumulate().
  NB_DEVICE void keep(int r, Accumulator weight) {
    weights[(threadIdx.x / kLanes * kOwn + r) * kPitch + threadIdx.x % kLanes] = weight;
  }

  // Writes this warp's rows, row r times factor[r], to a contiguous tensor `[B, *space, H, kChannels]`.
  template <int kChannels>
  NB_DEVICE void write(void* to, const long long* tokens, const Accumulator (&sums)[Chunks<kChannels>::count][kOwn],
                       const Accumulator (&factor)[kOwn]) {
    const int lane = threadIdx.x % kLanes, own = threadIdx.x / kLanes * kOwn;
#pragma unroll
    for (int i = 0; i < Chunks<kChannels>::count; ++i)
#pragma unroll
      for (int r = 0; r < kOwn; ++r)
        if (tokens[own + r] >= 0 && i * kLanes + lane < kChannels)
          store(static_cast<Element*>(to) + tokens[own + r] * kChannels + i * kLanes + lane, sums[i][r] * factor[r]);
  }
};

NB_DEVICE long long offset_in(const Strides& s, int sample, int head, const Coord& coord) {
  return coord.inside ? sample * s.batch + head * s.head + coord.offset(s) : -1;
}

// Sets the offsets of the rows for queries: a in the queries, b in grad_out.
template <class Rows, class Columns>
NB_DEVICE void query_rows(Arena<Rows, Columns>& arena, const Params& p, const Block& block) {
  const TokenSteps steps = token_steps<false>(p);
  for (int i = threadIdx.x; i < Rows::size; i += kThreads) {
    const Coord coord = row_coord(*arena.traversal, i);
    arena.row_a[i] = offset_in(p.query_stride, block.sample, block.head, coord);
    arena.row_b[i] = offset_in(p.grad_out_stride, block.sample, block.head, coord);
    arena.row_token[i] = coord.inside ? steps.of(block.sample, block.head, coord) : -1;
  }
}

// Sets the offsets of the columns for the keys of a visit: a in the keys, b in the values.
template <class Rows, class Columns>
NB_DEVICE void key_columns(Arena<Rows, Columns>& arena, const Params& p, const Visit& v, int sample, int head) {
  const int lane = threadIdx.x;
  if (lane >= kLanes) return;
  if (v.extra) {
    const bool inside = lane < v.count[2];
    const int e = v.start[2] + lane;
    arena.column_a[lane] = inside ? extra_offset(p, sample, e, head, kHeadDim) : -1;
    arena.column_b[lane] = inside ? extra_offset(p, sample, e, head, kValueDim) : -1;
  } else {
    const Coord coord = column_coord<Columns>(*arena.traversal, v, lane);
    arena.column_a[lane] = offset_in(p.key_stride, sample, head, coord);
    arena.column_b[lane] = offset_in(p.value_stride, sample, head, coord);
  }
}

// The score of a product: scaled and, with NB_SOFTCAP, capped; `slope` is the softcap's derivative.
NB_DEVICE Accumulator score_of(const Params& p, Accumulator product, Accumulator* slope) {
  const Accumulator scaled = product * static_cast<Accumulator>(p.scale);
  if constexpr (Variant::kSoftcap) {
    const Accumulator cap = static_cast<Accumulator>(p.softcap), bent = tanh_of(scaled / cap);
    *slope = 1 - bent * bent;
    return cap * bent;
  }
  *slope = 1;
  return scaled;
}

// The score of a row and a lane's column with what is added to it; extra keys, rows or columns, get nothing.
template <bool kKeyRows, class Rows, class Columns>
NB_DEVICE Accumulator with_bias(Accumulator score, const AddedScores<kKeyRows, Rows, Columns>& added, const Params& p,
                                const Traversal<Rows>& traversal, const Visit& v, int row, bool read) {
  if (!Variant::kBias || !read || v.extra || traversal.extra >= 0) return score;
  return score + added.of(p, added.row(p, traversal, v.start, threadIdx.x % kLanes, row), 0, true);
}

NB_DEVICE Accumulator warp_max(Accumulator x) {
#pragma unroll
  for (int step = 16; step; step /= 2) x = larger(x, __shfl_xor_sync(~0u, x, step));
  return x;
}
NB_DEVICE Accumulator warp_sum(Accumulator x) {
#pragma unroll
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}
}  // namespace nb
