// tile_traversal.cuh - a block's tile of rows, on three axes, and the tiles of columns that it visits. It is in shared
// memory, to leave the registers to the products.
#pragma once
#include "bias.cuh"

namespace nb {
template <class Rows>
struct Traversal : RowEntries<Rows> {
  static constexpr int kBytes = 256 + (Variant::kTable ? 32 : 16) * Rows::sum;
  AxisTraversal axis[3];
  int total, extra;       // number of tiles of the mask's columns; the first extra key of the rows, or -1
  RowRuns runs[Rows::sum];
};

struct Visit {  // one tile of columns
  int start[3], count[3];
  bool full, extra;  // full: no pair is masked; extra: the columns are extra keys from start[2] on
};

template <bool kKeyRows, class Rows>
NB_DEVICE int row_tiles(const Params& p, int axis) {
  const int length = kKeyRows ? p.held[axis].keys : p.held[axis].queries, dilation = p.axis[axis].dilation;
  return min_of(dilation, length) * tiles_per_class(length, dilation, Rows::of(axis));
}
template <bool kKeyRows, class Rows>
NB_DEVICE int row_tiles(const Params& p) {
  int tiles = 1;
  for (int axis = 0; axis < 3; ++axis) tiles *= row_tiles<kKeyRows, Rows>(p, axis);
  return tiles;
}

// Sets up one axis of row tile `tile`; it has no rows if its class has fewer tiles than the longest one.
template <bool kKeyRows, class Rows, class Columns>
NB_DEVICE void begin_axis(Traversal<Rows>& traversal, const Params& p, int axis, int tile, int sample) {
  for (int later = 2; later > axis; --later) tile /= row_tiles<kKeyRows, Rows>(p, later);
  const Axis& a = p.axis[axis];
  const Held& held = p.held[axis];
  tile %= row_tiles<kKeyRows, Rows>(p, axis);
  const int per_class = tiles_per_class(kKeyRows ? held.keys : held.queries, a.dilation, Rows::of(axis));
  const int number = tile / per_class, m = tile % per_class * Rows::of(axis);
  const Class c = kKeyRows ? class_of_key(a, held, number) : class_of_query(a, held, number);
  AxisTraversal& t = traversal.axis[axis];
  t.valid = valid_keys(p, axis, sample, c, Variant::kKeyRange);
  t.keys = c.keys;
  t.rows = clamp_to((kKeyRows ? c.held_keys : c.held_queries).size() - m, 0, Rows::of(axis));
  t.tiles[0] = t.tiles[1] = 0;
  if (t.rows == 0) return;
  if (kKeyRows) key_rows(t, p, axis, c, m);
  else query_rows(t, p, axis, c, m);
  for (int run = 0; run < 2; ++run) t.tiles[run] = ceil_div(t.run[run].size(), Columns::of(axis));
}

// Sets up one axis for extra keys as rows: they visit every query of the grid, by position.
template <class Rows, class Columns>
NB_DEVICE void begin_extra_axis(Traversal<Rows>& traversal, const Held& held, int axis) {
  AxisTraversal& t = traversal.axis[axis];
  t.row = t.column = AxisMap{0, 1};
  t.first = 0;
  t.rows = Rows::of(axis);
  t.run[0] = t.full[0] = Interval{0, held.queries};
  t.run[1] = t.full[1] = Interval{0, 0};
  t.valid = {0, kFar};
  t.tiles[0] = ceil_div(held.queries, Columns::of(axis));
  t.tiles[1] = 0;
}

// The extra keys of a sample: all of them, or those inside its extra_range.
NB_DEVICE Interval extra_keys(const Params& p, int sample) {
  if constexpr (Variant::kExtraRange) {
    const int* const range = p.extra_range + 2LL * sample;
    return {clamp_to(range[0], 0, p.extra), clamp_to(range[1], 0, p.extra)};
  }
  return {0, p.extra};
}

// Sets up the traversal; every thread of the block must call it. Tiles from row_tiles() on have the extra keys.
template <bool kKeyRows, class Rows, class Columns>
NB_DEVICE void begin_traversal(Traversal<Rows>& traversal, const Params& p, int tile, int sample) {
  static_assert(sizeof(Traversal<Rows>) <= Traversal<Rows>::kBytes, "the shared memory of a traversal");
  const int thread = threadIdx.x;
  const int extra = Variant::kExtra && kKeyRows ? tile - row_tiles<kKeyRows, Rows>(p) : -1;
  if (thread < 3) {
    if (extra < 0) begin_axis<kKeyRows, Rows, Columns>(traversal, p, thread, tile, sample);
    else begin_extra_axis<Rows, Columns>(traversal, p.held[thread], thread);
  }
  __syncthreads();
  if (thread == 0) {
    traversal.total = 1;
    for (const AxisTraversal& t : traversal.axis) traversal.total *= t.tiles[0] + t.tiles[1];
    traversal.extra = extra < 0 ? -1 : extra * Rows::size;
    if (Variant::kExtraRange && extra >= 0) {
      const Interval rows = {traversal.extra, traversal.extra + Rows::size};
      if (cut(rows, extra_keys(p, sample)).size() == 0) traversal.total = 0;
    }
  }
#pragma unroll
  for (int axis = 0; axis < 3; ++axis)
    for (int i = thread; i < Rows::of(axis); i += blockDim.x) {
      const AxisTraversal& t = traversal.axis[axis];
      RowRuns runs = {{0, extra < 0 ? 0 : kFar}, {0, 0}};
      if (extra < 0 && t.rows > 0) runs = runs_of<kKeyRows>(t, p.axis[axis], i, t.keys);
      traversal.runs[Rows::first(axis) + i] = runs;
      if constexpr (Variant::kTable)
        if (extra < 0 && t.rows > 0) traversal.entries[Rows::first(axis) + i] = entry_of<kKeyRows>(p, t, axis, i);
    }
  __syncthreads();
}

template <class Rows>
NB_DEVICE bool has_rows(const Traversal<Rows>& traversal) {
  return traversal.axis[0].rows > 0 && traversal.axis[1].rows > 0 && traversal.axis[2].rows > 0;
}

// Tile n of the columns: first those of the extra keys, then the mask's; the last axis varies fastest.
template <class Columns, class Rows>
NB_DEVICE Visit visit(const Traversal<Rows>& traversal, int n, Interval extra) {
  Visit v;
  const int extras = Variant::kExtra ? ceil_div(extra.size(), Columns::size) : 0;
  v.extra = n < extras;
  if (v.extra) {
    v.start[0] = v.start[1] = 0;
    v.start[2] = extra.lo + n * Columns::size;
    v.count[0] = v.count[1] = 1;
    v.count[2] = min_of(Columns::size, extra.hi - v.start[2]);
    v.full = v.count[2] == Columns::size;
    return v;
  }
  n -= extras;
  v.full = true;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const AxisTraversal& t = traversal.axis[axis];
    const int tiles = t.tiles[0] + t.tiles[1], extent = Columns::of(axis);
    int at = n % tiles;
    n /= tiles;
    const int run = at >= t.tiles[0];
    if (run) at -= t.tiles[0];
    v.start[axis] = t.run[run].lo + at * extent;
    v.count[axis] = min_of(extent, t.run[run].hi - v.start[axis]);
    const Interval here = {v.start[axis], v.start[axis] + extent};
    v.full = v.full && v.count[axis] == extent && (within(here, t.full[0]) || within(here, t.full[1]));
  }
  return v;
}

