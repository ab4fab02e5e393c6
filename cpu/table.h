// table.h - a table of relative positions, laid out as a tile's columns read it, and its gradient on the way back.
#pragma once
#include "tiles.h"

namespace nb {
// One axis of a table for the tiles of a pass. A column is known by its distance from a tile's first row, and each
// distance has an entry for every row of the tile.
struct TableAxis {
  int size, rows;     // entries, 2 K - 1; rows of a tile
  int first, count;   // the distances that occur
  int phases;         // on a circle that is hardly longer than the window, the entry depends on where in its stride
                      // group the first row is: then all distances are there for each such place
  int circle;         // keys of the circle; 0 if the axis is none
  int stride, left;   // left: the least step of the group's first query
  bool key_rows;

  int cells() const { return phases * count; }
  // The entry of row `row` and a column; -1 if the row has no such column.
  int entry(int phase, int distance, int row) const {
    const int query = key_rows ? distance : row;
    int step = key_rows ? row - distance : distance - row;
    if (circle) {  // the one inside the window
      const int least = left - (phases == 1 ? stride - 1 : floor_mod(phase + query, stride));
      step = least + floor_mod(step - least, circle);
    }
    const int at = step + size / 2;
    return at >= 0 && at < size ? at : -1;
  }
  // The column that would have cell 0 in a run of columns of a tile: its other columns follow.
  int start(int first_row, Interval run) const {
    const int far = run.lo - first_row - first, cell = circle ? floor_mod(far, circle) : far;
    return run.lo - cell - (phases == 1 ? 0 : floor_mod(first_row, stride) * count);
  }
};
inline TableAxis table_axis(const Job& job, int number) {
  const Params& p = job.params;
  const Axis& a = p.axis[number];
  const Held& held = p.held[number];
  const int keys = number < 3 - p.rank ? 1 : a.left + a.right + 1, rows = job.tile[number + 1];
  TableAxis axis = {2 * keys - 1, rows, 1 - keys, 2 * (keys - 1) + rows, 1, 0, a.stride, leader_step(a) - a.left,
                    job.pass == kGradKey};
  if (p.grids) return axis;  // all distances, since each grid has others
  if (a.border == kWrap) {
    axis.circle = a.keys / a.dilation;
    if (axis.circle < keys + a.stride - 1) axis.phases = a.stride;
    return axis;
  }
  Interval from = {a.offset, a.offset + held.queries - 1}, to = {held.first_key, held.first_key + held.keys - 1};
  if (axis.key_rows) {
    const Interval other = from;
    from = to;
    to = other;
  }
  from = {floor_div(from.lo, a.dilation), floor_div(from.hi, a.dilation)};
  to = {floor_div(to.lo, a.dilation), floor_div(to.hi, a.dilation)};
  const int last_tile = min_of(from.hi, from.lo + (from.hi - from.lo) / rows * rows + (a.dilation > 1));
  const int stop = min_of(axis.first + axis.count, to.hi - from.lo + 1);
  axis.first = max_of(axis.first, to.lo - last_tile);
  axis.count = max_of(stop - axis.first, 1);
  return axis;
}

// A cell has the entries of all lanes for one column. The lanes along the last axis are neighbours: a line has them for
// all cells of that axis, and cells are copied from lines. Entries are in units of log 2.
struct Table {
  TableAxis axis[3];
  int heads, head_tiles;  // of a tile; tiles that have all query heads of a key head
  int lines;              // of a head: entries of the leading axes
  long cells, entries;    // of a tile; of a head
  const int* known[3];    // entries of all cells and rows

