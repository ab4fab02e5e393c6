// visit.h - a tile's columns inside a packed box, in pieces of a few neighbouring columns.
#pragma once
#include "worker.h"

namespace nb {
template <class F>
struct Gate {  // each lane's columns on the last axis, none where the line of the box is outside the lane's windows
  Words<F> lo, size, lo_2, size_2;
  bool two;
};

template <class F>
NB_INLINE Words<F> inside(const Words<F>& lo, const Words<F>& size, int x) {
  typedef typename Simd<F>::U U;
  Words<F> y;
  const U at = typename Simd<F>::Word(x) - U{};
  NB_UNROLL for (int v = 0; v < kVectors<F>; ++v) y.v[v] = U(at - lo.v[v] < size.v[v]);
  return y;
}
// All bits of the lanes that have column x on an axis.
template <class F>
NB_INLINE Words<F> attends(const AxisTile<F>& axis, int x) {
  Words<F> y = inside<F>(axis.lo, axis.size, x);
  if (axis.two) {
    const Words<F> other = inside<F>(axis.lo_2, axis.size_2, x);
    NB_UNROLL for (int v = 0; v < kVectors<F>; ++v) y.v[v] |= other.v[v];
  }
  return y;
}
template <class F>
NB_INLINE Gate<F> gate_of(const AxisTile<F>& axis, const Words<F>& one, const Words<F>& other) {
  Gate<F> gate;
  gate.lo = axis.lo;
  gate.lo_2 = axis.lo_2;
  gate.two = axis.two;
  NB_UNROLL for (int v = 0; v < kVectors<F>; ++v) {
    gate.size.v[v] = axis.size.v[v] & one.v[v] & other.v[v];
    gate.size_2.v[v] = axis.size_2.v[v] & one.v[v] & other.v[v];
  }
  return gate;
}
// x[m] = `hidden` in the lanes that do not attend to column `first` + m.
template <int M, class F>
NB_INLINE void hide(Wide<F> (&x)[M], const Gate<F>& gate, int first, F hidden) {
  typedef typename Simd<F>::U U;
  const typename Simd<F>::V none = splat<F>(hidden);
  NB_UNROLL for (int v = 0; v < kVectors<F>; ++v) {
    const U size = gate.size.v[v];
    U at = (typename Simd<F>::Word(first) - U{}) - gate.lo.v[v];
    if (!gate.two) {
      NB_UNROLL for (int m = 0; m < M; ++m, at += 1) x[m].v[v] = at < size ? x[m].v[v] : none;
    } else {
      const U size_2 = gate.size_2.v[v];
      U at_2 = (typename Simd<F>::Word(first) - U{}) - gate.lo_2.v[v];
      NB_UNROLL for (int m = 0; m < M; ++m, at += 1, at_2 += 1)
        x[m].v[v] = ((at < size) | (at_2 < size_2)) ? x[m].v[v] : none;
    }
  }
}

constexpr long kNoCell = -1;
struct Piece {  // neighbouring columns
  long row;     // the first one's packed row
  int first;    // its coordinate on the last axis
  bool whole;   // every lane attends to all of them
  long cell;    // of the table, for the first one; kNoCell if nothing is added to the scores
};

inline bool in_full(const Interval (&full)[2], Interval x) { return within(x, full[0]) || within(x, full[1]); }

// The kernels of a pass for 1 to `kRowsAtOnce` columns, of doubles only for powers of two: they compile faster.
template <class Rule, class F>
struct Pieces {
  typedef void (*Kernel)(Worker<F>&, Tile<F>&, const Gate<F>&, const Piece&);
  static constexpr int at_most(int m) {
    if (sizeof(F) == 8) m = m >= 8 ? 8 : m >= 4 ? 4 : m >= 2 ? 2 : 1;
    while (m > kRowsAtOnce<F>) m = sizeof(F) == 8 ? m / 2 : m - 1;
    return m;
  }
  static constexpr Kernel of[] = {Rule::template piece<at_most(1)>, Rule::template piece<at_most(2)>,
                                  Rule::template piece<at_most(3)>, Rule::template piece<at_most(4)>,
                                  Rule::template piece<at_most(5)>, Rule::template piece<at_most(6)>,
                                  Rule::template piece<at_most(7)>, Rule::template piece<at_most(8)>,
                                  Rule::template piece<at_most(9)>, Rule::template piece<at_most(10)>};
  static_assert(kRowsAtOnce<F> <= 10, "a kernel for each number of columns");
};

struct Line {  // of neighbouring columns on the last axis
  long row;           // the first one's packed row
  int x, count;       // the first one's coordinate
  bool full;          // every lane attends to those of them that are `full` on the last axis
  unsigned quarters;  // that may attend to some of them: the last axis is not looked at
  long cell;          // as of a piece
};

template <class Rule, class F>
NB_APART void visit_line(Worker<F>& w, Tile<F>& t, const Gate<F>& gate, const Line& line,
                         const Interval (&within_full)[2]) {
  constexpr int kMost = kRowsAtOnce<F>;
  long row = line.row;
  int x = line.x, pieces = (line.count + kMost - 1) / kMost;
  const int stop = x + line.count;
  for (; x < stop; --pieces) {  // of nearly the same size: short ones are slow
    const int size = Pieces<Rule, F>::at_most(pieces > 1 ? (stop - x + pieces - 1) / pieces : min_of(stop - x, kMost));
    if (w.count + size > kScores) Rule::flush(w, t);
    const bool whole = line.full && in_full(within_full, {x, x + size});
    const long cell = line.cell == kNoCell ? kNoCell : line.cell + (x - line.x);
    Pieces<Rule, F>::of[size - 1](w, t, gate, {row, x, whole, cell});
    for (int m = 0; m < size; ++m) w.column[w.count + m] = int(row) + m;
    w.spans.add(w.count, line.quarters);
    w.count += size;
    if (w.ahead[0].rows.left | w.ahead[1].rows.left) w.ask_ahead();
    row += size;
    x += size;
  }
}

// The cells of a tile's columns.
template <class F>
struct Cells {
  const Table& table;
  const bool some;  // else nothing is added
  int start[3][2];  // columns of cell 0 on each axis, for both runs

