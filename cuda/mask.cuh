// mask.cuh - masks scores in tensor-core kernels: a word of bits for every row of a thread, one bit for each of its
// columns. A word is the AND, over the axes, of words from a table of prefixes; testing a bit costs about one
// instruction (ptxas moves seven bits at once to predicates).
#pragma once
#include "mma.cuh"
#include "visits.cuh"

namespace nb {
// For each axis, each q = lane % 4 and each coordinate k: the bits of the columns with coordinates below k.
// Bit 2 n + j is column_of(n, j).
template <class Columns>
struct MaskTable {
  static constexpr int kBits = Columns::size / 4, kWords = 4 * (Columns::sum + 3), kBytes = 4 * kWords;
  static_assert(kBits <= 32, "a bit for each column of a thread");
  uint32_t* word;
  NB_DEVICE explicit MaskTable(unsigned char* at) : word(reinterpret_cast<uint32_t*>(at)) {}

  NB_DEVICE static constexpr int first(int axis) { return 4 * (Columns::first(axis) + axis); }

  // Every thread must call it; a barrier before the first use.
  NB_DEVICE void fill() const {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
      for (int i = threadIdx.x; i < 4 * (Columns::of(axis) + 1); i += Variant::kThreads) {
        const int q = i / (Columns::of(axis) + 1), k = i % (Columns::of(axis) + 1);
        uint32_t bits = 0;
        for (int bit = 0; bit < kBits; ++bit) {
          const int column = bit / 2 * 8 + q * 2 + bit % 2;
          bits |= static_cast<uint32_t>(Columns::coordinate(axis, column) < k) << bit;
        }
        word[first(axis) + i] = bits;
      }
  }

  // The bits of the columns in an interval of coordinates, moved by `start` and cut to `count`.
  NB_DEVICE uint32_t between(int axis, Interval x, int start, int count) const {
    const uint32_t* const own = word + (threadIdx.x % 4 * (Columns::of(axis) + 1) + first(axis));
    return own[__viaddmin_s32_relu(x.hi, -start, count)] & ~own[__viaddmin_s32_relu(x.lo, -start, count)];
  }
};

// The columns of a visit that belong to a row.
template <class Rows, class Columns>
NB_DEVICE uint32_t mask_word(const Traversal<Rows>& traversal, const MaskTable<Columns>& table, const StagedVisit& v,
                             int row) {
  uint32_t word = ~0u;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    if (Rows::of(axis) == 1 && Columns::of(axis) == 1) continue;
    const RowRuns runs = traversal.runs[Rows::first(axis) + Rows::coordinate(axis, row)];
    const int start = v.start[axis], count = v.count[axis];
    uint32_t here = table.between(axis, runs.one, start, count);
    if (Variant::kTwoRuns) here |= table.between(axis, runs.other, start, count);
    word &= here;
  }
  return word;
}

// A word for every row of a thread.
template <class Rows, class Columns>
struct MaskWords {
  uint32_t of[Variant::kRowBlocks][2];
  NB_DEVICE MaskWords(const Traversal<Rows>& traversal, const MaskTable<Columns>& table, const StagedVisit& v) {
    uint32_t extra = 0;
    if (v.extra())
      for (int bit = 0; bit < MaskTable<Columns>::kBits; ++bit)
        extra |= static_cast<uint32_t>(column_of(bit / 2, bit % 2) < v.count[2]) << bit;
#pragma unroll
    for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) of[b][h] = v.extra() ? extra : mask_word<Rows>(traversal, table, v, row_of(b, h));
  }
};

// Sets the masked scores to `hidden`.
template <int kColumns, class Words>
NB_DEVICE void apply_mask(Fragment<kColumns>& s, const Words& words, float hidden) {
#pragma unroll
  for (int b = 0; b < Variant::kRowBlocks; ++b)
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int bit = 0; bit < kColumns / 4; ++bit)
        if (!(words.of[b][h] & 1u << bit)) s.at[b][bit / 2][2 * h + bit % 2] = hidden;
}
}  // namespace nb
