// walk.cuh - a block's tile of rows and the tiles of columns that it visits. Rows are queries and columns keys; in
// dK/dV, rows are keys and columns queries. The walk is in shared memory, to leave the registers to the products.
#pragma once
#include "window.cuh"

namespace nb {
template <int A0, int A1, int A2>
struct Extents {  // lengths of a tile per axis; indices are row-major
  static constexpr int size = A0 * A1 * A2, sum = A0 + A1 + A2;
  NB_DEVICE static constexpr int of(int axis) { return axis == 0 ? A0 : axis == 1 ? A1 : A2; }
  NB_DEVICE static constexpr int first(int axis) { return axis == 0 ? 0 : axis == 1 ? A0 : A0 + A1; }
  NB_DEVICE static int coordinate(int axis, int index) {
    return axis == 0 ? index / (A1 * A2) : axis == 1 ? index / A2 % A1 : index % A2;
  }
};
using QueryTile = Extents<NB_QUERY_TILE_0, NB_QUERY_TILE_1, NB_QUERY_TILE_2>;
using KeyTile = Extents<NB_KEY_TILE_0, NB_KEY_TILE_1, NB_KEY_TILE_2>;

struct Side {  // maps class coordinates to positions
  int origin, step, period;  // coordinates wrap at the period, unless it is 0
  NB_DEVICE int wrapped(int x) const {
#if NB_TWO_RUNS
    if (period) x += x < 0 ? period : x >= period ? -period : 0;
#endif
    return x;
  }
  NB_DEVICE int position(int x) const { return origin + step * wrapped(x); }
};

struct AxisWalk {
  Side row, column;
  int first, rows;       // row coordinates: [first, first + rows)
  Interval run[2];       // runs of columns to visit
  int tiles[2];          // tiles of each run
  Interval all, also;    // columns of every row: a tile inside one of them needs no mask
  Interval valid;        // keys inside key_range
};

struct RowRuns {  // the columns of one row on one axis, up to two intervals
  Interval one, other;
};

template <class Rows>
struct Walk {
  static constexpr int kBytes = 256 + 16 * Rows::sum;
  AxisWalk axis[3];
  int total, extra;       // number of tiles of the mask's columns; the first extra key of the rows, or -1
  RowRuns runs[Rows::sum];
};

struct Visit {  // one tile of columns
  int start[3], count[3];
  bool full, extra;  // full: no pair is masked; extra: the columns are extra keys from start[2] on
};

NB_DEVICE Side queries_side(const Axis& a, const Class& c) {
  return {c.first - a.dilation * c.start, a.dilation, a.border == kWrap ? c.keys : 0};
}
NB_DEVICE Side keys_side(const Axis& a, const Class& c) {
  return {c.residue, a.dilation, a.border == kWrap ? c.keys : 0};
}

// The keys of a class inside the sample's key_range.
NB_DEVICE Interval valid_keys(const Params& p, int axis, int sample, const Class& c) {
#if NB_KEY_RANGE
  const int at = axis - (3 - p.rank);
  if (at >= 0) {
    const int* range = p.key_range + (static_cast<long long>(sample) * p.rank + at) * 2;
    const int d = p.axis[axis].dilation, lo = clamp_to(range[0], 0, p.axis[axis].keys),
              hi = clamp_to(range[1], 0, p.axis[axis].keys);
    return cut({ceil_div(lo - c.residue, d), ceil_div(hi - c.residue, d)}, {0, c.keys});
  }
#endif
  return {0, c.keys};
}

// Sets one run of a wrapped axis, which may go past the end, with each column once.
NB_DEVICE void unwrap(AxisWalk& w, Interval hull, Interval all, int period) {
  w.run[0] = {hull.lo, min_of(hull.hi, hull.lo + period)};
  w.run[1] = {0, 0};
  w.all = all;
  w.also = {all.lo - period, all.hi - period};
}

NB_DEVICE void query_rows(AxisWalk& w, const Axis& a, const Class& c, int m) {
  w.row = queries_side(a, c);
  w.column = keys_side(a, c);
  w.first = c.start + m;
  const Window head = window_of(a, w.first, c.keys), tail = window_of(a, w.first + w.rows - 1, c.keys);
  const Interval all = {tail.lo, head.hi};
  if (a.border == kWrap) {
    unwrap(w, {head.lo, tail.hi}, all, c.keys);
#if NB_KEY_RANGE
    w.all = Interval{0, 0};
    w.also = w.all;
#endif
    return;
  }
  w.run[0] = cut({0, tail.prefix}, w.valid);
  w.run[1] = cut({max_of(head.lo, tail.prefix), tail.hi}, w.valid);
  w.all = all;
  w.also = {0, head.prefix};
}

NB_DEVICE void key_rows(AxisWalk& w, const Axis& a, const Class& c, int t) {
  w.row = keys_side(a, c);
  w.column = queries_side(a, c);
  w.first = t;
  const int last = t + w.rows - 1;
  const Interval head = readers_of(a, t, c.keys), tail = readers_of(a, last, c.keys);
  Interval hull = {head.lo, t < a.prefix ? kFar : tail.hi};
  Interval all = {tail.lo, t < a.prefix && last >= a.prefix ? readers_of(a, a.prefix, c.keys).hi : head.hi};
#if NB_KEY_RANGE
  if (!within({t, last + 1}, w.valid)) all = {0, 0};
  if (t >= w.valid.hi || last < w.valid.lo) hull = {0, 0};  // RowMask skips axes with extents of 1
#endif
  if (a.border == kWrap) return unwrap(w, hull, all, c.keys);
  w.run[0] = cut(hull, {c.start, c.start + c.queries});
  w.run[1] = w.also = Interval{0, 0};
  w.all = all;
}

// The columns of one row of the tile.
template <bool kKeyRows>
NB_DEVICE RowRuns runs_of(const AxisWalk& w, const Axis& a, int index, int keys) {
  const int x = w.first + index;
  RowRuns runs = {{0, 0}, {0, 0}};
  if (index >= w.rows) return runs;
  if (kKeyRows) {
    if (x < w.valid.lo || x >= w.valid.hi) return runs;
    runs.one = readers_of(a, x, keys);
  } else {
    const Window window = window_of(a, x, keys);
    runs.one.lo = window.lo;
    runs.one.hi = window.hi;
    runs.other.hi = window.prefix;
  }
  if (a.border == kWrap) {
    runs.other.lo = runs.one.lo - keys;
    runs.other.hi = runs.one.hi - keys;
  }
  return runs;
}

// Row tiles of one axis: number of classes (slowest) times the tiles of the longest class.
NB_DEVICE int tiles_per_class(int length, int dilation, int extent) {
  return ceil_div(ceil_div(length, dilation), extent);
}
template <bool kKeyRows, class Rows>
NB_DEVICE int row_tiles(const Axis& a, int axis) {
  const int length = kKeyRows ? a.keys : a.queries;
  return min_of(a.dilation, length) * tiles_per_class(length, a.dilation, Rows::of(axis));
}
template <bool kKeyRows, class Rows>
NB_DEVICE int row_tiles(const Params& p) {
  int tiles = 1;
  for (int axis = 0; axis < 3; ++axis) tiles *= row_tiles<kKeyRows, Rows>(p.axis[axis], axis);
  return tiles;
}

// Sets up one axis of row tile `tile`; it has no rows if its class has fewer tiles than the longest one.
template <bool kKeyRows, class Rows, class Columns>
NB_DEVICE void begin_axis(Walk<Rows>& walk, const Params& p, int axis, int tile, int sample) {
  for (int later = 2; later > axis; --later) tile /= row_tiles<kKeyRows, Rows>(p.axis[later], later);
  const Axis& a = p.axis[axis];
  tile %= row_tiles<kKeyRows, Rows>(a, axis);
  const int per_class = tiles_per_class(kKeyRows ? a.keys : a.queries, a.dilation, Rows::of(axis));
  const int number = tile / per_class, m = tile % per_class * Rows::of(axis);
  const Class c = kKeyRows ? class_of_key(a, number) : class_of_query(a, number);
  AxisWalk& w = walk.axis[axis];
  w.valid = valid_keys(p, axis, sample, c);
  w.rows = clamp_to((kKeyRows ? c.keys : c.queries) - m, 0, Rows::of(axis));
  w.tiles[0] = w.tiles[1] = 0;
  if (w.rows == 0) return;
  if (kKeyRows) key_rows(w, a, c, m);
  else query_rows(w, a, c, m);
  for (int run = 0; run < 2; ++run)
    w.tiles[run] = ceil_div(max_of(0, w.run[run].hi - w.run[run].lo), Columns::of(axis));
}

// Sets up one axis for extra keys as rows: they visit every query of the grid, by position.
template <class Rows, class Columns>
NB_DEVICE void begin_extra_axis(Walk<Rows>& walk, const Axis& a, int axis) {
  AxisWalk& w = walk.axis[axis];
  w.row = w.column = Side{0, 1, 0};
  w.first = 0;
  w.rows = Rows::of(axis);
  w.run[0] = w.all = Interval{0, a.queries};
  w.run[1] = w.also = Interval{0, 0};
  w.valid = {0, kFar};
  w.tiles[0] = ceil_div(a.queries, Columns::of(axis));
  w.tiles[1] = 0;
}

// Sets up the walk; every thread of the block must call it. Tiles from row_tiles() on have the extra keys.
template <bool kKeyRows, class Rows, class Columns>
NB_DEVICE void begin_walk(Walk<Rows>& walk, const Params& p, int tile, int sample) {
  static_assert(sizeof(Walk<Rows>) <= Walk<Rows>::kBytes, "the shared memory of a walk");
  const int thread = threadIdx.x, extra = tile - row_tiles<kKeyRows, Rows>(p);
  if (thread < 3) {
    if (extra < 0) begin_axis<kKeyRows, Rows, Columns>(walk, p, thread, tile, sample);
    else begin_extra_axis<Rows, Columns>(walk, p.axis[thread], thread);
  }
  __syncthreads();
  if (thread == 0) {
    walk.total = 1;
    for (int axis = 0; axis < 3; ++axis) walk.total *= walk.axis[axis].tiles[0] + walk.axis[axis].tiles[1];
    walk.extra = extra < 0 ? -1 : extra * Rows::size;
  }
#pragma unroll
  for (int axis = 0; axis < 3; ++axis)
    for (int i = thread; i < Rows::of(axis); i += blockDim.x) {
      const AxisWalk& w = walk.axis[axis];
      const Axis& a = p.axis[axis];
      RowRuns& runs = walk.runs[Rows::first(axis) + i];
      if (extra >= 0) {
        runs = RowRuns{{0, kFar}, {0, 0}};
      } else if (w.rows > 0) {
        const Side& keys = kKeyRows ? w.row : w.column;
        runs = runs_of<kKeyRows>(w, a, i, members(a.keys, keys.origin, a.dilation));
      } else {
        runs = RowRuns{{0, 0}, {0, 0}};
      }
    }
  __syncthreads();
}

template <class Rows>
NB_DEVICE bool has_rows(const Walk<Rows>& walk) {
  return walk.axis[0].rows > 0 && walk.axis[1].rows > 0 && walk.axis[2].rows > 0;
}

// Tile n of the columns: first the mask's tiles (the last axis varies fastest), then those of the extra keys.
template <class Columns, class Rows>
NB_DEVICE Visit visit(const Walk<Rows>& walk, int n, int extra) {
  Visit v;
  v.extra = n >= walk.total;
  if (v.extra) {
    v.start[0] = v.start[1] = 0;
    v.start[2] = (n - walk.total) * Columns::size;
    v.count[0] = v.count[1] = 1;
    v.count[2] = min_of(Columns::size, extra - v.start[2]);
    v.full = v.count[2] == Columns::size;
    return v;
  }
  v.full = true;
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const AxisWalk& w = walk.axis[axis];
    const int tiles = w.tiles[0] + w.tiles[1], extent = Columns::of(axis);
    int at = n % tiles;
    n /= tiles;
    const int run = at >= w.tiles[0];
    if (run) at -= w.tiles[0];
    v.start[axis] = w.run[run].lo + at * extent;
    v.count[axis] = min_of(extent, w.run[run].hi - v.start[axis]);
    const Interval here = {v.start[axis], v.start[axis] + extent};
    v.full = v.full && v.count[axis] == extent && (within(here, w.all) || within(here, w.also));
  }
  return v;
}