  Cells(const Worker<F>& w, const Tile<F>& t) : table(w.table), some(t.added) {
    if (!t.bias) return;
    for (int axis = 0; axis < 3; ++axis)
      for (int run = 0; run < 2; ++run)
        start[axis][run] = table.axis[axis].start(t.axis[axis]->first, t.axis[axis]->run[run]);
  }
  long of(const Tile<F>& t, const int (&run)[3], int z, int y, int x) const {
    if (!t.bias) return some ? 0 : kNoCell;
    return table.cell(z - start[0][run[0]], y - start[1][run[1]], x - start[2][run[2]]);
  }
};

// All columns of a tile inside a packed box.
template <class Rule, class F>
inline void visit(Worker<F>& w, Tile<F>& t, const Interval (&box)[3]) {
  const AxisTile<F> &z_axis = *t.axis[0], &y_axis = *t.axis[1], &x_axis = *t.axis[2];
  const int ny = box[1].size(), nx = box[2].size();
  const Cells<F> cells(w, t);
  for (int z_run = 0; z_run < 2; ++z_run) {
    const Interval zs = cut(z_axis.run[z_run], box[0]);
    for (int z = zs.lo; z < zs.hi; ++z) {
      const Words<F> at_z = attends(z_axis, z);
      const bool z_full = in_full(z_axis.full, {z, z + 1});
      const unsigned z_quarters = quarters_of(z_axis.quarter[z_run], z);
      for (int y_run = 0; y_run < 2; ++y_run) {
        const Interval ys = cut(y_axis.run[y_run], box[1]);
        for (int y = ys.lo; y < ys.hi; ++y) {
          const unsigned quarters = z_quarters & quarters_of(y_axis.quarter[y_run], y);
          if (quarters == 0) continue;
          const Gate<F> gate = gate_of(x_axis, at_z, attends(y_axis, y));
          const bool full = z_full && in_full(y_axis.full, {y, y + 1});
          const long row = (long(z - box[0].lo) * ny + (y - box[1].lo)) * nx - box[2].lo;
          for (int x_run = 0; x_run < 2; ++x_run) {
            const Interval xs = cut(x_axis.run[x_run], box[2]);
            if (xs.size() == 0) continue;
            const long cell = cells.of(t, {z_run, y_run, x_run}, z, y, xs.lo);
            visit_line<Rule>(w, t, gate, {row + xs.lo, xs.lo, xs.size(), full, quarters, cell}, x_axis.full);
          }
        }
      }
    }
  }
  if (w.count) Rule::flush(w, t);
}
}  // namespace nb
