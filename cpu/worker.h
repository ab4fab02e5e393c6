// worker.h - one thread's memory: the tiles of a group, packed rows of columns, scores; and how tensors get there.
#pragma once
#include "products.h"
#include "quarters.h"
#include "table.h"
#include "walk.h"

namespace nb {
template <class F>
struct Tile {  // 16 rows, and what is known of them
  const AxisTile<F>* axis[3];
  unsigned rows, valid;
  int head;            // of the first lane
  Wide<F> *a, *b;      // the rows: [D] and [E] numbers of each lane
  F *rows_a, *rows_b;  // the same, row by row: kept where columns have sums
  F *sum_a, *sum_b;    // 16 rows of sums
  Wide<F> top, total;  // forward: the greatest score and the sum of weights; dQ: logsumexp and delta
  bool added;          // whether scores have more than products
  const Wide<F>* bias; // cells of the table, or null
  Wide<F>* bias_sums;  // sums for the gradient of each cell, or null
  Wide<F> slope;       // ALiBi's, of each lane's head, for a step of one coordinate, in units of log 2
};

template <class F>
struct Worker {
  const Job& job;
  const Params& p;
  const Table& table;
  int d, e, row_a, row_b, lanes_a, lanes_b;  // sizes; of packed rows (whole vectors), of lanes (times 16)
  long capacity;                             // columns that are packed at once
  AxisGroup<F> group[3];
  AxisRuns columns[3];
  long group_number[3] = {-1, -1, -1};  // of `group`
  Tile<F>* tile;
  Wide<F> *scores, *gradients;
  int* column;  // for each score, the packed row of its column
  F *packed_a, *packed_b, *lse, *delta, *rows;
  F *column_sum_a, *column_sum_b;  // of the packed rows
  bool pairs;                      // bfloat16, multiplied two at a time: then tiles have pairs, too, and
  uint32_t *pairs_a, *pairs_b;     // packed rows are kept as pairs where they are multiplied with them
  int pair_a, pair_b;              // words of a row
  F scale_in;                      // of scores
  Wide<F> highest;         // of the scores since the last flush
  int count = 0;           // of these scores
  Spans spans;             // of these scores
  struct Ahead {
    BoxRows rows;
    const Side* side[BoxRows::kTensors];
  } ahead[2];  // rows and columns of the next group: asked for, a few with each piece of the present one
  bool far;                   // the tensors are too large for the caches: rows are asked for before they are used
  int coordinate[4][kLanes];  // of the lanes in a tile: head, then the three axes
  Wide<F> last_coordinate;    // the same of the last axis
  int table_tiles;            // tiles of different heads in an item, if the table has a gradient, else 0
  Wide<F>* cell_sums;         // its sums, for each of them
  F* lines;                   // of the table, on the way from cells to entries

  // Whether rows are packed as numbers: those that are only multiplied with lanes are not, if they are pairs.
  bool needs_a() const { return !pairs || job.pass != kForward; }
  bool needs_b() const { return !pairs || job.pass != kGradQuery; }

  // Whether sums of columns are kept beside packed rows.
  bool adds_to_columns() const { return job.pass == kGradAll; }
  // Whether scores have more than products.
  bool adds_to_scores() const { return p.relative_bias || p.alibi_slopes; }

  void clear_scores() {
    count = 0;
    spans.clear();
  }