// The position, on the grid, of a row of the tile or a column of a visit.
struct Place {
  int at[3];
  bool inside;
  NB_DEVICE long long offset(const Strides& s) const {
    return at[0] * s.axis[0] + at[1] * s.axis[1] + at[2] * s.axis[2];
  }
  // The token's row-major index.
  NB_DEVICE long long token(int n1, int n2) const {
    return (static_cast<long long>(at[0]) * n1 + at[1]) * n2 + at[2];
  }
};
template <class Rows>
NB_DEVICE Place row_place(const Walk<Rows>& walk, int index) {
  Place place;
  place.inside = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const AxisWalk& w = walk.axis[axis];
    const int x = Rows::coordinate(axis, index);
    place.inside = place.inside && x < w.rows;
    place.at[axis] = w.row.origin + w.row.step * (w.first + x);
  }
  return place;
}
template <class Columns, class Rows>
NB_DEVICE Place column_place(const Walk<Rows>& walk, const Visit& v, int index) {
  Place place;
  place.inside = true;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const int x = Columns::coordinate(axis, index);
    place.inside = place.inside && x < v.count[axis];
    place.at[axis] = walk.axis[axis].column.position(v.start[axis] + x);
  }
  return place;
}

// The mask of one row in one visit: the columns that belong to the row.
template <class Rows, class Columns>
struct RowMask {
  int lo[3], size[3];
#if NB_TWO_RUNS
  int other[3], other_size[3];
#endif
  NB_DEVICE RowMask(const Walk<Rows>& walk, const Visit& v, int row) {
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const RowRuns& runs = walk.runs[Rows::first(axis) + Rows::coordinate(axis, row)];
      const Interval inside = {v.start[axis], v.start[axis] + v.count[axis]};
      const Interval one = cut(runs.one, inside);
      lo[axis] = one.lo - v.start[axis];
      size[axis] = max_of(0, one.hi - one.lo);
#if NB_TWO_RUNS
      const Interval second = cut(runs.other, inside);
      other[axis] = second.lo - v.start[axis];
      other_size[axis] = max_of(0, second.hi - second.lo);
#endif
    }
  }
  NB_DEVICE bool reads(int column) const {
    bool read = true;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      if (Rows::of(axis) == 1 && Columns::of(axis) == 1) continue;
      const int x = Columns::coordinate(axis, column);
      bool here = static_cast<unsigned>(x - lo[axis]) < static_cast<unsigned>(size[axis]);
#if NB_TWO_RUNS
      here = here || static_cast<unsigned>(x - other[axis]) < static_cast<unsigned>(other_size[axis]);
#endif
      read = read && here;
    }
    return read;
  }
};