// The position, on the grid, of a row of the tile or a column of a visit.
struct Coord {
  int at[3];
  bool inside;
  NB_DEVICE long long offset(const Strides& s) const {
    return at[0] * s.axis[0] + at[1] * s.axis[1] + at[2] * s.axis[2];
  }
};
template <class Rows>
NB_DEVICE Coord row_coord(const Traversal<Rows>& traversal, int index) {
  Coord coord;
  coord.inside = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const AxisTraversal& t = traversal.axis[axis];
    const int x = Rows::coordinate(axis, index);
    coord.inside = coord.inside && x < t.rows;
    coord.at[axis] = t.row.position(t.first + x);
  }
  return coord;
}
// The same for rows of keys: those outside key_range are never loaded, since their memory may hold NaN.
template <class Rows>
NB_DEVICE Coord key_row_coord(const Traversal<Rows>& traversal, int index) {
  Coord coord = row_coord(traversal, index);
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const AxisTraversal& t = traversal.axis[axis];
    if (Variant::kKeyRange) coord.inside = coord.inside && t.valid.has(t.first + Rows::coordinate(axis, index));
  }
  return coord;
}
template <class Columns, class Rows>
NB_DEVICE Coord column_coord(const Traversal<Rows>& traversal, const Visit& v, int index) {
  Coord coord;
  coord.inside = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const int x = Columns::coordinate(axis, index);
    coord.inside = coord.inside && x < v.count[axis];
    coord.at[axis] = traversal.axis[axis].column.position(v.start[axis] + x);
  }
  return coord;
}

// The columns of a visit that belong to one row, on one axis: up to two intervals, counted from the visit's start.
template <class Rows>
NB_DEVICE RowRuns row_runs(const Traversal<Rows>& traversal, const Visit& v, int axis, int coordinate) {
  const RowRuns& runs = traversal.runs[Rows::first(axis) + coordinate];
  const Interval inside = {0, v.count[axis]};
  return {cut(runs.one.plus(-v.start[axis]), inside), cut(runs.other.plus(-v.start[axis]), inside)};
}

// Whether a row attends to a column of a visit.
template <class Rows, class Columns>
NB_DEVICE bool attends(const Traversal<Rows>& traversal, const Visit& v, int row, int column) {
  bool yes = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    if (Rows::of(axis) == 1 && Columns::of(axis) == 1) continue;
    const RowRuns runs = row_runs(traversal, v, axis, Rows::coordinate(axis, row));
    const int x = Columns::coordinate(axis, column);
    yes = yes && (runs.one.has(x) || (Variant::kTwoRuns && runs.other.has(x)));
  }
  return yes;
}
}  // namespace nb
