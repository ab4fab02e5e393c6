// tiles.h - one axis of a group of tiles: for each tile its columns, for each lane its position and its columns.
#pragma once
#include "../cuda/axis_traversal.cuh"
#include "job.h"

namespace nb {
template <class F>
struct AxisTile {
  Interval run[2], full[2];           // columns of some lane, up to two runs; columns of every lane
  Words<F> lo, size, lo_2, size_2;    // each lane's columns: [lo, lo + size) and [lo_2, lo_2 + size_2)
  bool two;                           // some lane has columns in its second interval
  unsigned rows, valid;               // lanes that have a row; whose row may be read
  int position[kLanes];               // of rows, in the tensors
};

template <class F>
struct AxisGroup {
  AxisTile<F>* tile;
  int tiles;
  Interval run[2];  // columns of some tile
  AxisMap column;
};

// The lanes are the rows of a tile, the last axis fastest, query heads slowest. What one lane has on one axis:
inline int lane_coordinate(const int (&tile)[4], int axis, int lane) {
  for (int later = 3; later > axis; --later) lane /= tile[later];
  return lane % tile[axis];
}

template <class F>
inline void set_lane(AxisTile<F>& tile, int lane, const RowRuns& runs) {
  typedef typename Simd<F>::Word Word;
  const auto size = [](Interval x) { return x.hi > x.lo ? Word(x.hi) - Word(x.lo) : Word(0); };  // up to 2^31
  tile.lo.lane(lane) = Word(runs.one.lo);
  tile.size.lane(lane) = size(runs.one);
  tile.lo_2.lane(lane) = Word(runs.other.lo);
  tile.size_2.lane(lane) = size(runs.other);
  for (const Interval& run : tile.run) tile.two = tile.two || cut(runs.other, run).size() > 0;
}

// Groups of one axis: number of classes that have rows times the groups of the longest class.
inline int classes_of(const Job& job, int axis, bool key_rows) {
  const Held& held = job.params.held[axis];
  return min_of(job.params.axis[axis].dilation, key_rows ? held.keys : held.queries);
}
inline int groups_of(const Job& job, int axis, bool key_rows) {
  const Held& held = job.params.held[axis];
  const int length = key_rows ? held.keys : held.queries, dilation = job.params.axis[axis].dilation;
  return classes_of(job, axis, key_rows) * tiles_per_class(length, dilation, job.tile[axis + 1] * job.group[axis + 1]);
}

// Sets up a group; it has no tiles if its class has fewer groups than the longest one.
template <bool kKeyRows, class F>
inline void begin_group(AxisGroup<F>& group, const Job& job, const int (&coordinate)[kLanes], int axis, int number,
                        int sample) {
  const Params& p = job.params;
  const Axis& a = p.axis[axis];
  const Held& held = p.held[axis];
  const int rows = job.tile[axis + 1], extent = rows * job.group[axis + 1];
  const int per_class = tiles_per_class(kKeyRows ? held.keys : held.queries, a.dilation, extent);
  const int residue = number / per_class, m = number % per_class * extent;
  const Class c = kKeyRows ? class_of_key(a, held, residue) : class_of_query(a, held, residue);
  AxisTraversal t;
  t.valid = valid_keys(p, axis, sample, c, p.key_range != nullptr);
  t.keys = c.keys;
  const auto traverse = [&](int first, int count) {
    t.rows = count;
    if (kKeyRows) key_rows(t, p, axis, c, first);
    else query_rows(t, p, axis, c, first);
  };
  const int count = clamp_to((kKeyRows ? c.held_keys : c.held_queries).size() - m, 0, extent);
  group.tiles = ceil_div(count, rows);
  group.run[0] = group.run[1] = {0, 0};
  if (count == 0) return;
  traverse(m, count);
  group.column = t.column;
  for (int run = 0; run < 2; ++run) group.run[run] = t.run[run];
  for (int n = 0; n < group.tiles; ++n) {
    traverse(m + n * rows, min_of(rows, count - n * rows));
    AxisTile<F>& tile = group.tile[n];
    for (int run = 0; run < 2; ++run) {
      tile.run[run] = t.run[run];
      tile.full[run] = t.full[run];
    }
    tile.two = false;
    tile.rows = tile.valid = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int x = coordinate[lane];
      set_lane(tile, lane, runs_of<kKeyRows>(t, a, x, t.keys));
      tile.position[lane] = t.row.position(t.first + x);
      if (x >= t.rows) continue;
      tile.rows |= 1u << lane;
      if (!kKeyRows || t.valid.has(t.first + x)) tile.valid |= 1u << lane;
    }
  }
}

// The same for extra keys as rows, from key `first` on: every lane has every query, by position.
template <class F>
inline void begin_extra_group(AxisGroup<F>& group, const Params& p, int axis, int first) {
  const Interval every = {0, p.held[axis].queries}, none = {0, 0};
  AxisTile<F>& tile = group.tile[0];
  group.tiles = 1;
  group.column = {0, 1};
  group.run[0] = tile.run[0] = tile.full[0] = every;
  group.run[1] = tile.run[1] = tile.full[1] = none;
  tile.two = false;
  tile.rows = tile.valid = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    set_lane(tile, lane, RowRuns{every, none});
    tile.position[lane] = axis == 2 ? first + lane : 0;
    if (axis < 2 || first + lane < p.extra) tile.rows |= 1u << lane;
  }
  tile.valid = tile.rows;
}
}  // namespace nb
