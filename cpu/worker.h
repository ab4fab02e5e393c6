// worker.h - one thread's memory: the tiles of a group, packed rows of columns, scores; and how tensors get there.
#pragma once
#include "tiles.h"

namespace nb {
template <class F>
struct Tile {  // 16 rows, and what is known of them
  const AxisTile<F>* axis[3];
  unsigned rows, valid;
  int head;          // of the first lane
  bool started;      // the sums have been set
  Wide<F> *a, *b;    // the rows: [D] and [E] numbers of each lane
  Wide<F> *sum_a, *sum_b;
  Wide<F> top, total;  // forward: the greatest score and the sum of weights; dQ: logsumexp and delta
};

template <class F>
struct Worker {
  const Job& job;
  const Params& p;
  int d, e, row_a, row_b, lanes_a, lanes_b, kv_heads;  // sizes; of packed rows (multiples of 4), of lanes (of 16)
  long capacity;                                       // columns that are packed at once
  AxisGroup<F> group[3];
  long group_number = -1;  // of `group`
  Tile<F>* tile;
  Wide<F> *scores, *gradients;
  const F **at_a, **at_b;  // for each score, the packed rows of its column
  F *packed_a, *packed_b, *lse, *delta, *rows;
  F scale_in;              // of the lanes' numbers a
  Wide<F> highest;         // of the scores since the last flush
  int count = 0;           // of these scores

  static constexpr bool has_b(int pass) { return pass != kForward; }
  static constexpr bool has_sum_a(int pass) { return pass != kForward; }

  // Lays out the memory from `memory` on, or from null to count the bytes.
  char* lay_out(char* memory) {
    char* at = memory;
    const auto take = [&](long bytes) {
      char* const here = at;
      at += (bytes + 63) / 64 * 64;
      return here;
    };
    long tiles = job.group[0];
    for (int axis = 0; axis < 3; ++axis) {
      group[axis].tile = reinterpret_cast<AxisTile<F>*>(take(job.group[axis + 1] * long(sizeof(AxisTile<F>))));
      tiles *= job.group[axis + 1];
    }
    tile = reinterpret_cast<Tile<F>*>(take(tiles * long(sizeof(Tile<F>))));
    const long wide = sizeof(Wide<F>), both = lanes_a + lanes_b;
    for (long i = 0; i < tiles; ++i) {
      Wide<F>* const numbers = reinterpret_cast<Wide<F>*>(take((job.pass == kForward ? both : 2 * both) * wide));
      if (!memory) continue;
      tile[i].a = numbers;
      tile[i].sum_b = numbers + lanes_a;
      tile[i].b = numbers + both;
      tile[i].sum_a = numbers + both + lanes_b;
    }
    scores = reinterpret_cast<Wide<F>*>(take(kScores * wide));
    gradients = reinterpret_cast<Wide<F>*>(take(job.pass == kForward ? 0 : kScores * wide));
    at_a = reinterpret_cast<const F**>(take(kScores * long(sizeof(F*))));
    at_b = reinterpret_cast<const F**>(take(kScores * long(sizeof(F*))));
    rows = reinterpret_cast<F*>(take(kLanes * long(sizeof(F)) * max_of(lanes_a, lanes_b)));
    packed_a = reinterpret_cast<F*>(take(capacity * row_a * long(sizeof(F))));
    packed_b = reinterpret_cast<F*>(take(capacity * row_b * long(sizeof(F))));
    lse = reinterpret_cast<F*>(take(job.pass == kGradKey ? capacity * long(sizeof(F)) : 0));
    delta = reinterpret_cast<F*>(take(job.pass == kGradKey ? capacity * long(sizeof(F)) : 0));
    return at;
  }

  explicit Worker(const Job& of) : job(of), p(of.params) {
    d = job.head_dim;
    e = job.value_dim;
    row_a = rounded(d, 4);
    row_b = rounded(e, 4);
    lanes_a = rounded(d, kLanes);
    lanes_b = rounded(e, kLanes);
    kv_heads = p.heads / p.group;
    capacity = kRowBytes / (long(sizeof(F)) * (row_a + row_b));
    if (capacity < 16) capacity = 16;
    scale_in = F(p.softcap ? p.scale / p.softcap : p.scale * 1.4426950408889634);
  }
  long bytes() { return lay_out(nullptr) - static_cast<char*>(nullptr); }

