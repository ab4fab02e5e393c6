// tiles.h - one axis of a group of tiles: for each tile its columns, for each lane its position and its columns.
#pragma once
#include "../cuda/axis_traversal.cuh"
#include "job.h"

namespace nb {
template <class F>
struct AxisTile {
  Interval run[2], full[2];           // columns of some lane, up to two runs; columns of every lane
  Interval quarter[2][kQuarters];     // of a run: from the first to the last column of some of four neighbouring lanes
  Words<F> lo, size, lo_2, size_2;    // each lane's columns: [lo, lo + size) and [lo_2, lo_2 + size_2)
  bool two;                           // some lane has columns in its second interval
  unsigned rows, valid;               // lanes that have a row; whose row may be read
  int position[kLanes];               // of rows, in the tensors
  int first;                          // coordinate of the first row
};

template <class F>
struct AxisGroup {
  AxisTile<F>* tile;
  int tiles;
};
struct AxisRuns {  // columns of some row of a group, or its rows; and their positions in the tensors
  Interval run[2];
  AxisMap map;
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
// From the first to the last column of both.
inline Interval hull(Interval a, Interval b) {
  if (a.size() <= 0) return b;
  return b.size() <= 0 ? a : Interval{min_of(a.lo, b.lo), max_of(a.hi, b.hi)};
}

// Classes of one axis that have rows, and groups of the longest one.
inline int classes_of(const Job& job, int axis, bool key_rows) {
  const Held& held = job.params.held[axis];
  return min_of(job.params.axis[axis].dilation, key_rows ? held.keys : held.queries);
}
inline int groups_of(const Job& job, int axis, bool key_rows) {
  const Held& held = job.params.held[axis];
  return tiles_per_class(key_rows ? held.keys : held.queries, job.params.axis[axis].dilation,
                         job.tile[axis + 1] * job.group[axis + 1]);
}

// A group of rows of one axis: its class, its first row in it, how many rows it has, and its columns.
template <bool kKeyRows>
struct GroupRows {
  const Params& p;
  const int axis;
  Class of_class;
  int first, count;  // no rows, if the class has fewer groups than the longest one
  AxisTraversal t;

  GroupRows(const Job& job, int axis, int number, int sample) : p(job.params), axis(axis) {
    const Axis& a = p.axis[axis];
    const Held& held = p.held[axis];
    const int groups = groups_of(job, axis, kKeyRows), extent = job.tile[axis + 1] * job.group[axis + 1];
    const int residue = number / groups;
    of_class = kKeyRows ? class_of_key(a, held, residue) : class_of_query(a, held, residue);
    first = number % groups * extent;
    count = clamp_to((kKeyRows ? of_class.held_keys : of_class.held_queries).size() - first, 0, extent);
    t.valid = valid_keys(p, axis, sample, of_class, p.key_range != nullptr);
    t.keys = of_class.keys;
    traverse(0, count);
  }
  // Sets the columns of some of the rows.
  void traverse(int from, int rows) {
    t.rows = rows;
    if (rows == 0) return;
    if (kKeyRows) key_rows(t, p, axis, of_class, first + from);
    else query_rows(t, p, axis, of_class, first + from);
  }
  AxisRuns columns() const {
    if (count == 0) return {};
    return {{t.run[0], t.run[1]}, t.column};
  }
  AxisRuns rows() const {
    if (count == 0) return {};
    return {{{t.first, t.first + count}, {0, 0}}, t.row};
  }
};

// Sets up a group.
template <bool kKeyRows, class F>
inline void begin_group(AxisGroup<F>& group, AxisRuns& columns, const Job& job, const int (&coordinate)[kLanes],
                        int axis, int number, int sample) {
  const int rows = job.tile[axis + 1];
  GroupRows<kKeyRows> g(job, axis, number, sample);
  const AxisTraversal& t = g.t;
  columns = g.columns();
  group.tiles = ceil_div(g.count, rows);
  for (int n = 0; n < group.tiles; ++n) {
    g.traverse(n * rows, min_of(rows, g.count - n * rows));
    AxisTile<F>& tile = group.tile[n];
    for (int run = 0; run < 2; ++run) {
      tile.run[run] = t.run[run];
      tile.full[run] = t.full[run];
      for (Interval& quarter : tile.quarter[run]) quarter = {0, 0};
    }
    tile.two = false;
    tile.rows = tile.valid = 0;
    tile.first = t.first;
    RowRuns runs[kLanes];
    Interval own[2][kLanes];
    for (int x = 0; x < rows; ++x) {
      runs[x] = runs_of<kKeyRows>(t, job.params.axis[axis], x, t.keys);
      for (int run = 0; run < 2; ++run) own[run][x] = hull(cut(runs[x].one, t.run[run]), cut(runs[x].other, t.run[run]));
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int x = coordinate[lane];
      set_lane(tile, lane, runs[x]);
      for (int run = 0; run < 2; ++run) {
        Interval& quarter = tile.quarter[run][lane / kQuarterLanes];
        quarter = hull(quarter, own[run][x]);
      }
      tile.position[lane] = t.row.position(t.first + x);
      if (x >= t.rows) continue;
      tile.rows |= 1u << lane;
      if (!kKeyRows || t.valid.has(t.first + x)) tile.valid |= 1u << lane;
    }
  }
}

// The extra keys of a sample that are read.
inline Interval extra_of(const Params& p, int sample) {
  if (!p.extra_range) return {0, p.extra};
  const int* const range = p.extra_range + 2ll * sample;
  return cut({range[0], range[1]}, {0, p.extra});
}
// The same for extra keys as rows, from key `first` on: every lane that is read has every query, by position.
template <class F>
inline void begin_extra_group(AxisGroup<F>& group, AxisRuns& columns, const Params& p, int axis, int first,
                              Interval read) {
  const bool some = first < read.hi && first + kLanes > read.lo;
  const Interval none = {0, 0}, every = some ? Interval{0, p.held[axis].queries} : none;
  AxisTile<F>& tile = group.tile[0];
  group.tiles = 1;
  columns = {{every, none}, {0, 1}};
  tile.run[0] = tile.full[0] = every;
  tile.run[1] = tile.full[1] = none;
  tile.first = 0;
  for (Interval& quarter : tile.quarter[0]) quarter = every;
  tile.two = false;
  tile.rows = tile.valid = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool is_read = axis < 2 || read.has(first + lane);
    set_lane(tile, lane, RowRuns{is_read ? every : none, none});
    tile.position[lane] = axis == 2 ? first + lane : 0;
    if (axis < 2 || first + lane < p.extra) tile.rows |= 1u << lane;
    if (is_read) tile.valid |= 1u << lane;
  }
  if (tile.valid != tile.rows) tile.full[0] = none;
}
}  // namespace nb