  // Lays out the memory from `memory` on, or from null to count the bytes, which it returns.
  long lay_out(char* memory) {
    uintptr_t at = reinterpret_cast<uintptr_t>(memory);  // a null pointer has no neighbours
    const auto take = [&](long bytes) {
      const uintptr_t here = at;
      at += (bytes + 63) / 64 * 64;
      return here;
    };
    long tiles = job.group[0];
    for (int axis = 0; axis < 3; ++axis) {
      group[axis].tile = reinterpret_cast<AxisTile<F>*>(take(job.group[axis + 1] * long(sizeof(AxisTile<F>))));
      tiles *= job.group[axis + 1];
    }
    tile = reinterpret_cast<Tile<F>*>(take(tiles * long(sizeof(Tile<F>))));
    rows = reinterpret_cast<F*>(take(kLanes * long(sizeof(F)) * max_of(lanes_a, lanes_b)));
    const long wide = sizeof(Wide<F>), both = lanes_a + lanes_b;
    for (long i = 0; i < tiles; ++i) {
      Wide<F>* const numbers = reinterpret_cast<Wide<F>*>(take((job.pass == kForward ? both : 2 * both) * wide));
      F* const own = reinterpret_cast<F*>(take(adds_to_columns() ? both * wide : 0));
      if (!memory) continue;
      tile[i].rows_a = adds_to_columns() ? own : rows;
      tile[i].rows_b = adds_to_columns() ? own + kLanes * lanes_a : rows;
      tile[i].a = numbers;
      tile[i].sum_b = reinterpret_cast<F*>(numbers + lanes_a);
      tile[i].b = numbers + both;
      tile[i].sum_a = reinterpret_cast<F*>(numbers + both + lanes_b);
    }
    scores = reinterpret_cast<Wide<F>*>(take(kScores * wide));
    gradients = reinterpret_cast<Wide<F>*>(take(job.pass == kForward ? 0 : kScores * wide));
    column = reinterpret_cast<int*>(take(kScores * long(sizeof(int))));
    spans.span = reinterpret_cast<Spans::Span*>(take(kScores * long(sizeof(Spans::Span))));
    packed_a = reinterpret_cast<F*>(take(needs_a() ? capacity * row_a * long(sizeof(F)) : 0));
    packed_b = reinterpret_cast<F*>(take(needs_b() ? capacity * row_b * long(sizeof(F)) : 0));
    pairs_a = reinterpret_cast<uint32_t*>(take(pairs ? capacity * pair_a * 4l : 0));
    pairs_b = reinterpret_cast<uint32_t*>(take(pairs && job.pass != kForward ? capacity * pair_b * 4l : 0));
    column_sum_a = reinterpret_cast<F*>(take(adds_to_columns() ? capacity * row_a * long(sizeof(F)) : 0));
    column_sum_b = reinterpret_cast<F*>(take(adds_to_columns() ? capacity * row_b * long(sizeof(F)) : 0));
    lse = reinterpret_cast<F*>(take(job.pass == kGradKey ? capacity * long(sizeof(F)) : 0));
    delta = reinterpret_cast<F*>(take(job.pass == kGradKey ? capacity * long(sizeof(F)) : 0));
    cell_sums = reinterpret_cast<Wide<F>*>(take(table_tiles * table.cells * wide));
    lines = reinterpret_cast<F*>(take(table_tiles ? table.lines_size() * long(sizeof(F)) : 0));
    return long(at - reinterpret_cast<uintptr_t>(memory));
  }

  Worker(const Job& of, const Table& table) : job(of), p(of.params), table(table) {
    d = job.head_dim;
    e = job.value_dim;
    row_a = rounded(d, kChannels<F>);
    row_b = rounded(e, kChannels<F>);
    lanes_a = rounded(d, kLanes);
    lanes_b = rounded(e, kLanes);
    pairs = kHasPairs && sizeof(F) == 4 && job.type == kBfloat;
    pair_a = rounded(d, 4) / 2;
    pair_b = rounded(e, 4) / 2;
    capacity = kRowBytes / (long(sizeof(F)) * (row_a + row_b)) / (adds_to_columns() ? 2 : 1);
    if (capacity < 16) capacity = 16;
    for (int axis = 0; axis < 4; ++axis)
      for (int lane = 0; lane < kLanes; ++lane) coordinate[axis][lane] = lane_coordinate(job.tile, axis, lane);
    for (int lane = 0; lane < kLanes; ++lane) last_coordinate.lane(lane) = F(coordinate[3][lane]);
    table_tiles = !p.grad_relative_bias || job.pass == kForward || job.pass == kGradKey ? 0
                  : job.pass == kGradAll                                                ? table.head_tiles
                                                                                        : job.group[0];
    const long long keys = rows_of(job, true) * (d + e), numbers = rows_of(job, false) * d + keys;
    far = numbers * size_of(job.type) > kStaysCached;
    scale_in = F(p.softcap ? p.scale / p.softcap : p.scale * 1.4426950408889634);
  }
  long bytes() { return lay_out(nullptr); }

