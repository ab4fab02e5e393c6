// window_sweep.cpp - the device's window arithmetic and traversal, called from Python on a CPU, axis by axis.
#include "tile_traversal.cuh"

using namespace nb;

extern "C" void sweep_windows(const Axis* a, const int* u, int count, int keys, int* out) {
  for (int i = 0; i < count; ++i) {
    const Window w = window_of(*a, u[i], keys);
    out[3 * i] = w.lo, out[3 * i + 1] = w.hi, out[3 * i + 2] = w.prefix;
  }
}
extern "C" void sweep_readers(const Axis* a, const int* t, int count, int keys, int* out) {
  for (int i = 0; i < count; ++i) {
    const Interval x = readers_of(*a, t[i], keys);
    out[2 * i] = x.lo, out[2 * i + 1] = x.hi;
  }
}
extern "C" void sweep_class(const Axis* a, const Held* held, int of_key, int index, int* out) {
  const Class c = of_key ? class_of_key(*a, *held, index) : class_of_query(*a, *held, index);
  out[0] = c.residue, out[1] = c.keys, out[2] = c.held_keys.lo, out[3] = c.held_keys.hi;
  out[4] = c.held_queries.lo, out[5] = c.held_queries.hi;
}

namespace {
long long index_of(const Coord& c, const Params& p, bool keys) {
  long long index = 0;
  for (int axis = 0; axis < 3; ++axis) index = index * (keys ? p.held[axis].keys : p.held[axis].queries) + c.at[axis];
  return index;
}

// What begin_traversal() does, without threads.
template <bool kKeyRows, class Rows, class Columns>
void begin(Traversal<Rows>& traversal, const Params& p, int tile) {
  traversal.total = 1;
  traversal.extra = -1;
  for (int axis = 0; axis < 3; ++axis) {
    begin_axis<kKeyRows, Rows, Columns>(traversal, p, axis, tile, 0);
    const AxisTraversal& t = traversal.axis[axis];
    traversal.total *= t.tiles[0] + t.tiles[1];
    for (int i = 0; i < Rows::of(axis) && t.rows; ++i)
      traversal.runs[Rows::first(axis) + i] = runs_of<kKeyRows>(t, p.axis[axis], i, t.keys);
  }
}

template <bool kKeyRows, class Rows, class Columns>
int pairs(const Params& p, unsigned char* times, int columns_of_grid, int* full) {
  int visits = 0;
  for (int tile = 0; tile < row_tiles<kKeyRows, Rows>(p); ++tile) {
    Traversal<Rows> traversal;
    begin<kKeyRows, Rows, Columns>(traversal, p, tile);
    if (!has_rows(traversal)) continue;
    visits += traversal.total;
    for (int n = 0; n < traversal.total; ++n) {
      const Visit v = visit<Columns>(traversal, n, {0, 0});
      *full += v.full;
      for (int axis = 0; axis < 3; ++axis)
        if (v.count[axis] < 1 || v.count[axis] > Columns::of(axis)) return -1;  // a visit without columns
      for (int row = 0; row < Rows::size; ++row) {
        const Coord r = row_coord(traversal, row);
        for (int column = 0; column < Columns::size; ++column) {
          if (!r.inside || !(v.full || attends<Rows, Columns>(traversal, v, row, column))) continue;
          const Coord c = column_coord<Columns>(traversal, v, column);
          if (!c.inside) return -2;  // a column outside the visit that is attended to
          for (int axis = 0; axis < 3; ++axis)
            if (c.at[axis] < 0 || c.at[axis] >= (kKeyRows ? p.held[axis].queries : p.held[axis].keys)) return -3;
          ++times[index_of(r, p, kKeyRows) * columns_of_grid + index_of(c, p, !kKeyRows)];
        }
      }
    }
  }
  return visits;
}
}  // namespace

// How often every row meets every column, and how many visits need no mask; the number of visits, or what is wrong as
// a negative number.
extern "C" int sweep_pairs(const Params* p, int key_rows, unsigned char* times, int columns, int* full) {
  return key_rows ? pairs<true, KeyTile, QueryTile>(*p, times, columns, full)
                  : pairs<false, QueryTile, KeyTile>(*p, times, columns, full);
}
