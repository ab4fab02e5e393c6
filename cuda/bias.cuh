// bias.cuh - the entries of a table of relative positions that the rows of a tile read, axis by axis. The step from a
// query to a key, t - u in class coordinates and on a circle inside the window, has entry t - u + K - 1.
#pragma once
#include "axis_traversal.cuh"
#include "variant.cuh"

namespace nb {
// Steps of a flat index into the table of a head. A table has up to 2^22 entries, so 32 bits have those of all pairs in
// a visit, masked ones too, but for those of a circle.
struct TableSteps {
  int axis[3], entries;
};
NB_DEVICE TableSteps table_steps(const Params& p) {
  TableSteps steps = {{0, 0, 0}, 1};
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    if (axis < 2 && axis < 3 - p.rank) continue;
    steps.axis[axis] = steps.entries;
    steps.entries *= 2 * (p.axis[axis].left + p.axis[axis].right) + 1;
  }
  return steps;
}

// Column x of a row has, on one axis, entry base + step * x (rows of keys: base - step * x), modulo 2^32, and `lap` more
// if x < below: there the circle has begun again. Rows past the end have those of the last row.
struct alignas(16) RowEntry {
  uint32_t base;
  int lap, below;
};
template <class Rows, bool kTable = Variant::kTable>
struct RowEntries {  // of a tile's rows, as the runs
  RowEntry entries[Rows::sum];
};
template <class Rows>
struct RowEntries<Rows, false> {};

template <bool kKeyRows>
NB_DEVICE RowEntry entry_of(const Params& p, const AxisTraversal& t, int axis, int index) {
  const TableSteps steps = table_steps(p);
  const Axis& a = p.axis[axis];
  const int x = t.first + min_of(index, t.rows - 1);
  RowEntry e = {0, 0, -kFar};
  if (axis < 3 - p.rank) {  // packed query heads have their own tables
    if (p.packed > 1 && axis == 0) e.base = static_cast<uint32_t>(steps.entries) * static_cast<uint32_t>(x);
    return e;
  }
  int base = a.left + a.right + (kKeyRows ? x : -x);
  if (a.border == kWrap && t.keys) {
    const int lo = kKeyRows ? first_reader_on_circle(a, x) : first_on_circle(a, x);
    const int first = floor_mod(lo, t.keys), moved = first - lo;
    base += kKeyRows ? moved : -moved;
    e.below = first;
    e.lap = steps.axis[axis] * (kKeyRows ? -t.keys : t.keys);
  }
  e.base = static_cast<uint32_t>(steps.axis[axis]) * static_cast<uint32_t>(base);
  return e;
}
}  // namespace nb