  // Where the rows of a tile are; those that are not in `lanes` are nowhere.
  void offsets(const Tile<F>& t, const Strides& s, int sample, unsigned lanes, long long* at) const {
    const long long from = sample * s.batch + t.head * s.head;
    for (int lane = 0; lane < kLanes; ++lane) {
      at[lane] = from + coordinate[0][lane] * s.head;
      for (int axis = 0; axis < 3; ++axis) at[lane] += t.axis[axis]->position[lane] * s.axis[axis];
      if (!(lanes >> lane & 1)) at[lane] = kNowhere;
    }
  }
  void fetch(const Tile<F>& t, const Side& side, int sample) const {
    long long at[kLanes];
    offsets(t, side.stride, sample, t.valid, at);
    fetch_rows(job.type, side.data, at, kLanes, side.length);
  }
  // to[c] = channel c of the tile's rows; 0 for rows that may not be read. `rows` gets them row by row.
  void load(const Tile<F>& t, const Side& side, int sample, F* rows, Wide<F>* to) {
    const int size = rounded(side.length, kLanes);
    long long at[kLanes];
    offsets(t, side.stride, sample, t.valid, at);
    load_rows(job.type, side.data, at, kLanes, side.stride.channel, side.length, rows, size);
    rows_to_lanes(rows, size, to);
  }
  // The same for what is multiplied with packed rows: as pairs where these are pairs.
  void load_factors(const Tile<F>& t, const Side& side, int sample, F* rows, Wide<F>* to) {
    if (!pairs) return load(t, side, sample, rows, to);
    const int size = rounded((side.length + 1) / 2, kLanes);
    long long at[kLanes];
    offsets(t, side.stride, sample, t.valid, at);
    load_pairs(side.data, at, kLanes, side.stride.channel, side.length, reinterpret_cast<uint32_t*>(rows), size);
    rows_to_lanes(rows, size, to);
  }
  // The packed rows of the scores' columns.
  RowList<const F> columns_a() const { return {packed_a, row_a, column}; }
  RowList<const F> columns_b() const { return {packed_b, row_b, column}; }
  // Sums of a tile to its rows in a contiguous tensor.
  void store(const Tile<F>& t, void* data, const Strides& s, int length, int sample, const F* sums, int width,
             const Wide<F>& factor) const {
    long long at[kLanes];
    offsets(t, s, sample, t.rows, at);
    store_rows(job.type, data, at, kLanes, length, sums, width, factor.numbers());
  }