// Whether a column is inside key_range. Runs of a wrapped axis may include keys outside, so each is checked.
template <class Columns, class Rows>
NB_DEVICE bool in_key_range(const Walk<Rows>& walk, const Visit& v, int column) {
  bool inside = true;
#if NB_KEY_RANGE && NB_TWO_RUNS
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const AxisWalk& w = walk.axis[axis];
    const int x = w.column.wrapped(v.start[axis] + Columns::coordinate(axis, column));
    inside = inside && x >= w.valid.lo && x < w.valid.hi;
  }
#endif
  return inside;
}

// Places of keys: keys outside key_range get inside = false and are never loaded, since their memory may hold NaN.
template <class Rows>
NB_DEVICE Place key_row_place(const Walk<Rows>& walk, int index) {
  Place place = row_place(walk, index);
#if NB_KEY_RANGE
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const AxisWalk& w = walk.axis[axis];
    const int x = w.first + Rows::coordinate(axis, index);
    place.inside = place.inside && x >= w.valid.lo && x < w.valid.hi;
  }
#endif
  return place;
}
template <class Columns, class Rows>
NB_DEVICE Place key_column_place(const Walk<Rows>& walk, const Visit& v, int index) {
  Place place = column_place<Columns>(walk, v, index);
  place.inside = place.inside && in_key_range<Columns>(walk, v, index);
  return place;
}
}  // namespace nb