  long long offset(const Tile<F>& t, const Strides& s, int sample, int lane) const {
    long long at = sample * s.batch + (t.head + lane_coordinate(job.tile, 0, lane)) * s.head;
    for (int axis = 0; axis < 3; ++axis) at += t.axis[axis]->position[lane] * s.axis[axis];
    return at;
  }

  // to[c] = factor * channel c of the tile's rows; 0 for rows that may not be read.
  void load(const Tile<F>& t, const Side& side, int sample, F factor, Wide<F>* to) {
    const int size = rounded(side.length, kLanes);
    for (int lane = 0; lane < kLanes; ++lane) {
      F* const row = rows + lane * size;
      const int n = t.valid >> lane & 1 ? side.length : 0;
      if (n) load_row(job.type, side.data, offset(t, side.stride, sample, lane), side.stride.channel, n, row);
      for (int c = n; c < size; ++c) row[c] = 0;
    }
    rows_to_lanes(rows, size, to);
    if (factor != 1)
      for (int c = 0; c < size; ++c) to[c] = to[c] * wide(factor);
  }
  // The inverse, into a contiguous tensor.
  void store(const Tile<F>& t, void* data, const Strides& s, int length, int sample, Wide<F>* from,
             const Wide<F>& factor) {
    const int size = rounded(length, kLanes);
    for (int c = 0; c < size; ++c) from[c] = from[c] * factor;
    lanes_to_rows(from, size, rows);
    for (int lane = 0; lane < kLanes; ++lane)
      if (t.rows >> lane & 1) store_row(job.type, data, offset(t, s, sample, lane), length, rows + lane * size);
  }

  // Copies one row of a column to row `n` of the packed ones.
  void pack_row(const Side& a, const Side& b, long long at_a_row, long long at_b_row, long n) {
    F *const to_a = packed_a + n * row_a, *const to_b = packed_b + n * row_b;
    load_row(job.type, a.data, at_a_row, a.stride.channel, d, to_a);
    for (int c = d; c < row_a; ++c) to_a[c] = 0;
    load_row(job.type, b.data, at_b_row, b.stride.channel, e, to_b);
    for (int c = e; c < row_b; ++c) to_b[c] = 0;
  }
  // Copies the rows of a box of columns, the last axis fastest, of one sample and head.
  void pack(const Side& a, const Side& b, const Interval (&box)[3], int sample, int head) {
    const AxisMap &z_map = group[0].column, &y_map = group[1].column, &x_map = group[2].column;
    const int heads = p.heads;
    const long long from_a = sample * a.stride.batch + head * a.stride.head;
    const long long from_b = sample * b.stride.batch + head * b.stride.head;
    long n = 0;
    for (int z = box[0].lo; z < box[0].hi; ++z)
      for (int y = box[1].lo; y < box[1].hi; ++y) {
        const long long pz = z_map.position(z), py = y_map.position(y);
        const long long line_a = from_a + pz * a.stride.axis[0] + py * a.stride.axis[1];
        const long long line_b = from_b + pz * b.stride.axis[0] + py * b.stride.axis[1];
        const long long line = ((static_cast<long long>(sample) * p.held[0].queries + pz) * p.held[1].queries + py) *
                               p.held[2].queries;
        for (int x = box[2].lo; x < box[2].hi; ++x, ++n) {
          const long long px = x_map.position(x);
          pack_row(a, b, line_a + px * a.stride.axis[2], line_b + px * b.stride.axis[2], n);
          if (job.pass != kGradKey) continue;
          const F* const numbers = static_cast<const F*>(p.delta) + ((line + px) * heads + head) * 2;
          lse[n] = numbers[0];
          delta[n] = numbers[1];
        }
      }
  }
};
}  // namespace nb