  long line_size() const { return long(axis[2].cells()) * axis[2].rows; }
  long lines_size() const { return heads * lines * line_size(); }
  long cell(int z, int y, int x) const { return (long(z) * axis[1].cells() + y) * axis[2].cells() + x; }
};
inline Table table_of(const Job& job) {
  Table t = {};
  if (!job.params.relative_bias) return t;
  for (int axis = 0; axis < 3; ++axis) t.axis[axis] = table_axis(job, axis);
  t.heads = job.pass == kGradKey ? 1 : job.tile[0];
  t.head_tiles = ceil_div(job.params.group, t.heads);
  t.lines = t.axis[0].size * t.axis[1].size;
  t.cells = long(t.axis[0].cells()) * t.axis[1].cells() * t.axis[2].cells();
  t.entries = long(t.lines) * t.axis[2].size;
  return t;
}
inline long known_size(const Table& t) {
  long size = 0;
  for (const TableAxis& axis : t.axis) size += long(axis.cells()) * axis.rows;
  return size;
}
inline void know_entries(Table& t, int* to) {
  for (int axis = 0; axis < 3; ++axis) {
    t.known[axis] = to;
    const TableAxis own = t.axis[axis];
    for (int phase = 0; phase < own.phases; ++phase)
      for (int at = 0; at < own.count; ++at)
        for (int row = 0; row < own.rows; ++row) *to++ = own.entry(phase, own.first + at, row);
  }
}

// Calls use(entry, number of a line) for every lane of every cell of the last axis that has an entry.
template <class Use>
inline void each_of_line(const Table& t, const Use& use) {
  for (long i = 0; i < t.line_size(); ++i)
    if (t.known[2][i] >= 0) use(t.known[2][i], i);
}
// Calls use(line, cells, lane) for every line and the cells that have it, from lane `lane` on: null, if they have none.
template <class F, class C, class Use>
inline void each_line(const Table& t, F* lines, C* cells, const Use& use) {
  const TableAxis &z = t.axis[0], &y = t.axis[1], &x = t.axis[2];
  for (int at_z = 0; at_z < z.cells(); ++at_z)
    for (int at_y = 0; at_y < y.cells(); ++at_y)
      for (int lane = 0, head = 0; head < t.heads; ++head)
        for (int row_z = 0; row_z < z.rows; ++row_z)
          for (int row_y = 0; row_y < y.rows; ++row_y, lane += x.rows) {
            const int of_z = t.known[0][at_z * z.rows + row_z], of_y = t.known[1][at_y * y.rows + row_y];
            const long line = long(head) * t.lines + of_z * y.size + of_y;
            use(of_z < 0 || of_y < 0 ? nullptr : lines + line * t.line_size(),
                cells + t.cell(at_z, at_y, 0) * kLanes + lane);
          }
}
template <int N, class F>
inline void lay_out_cells(const Table& t, F* lines, F* cells) {
  const int count = t.axis[2].cells();
  each_line(t, lines, cells, [&](const F* line, F* to) {
    constexpr F none[N] = {};
    const int step = line ? N : 0;
    const F* from = line ? line : none;
    for (int x = 0; x < count; ++x, from += step) memcpy(to + x * kLanes, from, sizeof(none));
  });
}
template <int N, class F>
inline void add_cells(const Table& t, F* lines, const F* cells) {
  const int count = t.axis[2].cells();
  each_line(t, lines, cells, [&](F* line, const F* from) {
    if (!line) return;
    for (int x = 0; x < count; ++x)
      for (int n = 0; n < N; ++n) line[x * N + n] += from[x * kLanes + n];
  });
}
#define NB_BY_ROWS(function)                                      \
  switch (t.axis[2].rows) {                                       \
    case 1: return function<1>(t, lines, cells);                  \
    case 2: return function<2>(t, lines, cells);                  \
    case 4: return function<4>(t, lines, cells);                  \
    case 8: return function<8>(t, lines, cells);                  \
    default: return function<16>(t, lines, cells);                \
  }

// Lays out the cells of some heads, of which `real` exist, by way of their lines.
template <class F>
NB_APART void lay_out(const Table& t, const F* table, int real, F* lines, F* cells) {
  const int* const known = t.known[2];
  const long size = t.line_size(), some = long(real) * t.lines;
  for (long line = 0; line < some; ++line) {
    F* const to = lines + line * size;
    const F* const from = table + line * t.axis[2].size;
    for (long i = 0; i < size; ++i) to[i] = known[i] < 0 ? F(0) : from[known[i]] * F(1.4426950408889634);
  }
  memset(lines + some * size, 0, (t.lines_size() - some * size) * sizeof(F));
  NB_BY_ROWS(lay_out_cells)
}
template <class F>
inline void add_all_cells(const Table& t, F* lines, const F* cells) {
  NB_BY_ROWS(add_cells)
}
#undef NB_BY_ROWS
// Adds sums in cells to the entries of the heads that exist.
template <class F>
NB_APART void add_to_table(const Table& t, const F* cells, int real, F* lines, F* table) {
  memset(lines, 0, t.lines_size() * sizeof(F));
  add_all_cells(t, lines, cells);
  for (long line = 0; line < long(real) * t.lines; ++line) {
    const F* const from = lines + line * t.line_size();
    F* const to = table + line * t.axis[2].size;
    each_of_line(t, [&](int entry, long at) { to[entry] += from[at]; });
  }
}
}  // namespace nb
