// added.h - what a call adds to scores by position: the memory of its table, a tile's part of it, sums for its gradient.
#pragma once
#include "forward.h"
#include "memory.h"
#include "queue.h"

namespace nb {
constexpr long kKept = 4 << 20;  // bytes of a table that are kept for the next call

// Lays out the table for all tiles of heads, and makes sums for its gradient.
template <class F>
inline void begin_table(Queue& queue) {
  const Params& p = queue.job.params;
  if (!p.relative_bias) return;
  Table& t = queue.added.table;
  const bool sums = p.grad_relative_bias && (queue.job.pass == kGradQuery || queue.job.pass == kGradAll);
  if (sums) queue.added.splits = splits_of(queue);
  const int kv_heads = p.heads / p.group, splits = queue.added.splits;
  const long tiles = long(kv_heads) * t.head_tiles, slot = p.heads * t.entries * long(sizeof(F));
  const auto whole = [](long bytes) { return (bytes + 63) / 64 * 64; };
  const long known = whole(known_size(t) * long(sizeof(int))), lines = whole(t.lines_size() * long(sizeof(F))),
             cells = tiles * t.cells * long(sizeof(Wide<F>)), slots = sums ? whole(splits * slot) : 0;
  char* const memory = kept_memory(table_key, known + lines + cells + slots);
  know_entries(t, reinterpret_cast<int*>(memory));
  F* const at = reinterpret_cast<F*>(memory + known + lines);
  for (long tile = 0; tile < tiles; ++tile) {
    const int first = int(tile % t.head_tiles) * t.heads;
    const F* const from = static_cast<const F*>(p.relative_bias) + (tile / t.head_tiles * p.group + first) * t.entries;
    lay_out(t, from, min_of(t.heads, p.group - first), reinterpret_cast<F*>(memory + known), at + tile * t.cells * kLanes);
  }
  queue.added.cells = reinterpret_cast<char*>(at);
  if (!sums) return;
  queue.added.slots = memory + known + lines + cells;
  memset(queue.added.slots, 0, splits * slot);
}
// The table's gradient: all sums, in one order.
template <class F>
inline void end_table(const Queue& queue) {
  const Added& added = queue.added;
  if (added.slots) {
    const long numbers = queue.job.params.heads * added.table.entries;
    F* const to = static_cast<F*>(queue.job.params.grad_relative_bias);
    const F* from = reinterpret_cast<const F*>(added.slots);
    memcpy(to, from, numbers * sizeof(F));
    for (int split = 1; split < added.splits; ++split) {
      from += numbers;
      for (long i = 0; i < numbers; ++i) to[i] += from[i];
    }
  }
  if (added.cells) forget_memory(table_key, kKept);
}
// Adds a unit's sums to those of its split.
template <class F>
inline void add_to_slot(Worker<F>& w, const Queue& queue, long number) {
  const Unit unit = queue.unit(number);
  if (unit.first >= unit.stop) return;
  const Table& t = queue.added.table;
  const int part = int(number % queue.head_parts), kv_heads = w.p.heads / w.p.group, kv_head = part % kv_heads;
  F* const slot = reinterpret_cast<F*>(queue.added.slots) + number / queue.head_parts * w.p.heads * t.entries;
  for (int n = 0; n < w.table_tiles; ++n) {
    const int head = (part / kv_heads * w.job.group[0] + n) * t.heads;  // of the key head
    if (head >= w.p.group) return;
    add_to_table(t, w.cell_sums[n * t.cells].numbers(), min_of(t.heads, w.p.group - head), w.lines,
                 slot + (long(kv_head) * w.p.group + head) * t.entries);
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
      const int place = first / p.group * call.added.table.head_tiles + in_group;
      t.bias = reinterpret_cast<const Wide<F>*>(call.added.cells) + place * call.added.table.cells;
      if (w.table_tiles) t.bias_sums = w.cell_sums + in_group % w.table_tiles * call.added.table.cells;
    }
    if (!p.alibi_slopes) continue;
    const F* const slopes = static_cast<const F*>(p.alibi_slopes) + (long long)(sample) * p.slope_step;
    for (int lane = 0; lane < kLanes; ++lane)
      t.slope.lane(lane) = unit * slopes[min_of(first + (kKeyRows ? 0 : w.coordinate[0][lane]), p.heads - 1)];
  }
}
}  // namespace nb
