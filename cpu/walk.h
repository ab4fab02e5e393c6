// walk.h - the columns of a group: the boxes in which they are packed, and the rows of a box one after the other.
#pragma once
#include "tiles.h"

namespace nb {
inline long rows_of(const Interval (&box)[3]) { return long(box[0].size()) * box[1].size() * box[2].size(); }

// The boxes of columns, one after the other, as large as fit into `capacity`.
template <class Use>
inline void each_box(const AxisRuns (&columns)[3], long capacity, const Use& use) {
  for (const Interval& z : columns[0].run)
    for (const Interval& y : columns[1].run)
      for (const Interval& x : columns[2].run) {
        const Interval run[3] = {z, y, x};
        int step[3];
        long room = capacity;
        bool empty = false;
        for (int axis = 2; axis >= 0; --axis) {
          const int size = run[axis].size(), most = int(room < 1 ? 1 : room < size ? room : size);
          empty = empty || size == 0;
          if (empty) break;
          step[axis] = ceil_div(size, ceil_div(size, most));
          room /= step[axis];
        }
        if (empty) continue;
        Interval box[3];
        for (box[0].lo = z.lo; box[0].lo < z.hi; box[0].lo = box[0].hi) {
          box[0].hi = min_of(z.hi, box[0].lo + step[0]);
          for (box[1].lo = y.lo; box[1].lo < y.hi; box[1].lo = box[1].hi) {
            box[1].hi = min_of(y.hi, box[1].lo + step[1]);
            for (box[2].lo = x.lo; box[2].lo < x.hi; box[2].lo = box[2].hi) {
              box[2].hi = min_of(x.hi, box[2].lo + step[2]);
              use(box);
            }
          }
        }
      }
}

// The rows of a box, the last axis fastest: where each one is in several tensors.
struct BoxRows {
  static constexpr int kTensors = 3;
  Strides stride[kTensors];
  long long from[kTensors];  // offsets of the sample and the head
  AxisMap map[3];
  Interval box[3];
  long left = 0;  // rows, the present one counted
  int x[3];
  long long at[kTensors], step[kTensors];  // offsets of the present row, and how far the next one is

  void begin(const AxisRuns (&columns)[3], const Interval (&of)[3], int sample, int head) {
    left = rows_of(of);
    for (int axis = 0; axis < 3; ++axis) {
      map[axis] = columns[axis].map;
      box[axis] = of[axis];
      x[axis] = of[axis].lo;
    }
    for (int i = 0; i < kTensors; ++i) {
      from[i] = sample * stride[i].batch + head * stride[i].head;
      step[i] = map[2].step * stride[i].axis[2];
    }
    begin_line();
  }
  void advance() {
    --left;
    if (++x[2] < box[2].hi) {
      for (int i = 0; i < kTensors; ++i) at[i] += step[i];
      return;
    }
    x[2] = box[2].lo;
    if (++x[1] == box[1].hi) {
      x[1] = box[1].lo;
      ++x[0];
    }
    begin_line();
  }

 private:
  void begin_line() {
    for (int i = 0; i < kTensors; ++i) {
      at[i] = from[i];
      for (int axis = 0; axis < 3; ++axis) at[i] += map[axis].position(x[axis]) * stride[i].axis[axis];
    }
  }
};
}  // namespace nb
