// added.h - what a call adds to scores by position: the memory of its table, a tile's part of it, sums for its gradient.
#pragma once
#include "forward.h"
#include "items.h"
#include "memory.h"

namespace nb {
constexpr long kKept = 4 << 20;  // bytes of a table that are kept for the next call

// Lays out the table for all tiles of heads, and makes sums for its gradient.
template <class F>
inline void begin_table(Call& call) {
  const Params& p = call.job.params;
  if (!p.relative_bias) return;
  Table& t = call.table;
  const bool sums = p.grad_relative_bias && (call.job.pass == kGradQuery || call.job.pass == kGradAll);
  if (sums) call.splits = splits_of(call);
  const long tiles = long(call.kv_heads) * t.head_tiles, slot = p.heads * t.entries * long(sizeof(F));
  const auto whole = [](long bytes) { return (bytes + 63) / 64 * 64; };
  const long known = whole(known_size(t) * long(sizeof(int))), lines = whole(t.lines_size() * long(sizeof(F))),
             cells = tiles * t.cells * long(sizeof(Wide<F>)), slots = sums ? whole(call.splits * slot) : 0;
  char* const memory = kept_memory(table_key, known + lines + cells + slots);
  know_entries(t, reinterpret_cast<int*>(memory));
  F* const at = reinterpret_cast<F*>(memory + known + lines);
  for (long tile = 0; tile < tiles; ++tile) {
    const int first = int(tile % t.head_tiles) * t.heads;
    const F* const from = static_cast<const F*>(p.relative_bias) + (tile / t.head_tiles * p.group + first) * t.entries;
    lay_out(t, from, min_of(t.heads, p.group - first), reinterpret_cast<F*>(memory + known), at + tile * t.cells * kLanes);
  }
  call.cells = reinterpret_cast<char*>(at);
  if (!sums) return;
  call.slots = memory + known + lines + cells;
  memset(call.slots, 0, call.splits * slot);
}
// The table's gradient: all sums, in one order.
template <class F>
inline void end_table(const Call& call) {
  if (call.slots) {
    const long numbers = call.job.params.heads * call.table.entries;
    F* const to = static_cast<F*>(call.job.params.grad_relative_bias);
    const F* from = reinterpret_cast<const F*>(call.slots);
    memcpy(to, from, numbers * sizeof(F));
    for (int split = 1; split < call.splits; ++split) {
      from += numbers;
      for (long i = 0; i < numbers; ++i) to[i] += from[i];
    }
  }
  if (call.cells) forget_memory(table_key, kKept);
}
// Adds a unit's sums to those of its split.
template <class F>
inline void add_to_slot(Worker<F>& w, const Call& call, long number) {
  const Unit unit = call.unit(number);
  if (unit.first >= unit.stop) return;
  const Table& t = call.table;
  const Place place = place_of(call, unit.first);
  F* const slot = reinterpret_cast<F*>(call.slots) + number / call.head_parts() * w.p.heads * t.entries;
  for (int n = 0; n < w.table_tiles; ++n) {
    const int head = (place.heads.lo * w.job.group[0] + n) * t.heads;  // of the key head
    if (head >= w.p.group) return;
    add_to_table(t, w.cell_sums[n * t.cells].numbers(), min_of(t.heads, w.p.group - head), w.lines,
                 slot + (long(place.kv_head) * w.p.group + head) * t.entries);
  }
}

// What is added to the scores of tiles with query heads from `head` on: of one head, where rows are keys.
template <bool kKeyRows, class F>
inline void set_added(Worker<F>& w, const Call& call, int tiles, int sample, int head) {
  if (!w.adds_to_scores()) return;
  const Params& p = w.p;
  const F unit = F(p.axis[2].dilation * kLog2E);
  for (int n = 0; n < tiles; ++n) {
    Tile<F>& t = w.tile[n];
    t.added = true;
    const int first = kKeyRows ? head : t.head, in_group = first % p.group / (kKeyRows ? 1 : w.job.tile[0]);
    if (p.relative_bias) {
      const int place = first / p.group * call.table.head_tiles + in_group;
      t.bias = reinterpret_cast<const Wide<F>*>(call.cells) + place * call.table.cells;
      if (w.table_tiles) t.bias_sums = w.cell_sums + in_group % w.table_tiles * call.table.cells;
    }
    if (!p.alibi_slopes) continue;
    const F* const slopes = static_cast<const F*>(p.alibi_slopes) + (long long)(sample) * p.slope_step;
    for (int lane = 0; lane < kLanes; ++lane)
      t.slope.lane(lane) = unit * slopes[min_of(first + (kKeyRows ? 0 : w.coordinate[0][lane]), p.heads - 1)];
  }
}
}  // namespace nb
