// axis_traversal.cuh - one axis of a tile of rows: the runs of columns that its rows attend to. Rows are queries and
// columns keys; in dK/dV, rows are keys and columns queries. The GPU's and the CPU's kernels share it.
#pragma once
#include "window.cuh"

namespace nb {
struct AxisMap {  // class coordinates to positions in the tensors
  int origin, step;
  NB_DEVICE int position(int x) const { return origin + step * x; }
};

struct AxisTraversal {
  AxisMap row, column;
  int first, rows;       // row coordinates: [first, first + rows)
  Interval run[2];       // runs of columns to visit
  int tiles[2];          // tiles of each run
  Interval full[2];      // columns of every row: a tile inside one of them needs no mask
  Interval valid;        // keys in the tensors and inside key_range
  int keys;              // keys of the class on the whole axis
};

struct alignas(16) RowRuns {  // the columns of one row on one axis, up to two intervals
  Interval one, other;
};

NB_DEVICE AxisMap query_map(const Axis& a, const Class& c) { return {c.residue - a.offset, a.dilation}; }
NB_DEVICE AxisMap key_map(const Axis& a, const Held& held, const Class& c) {
  return {c.residue - held.first_key, a.dilation};
}

// The keys of a class that the tensors hold, inside the sample's key_range if there is one.
NB_DEVICE Interval valid_keys(const Params& p, int axis, int sample, const Class& c, bool ranged) {
  const int at = axis - (3 - p.rank), first = p.held[axis].first_key, count = p.held[axis].keys;
  if (!ranged || at < 0) return c.held_keys;
  const int* range = p.key_range + (static_cast<long long>(sample) * p.rank + at) * 2;
  const int lo = clamp_to(range[0], 0, count), hi = clamp_to(range[1], 0, count);
  return members(first + lo, hi - lo, c.residue, p.axis[axis].dilation);
}

// Sets the runs of a wrapped axis: the hull is cut where the axis ends, and each column is in it once.
NB_DEVICE void wrap_runs(AxisTraversal& t, Interval hull, Interval full, int keys) {
  if (keys == 0) return;
  const int lap = floor_mod(hull.lo, keys) - hull.lo;
  hull = hull.plus(lap);
  hull.hi = min_of(hull.hi, hull.lo + keys);
  t.run[0] = cut(hull, {0, keys});
  t.run[1] = cut(hull.plus(-keys), {0, keys});
  t.full[0] = full.plus(lap);
  t.full[1] = t.full[0].plus(-keys);
}

NB_DEVICE void query_rows(AxisTraversal& t, const Params& p, int axis, const Class& c, int m) {
  const Axis& a = p.axis[axis];
  t.row = query_map(a, c);
  t.column = key_map(a, p.held[axis], c);
  t.first = c.held_queries.lo + m;
  const Window head = window_of(a, t.first, c.keys), tail = window_of(a, t.first + t.rows - 1, c.keys);
  t.run[0] = {0, tail.prefix};
  t.run[1] = {max_of(head.lo, tail.prefix), tail.hi};
  t.full[0] = {tail.lo, head.hi};
  t.full[1] = {0, head.prefix};
  if (a.border == kWrap) wrap_runs(t, {head.lo, tail.hi}, t.full[0], c.keys);
  for (int run = 0; run < 2; ++run) t.run[run] = cut(t.run[run], t.valid);
}

NB_DEVICE void key_rows(AxisTraversal& t, const Params& p, int axis, const Class& c, int m) {
  const Axis& a = p.axis[axis];
  t.row = key_map(a, p.held[axis], c);
  t.column = query_map(a, c);
  t.first = c.held_keys.lo + m;
  const int last = t.first + t.rows - 1;
  const Interval head = readers_of(a, t.first, c.keys), tail = readers_of(a, last, c.keys);
  const bool prefixed = t.first < a.prefix;
  Interval hull = {head.lo, prefixed ? kFar : tail.hi};
  Interval full = {tail.lo, prefixed && last >= a.prefix ? readers_of(a, a.prefix, c.keys).hi : head.hi};
  if (!within({t.first, last + 1}, t.valid)) full = {0, 0};
  if (t.first >= t.valid.hi || last < t.valid.lo) hull = {0, 0};  // RowMask skips axes with extents of 1
  t.run[0] = hull;
  t.full[0] = full;
  t.run[1] = t.full[1] = Interval{0, 0};
  if (a.border == kWrap) wrap_runs(t, hull, full, c.keys);
  for (int run = 0; run < 2; ++run) t.run[run] = cut(t.run[run], c.held_queries);
}

// The columns of one row of the tile.
template <bool kKeyRows>
NB_DEVICE RowRuns runs_of(const AxisTraversal& t, const Axis& a, int index, int keys) {
  const int x = t.first + index;
  RowRuns runs = {{0, 0}, {0, 0}};
  if (index >= t.rows || (kKeyRows && !t.valid.has(x))) return runs;
  if (kKeyRows) {
    runs.one = readers_of(a, x, keys);
  } else {
    const Window window = window_of(a, x, keys);
    runs.one.lo = window.lo;
    runs.one.hi = window.hi;
    runs.other.hi = window.prefix;
  }
  if (a.border == kWrap && keys) {
    runs.one = runs.one.plus(floor_mod(runs.one.lo, keys) - runs.one.lo);
    runs.other = runs.one.plus(-keys);
  }
  return runs;
}

// Row tiles of one axis: number of classes (slowest) times the tiles of the longest class.
NB_DEVICE int tiles_per_class(int length, int dilation, int extent) {
  return ceil_div(ceil_div(length, dilation), extent);
}
}  // namespace nb
