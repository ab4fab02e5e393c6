// added_scores.cuh - what is added to scores by position: the table of relative positions, ALiBi's slopes.
#pragma once
#include "element.cuh"
#include "tile_traversal.cuh"

namespace nb {
// Of one row: what the pair with each column of a visit needs. Columns are counted from the thread's first one.
struct AddedRow {
  uint32_t entry, lap[3];
  int under[3];        // the circle has begun again for coordinates below
  int distance;        // from the column to the row, in positions
  Accumulator slope;
};

// Of one head; with packed query heads, of those in a tile.
template <bool kKeyRows, class Rows, class Columns>
struct AddedScores {
  const Accumulator *table, *slopes;
  TableSteps steps;
  uint32_t limit;  // entries of all tables: those of masked pairs may be past it
  NB_DEVICE AddedScores(const Params& p, int sample, int head) {
    if constexpr (Variant::kTable) {
      steps = table_steps(p);
      limit = steps.entries * p.packed;
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
    r.entry = 0;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int own = Rows::coordinate(axis, row), x = start[axis] + Columns::coordinate(axis, first);
      if constexpr (Variant::kTable) {
        const RowEntry& e = traversal.entries[Rows::first(axis) + own];
        const uint32_t more = steps.axis[axis] * static_cast<uint32_t>(x);
        r.entry += e.base + (kKeyRows ? 0u - more : more);
        r.lap[axis] = e.lap;
        r.under[axis] = e.below - x;
      }
      if (Variant::kAlibi && axis == 2) r.distance = (traversal.axis[2].first + own - x) * p.axis[2].dilation;
      if (Variant::kAlibi && axis == 0)
        r.slope = slopes[p.packed > 1 ? min_of(traversal.axis[0].first + own, p.packed - 1) : 0];
    }
    return r;
  }

  // Column `more` after the thread's first one: their coordinates add without a carry.
  NB_DEVICE Accumulator of(const Params& p, const AddedRow& r, int more) const {
    Accumulator sum = 0;
    if constexpr (Variant::kTable) {
      const uint32_t entry = entry_of(r, more);
      if (entry < limit) sum = __ldg(table + entry);
    }
    if constexpr (Variant::kAlibi) {
      const int distance = r.distance - Columns::coordinate(2, more) * p.axis[2].dilation;
      sum -= r.slope * static_cast<Accumulator>(max_of(distance, -distance));
    }
    return sum;
  }

  NB_DEVICE uint32_t entry_of(const AddedRow& r, int more) const {
    uint32_t entry = r.entry;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const int c = Columns::coordinate(axis, more);
      const uint32_t step = steps.axis[axis] * static_cast<uint32_t>(c);
      entry += kKeyRows ? 0u - step : step;
      if (Variant::kTwoRuns && c < r.under[axis]) entry += r.lap[axis];
    }
    return entry;
  }
};
}  // namespace nb
