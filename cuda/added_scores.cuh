// added_scores.cuh - what is added to scores by position: the table of relative positions, ALiBi's slopes.
#pragma once
#include "element.cuh"
#include "tile_traversal.cuh"

namespace nb {
// Of one row: what the pair with each column of a visit needs. Columns are counted from the thread's first one.
struct AddedRow {
  const Accumulator* entry;  // of the first column
  int lap[3], under[3];      // on a circle, coordinates below `under` have entries `lap` later
  int distance;              // from the first column to the row, in positions
  Accumulator slope;
};

// Of one head; with packed query heads, of those in a tile.
template <bool kKeyRows, class Rows, class Columns>
struct AddedScores {
  const Accumulator *table, *slopes;
  TableSteps steps;
  NB_DEVICE AddedScores(const Params& p, int sample, int head) {
    if constexpr (Variant::kTable) {
      steps = table_steps(p);
      table = static_cast<const Accumulator*>(p.relative_bias) +
              static_cast<long long>(head) * p.packed * steps.entries;
    }
    if constexpr (Variant::kAlibi)
      slopes = static_cast<const Accumulator*>(p.alibi_slopes) + static_cast<long long>(sample) * p.slope_step +
               head * p.packed;
  }

  // `first`: the thread's first column in the visit from `start` on.
  NB_DEVICE AddedRow row(const Params& p, const Traversal<Rows>& traversal, const int (&start)[3], int first,
                         int row) const {
    AddedRow r;
    uint32_t entry = 0;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int own = Rows::coordinate(axis, row), x = start[axis] + Columns::coordinate(axis, first);
      if constexpr (Variant::kTable) {
        const RowEntry& e = traversal.entries[Rows::first(axis) + own];
        const uint32_t more = static_cast<uint32_t>(steps.axis[axis]) * static_cast<uint32_t>(x);
        entry += e.base + (kKeyRows ? 0u - more : more);
        r.lap[axis] = e.lap;
        r.under[axis] = e.below - x;
      }
      if (Variant::kAlibi && axis == 2) r.distance = (traversal.axis[2].first + own - x) * p.axis[2].dilation;
      if (Variant::kAlibi && axis == 0)
        r.slope = slopes[p.packed > 1 ? min_of(traversal.axis[0].first + own, p.packed - 1) : 0];
    }
    if constexpr (Variant::kTable) r.entry = table + static_cast<int>(entry);
    return r;
  }

  // The entry of column `more` after the thread's first one: their coordinates add without a carry. Of a pair that is
  // masked it may be anywhere.
  NB_DEVICE const Accumulator* entry(const AddedRow& r, int more) const {
    const Accumulator* at = r.entry;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int c = Columns::coordinate(axis, more);
      at += kKeyRows ? -c * steps.axis[axis] : c * steps.axis[axis];
      if (Variant::kTwoRuns && c < r.under[axis]) at += r.lap[axis];
    }
    return at;
  }

  NB_DEVICE Accumulator of(const Params& p, const AddedRow& r, int more, bool read) const {
    Accumulator sum = 0;
    if constexpr (Variant::kTable)
      if (read) sum = __ldg(entry(r, more));
    if constexpr (Variant::kAlibi) {
      const int distance = r.distance - Columns::coordinate(2, more) * p.axis[2].dilation;
      sum -= r.slope * static_cast<Accumulator>(max_of(distance, -distance));
    }
    return sum;
  }
};
}  // namespace nb
