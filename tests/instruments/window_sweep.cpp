// window_sweep.cpp - the device's window arithmetic and walk, called from Python on a CPU, axis by axis.
#include "walk.cuh"

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
extern "C" void sweep_class(const Axis* a, int of_key, int index, int* out) {
  const Class c = of_key ? class_of_key(*a, index) : class_of_query(*a, index);
  out[0] = c.residue, out[1] = c.keys, out[2] = c.first, out[3] = c.start, out[4] = c.queries;
}

namespace {
template <bool kKeyRows, class Rows, class Columns>
int pairs(const Params& p, unsigned char* times, int columns_of_grid) {
  int visits = 0;
  for (int tile = 0; tile < row_tiles<kKeyRows, Rows>(p); ++tile) {
    Walk<Rows> walk;
    int total = 1;
    for (int axis = 0; axis < 3; ++axis) {  // what begin_walk() does, without threads
      begin_axis<kKeyRows, Rows, Columns>(walk, p, axis, tile, 0);
      const AxisWalk& w = walk.axis[axis];
      total *= w.tiles[0] + w.tiles[1];
      if (w.rows == 0) continue;
      const int keys = members(p.axis[axis].keys, kKeyRows ? w.row.origin : w.column.origin, p.axis[axis].dilation);
      for (int i = 0; i < Rows::of(axis); ++i)
        walk.runs[Rows::first(axis) + i] = runs_of<kKeyRows>(w, p.axis[axis], i, keys);
    }
    walk.total = total;
    if (!has_rows(walk)) continue;
    visits += total;
    for (int n = 0; n < total; ++n) {
      const Visit v = visit<Columns>(walk, n, 0);
      for (int row = 0; row < Rows::size; ++row) {
        const Place r = row_place(walk, row);
        const RowMask<Rows, Columns> mask(walk, v, row);
        for (int column = 0; column < Columns::size; ++column) {
          const bool inside = kKeyRows || in_key_range<Columns>(walk, v, column);
          const bool reads = v.full || (mask.reads(column) && inside);
          if (!r.inside || !reads) continue;
          const Place c = column_place<Columns>(walk, v, column);
          if (!c.inside) return -1;  // a column outside the visit that is read
          const Axis* a = p.axis;
          const long long i = kKeyRows ? r.token(a[1].keys, a[2].keys) : r.token(a[1].queries, a[2].queries);
          const long long j = kKeyRows ? c.token(a[1].queries, a[2].queries) : c.token(a[1].keys, a[2].keys);
          ++times[i * columns_of_grid + j];
        }
      }
    }
  }
  return visits;
}
}  // namespace

// How often every row meets every column; the number of visits, or -1.
extern "C" int sweep_pairs(const Params* p, int key_rows, unsigned char* times, int columns) {
  return key_rows ? pairs<true, KeyTile, QueryTile>(*p, times, columns)
                  : pairs<false, QueryTile, KeyTile>(*p, times, columns);
}