  // Copies rows to the packed ones, from number `first` on.
  void pack_rows(const Side& a, const Side& b, const long long* at_a, const long long* at_b, int count, long first) {
    if (needs_a()) load_rows(job.type, a.data, at_a, count, a.stride.channel, d, packed_a + first * row_a, row_a);
    if (needs_b()) load_rows(job.type, b.data, at_b, count, b.stride.channel, e, packed_b + first * row_b, row_b);
    if (!pairs) return;
    load_pairs(a.data, at_a, count, a.stride.channel, d, pairs_a + first * pair_a, pair_a);
    if (job.pass != kForward) load_pairs(b.data, at_b, count, b.stride.channel, e, pairs_b + first * pair_b, pair_b);
  }
  static constexpr int kFew = 16;
  struct Few {
    long first = 0;  // packed row
    int count = 0;
    long long at_a[kFew], at_b[kFew];
  };
  // Where the next few rows are; with `numbers`, also the logsumexp and delta of these queries.
  NB_APART void next(BoxRows& r, long first, Few& few, bool numbers) const {
    few.first = first;
    for (few.count = 0; few.count < kFew && r.left; ++few.count, r.advance()) {
      few.at_a[few.count] = r.at[0];
      few.at_b[few.count] = r.at[1];
      if (!numbers) continue;
      const F* const from = static_cast<const F*>(p.delta) + 2 * r.at[2];
      lse[first + few.count] = from[0];
      delta[first + few.count] = from[1];
    }
  }
  // Uses the rows of a box, a few at a time, after asking for the next few if they are far.
  template <class Use>
  void each_few(const Side& a, const Side& b, const Interval (&box)[3], int sample, int head, bool numbers,
                const Use& use) {
    BoxRows r = {{a.stride, b.stride, contiguous(p, p.heads, 1, false)}};
    r.begin(columns, box, sample, head);
    Few few[2];
    const auto ask = [&](Few& to, long first) {
      next(r, first, to, numbers);
      if (!far) return;
      fetch_rows(job.type, a.data, to.at_a, to.count, d);
      fetch_rows(job.type, b.data, to.at_b, to.count, e);
    };
    ask(few[0], 0);
    for (int now = 0; few[now].count; now = 1 - now) {
      ask(few[1 - now], few[now].first + few[now].count);
      use(few[now]);
    }
  }
  void pack(const Side& a, const Side& b, const Interval (&box)[3], int sample, int head) {
    each_few(a, b, box, sample, head, job.pass == kGradKey,
             [&](const Few& few) { pack_rows(a, b, few.at_a, few.at_b, few.count, few.first); });
  }
  void clear_column_sums(const Interval (&box)[3]) {
    memset(column_sum_a, 0, rows_of(box) * row_a * sizeof(F));
    memset(column_sum_b, 0, rows_of(box) * row_b * sizeof(F));
  }
  // Adds the sums of a box to the gradients of its rows.
  void add_column_sums(const Side& a, const Side& b, const Interval (&box)[3], int sample, int head) {
    each_few(a, b, box, sample, head, false, [&](const Few& few) {
      const F *from_a = column_sum_a + few.first * row_a, *from_b = column_sum_b + few.first * row_b;
      add_to_rows(static_cast<F*>(p.grad_key), few.at_a, few.count, d, from_a, row_a, F(p.scale));
      add_to_rows(static_cast<F*>(p.grad_value), few.at_b, few.count, e, from_b, row_b, F(1));
    });
  }

  // Begins the items of another grid; its groups may be those of the grid before.
  void enter(bool alike) {
    if (!alike)
      for (long& number : group_number) number = -1;
    ahead[0].rows.left = ahead[1].rows.left = 0;
  }

  // Begins to ask for the rows and columns of another group.
  void look_ahead(int which, const AxisRuns (&runs)[3], int sample, int head, const Side* const (&sides)[3]) {
    Ahead& ahead = this->ahead[which];
    Interval box[3];
    for (int axis = 0; axis < 3; ++axis) box[axis] = runs[axis].run[runs[axis].run[0].size() == 0];
    for (int i = 0; i < 3; ++i) {
      ahead.side[i] = sides[i];
      ahead.rows.stride[i] = sides[i] ? sides[i]->stride : Strides{};
    }
    ahead.rows.begin(runs, box, sample, head);
  }
  // Asks for a few of them, into the larger cache.
  NB_APART void ask_ahead() {
    int bytes = 0;
    for (Ahead& a : ahead)
      for (; a.rows.left && bytes < kAheadBytes; a.rows.advance())
        for (int i = 0; i < 3; ++i)
          if (a.side[i]) bytes += fetch_row<2>(job.type, a.side[i]->data, a.rows.at[i], a.side[i]->length);
  }
};
}  // namespace nb
