// queue.h - the items that threads share: those of all grids, one grid after the other, or of one call without grids.
#pragma once
#include <stdlib.h>

#include "../cuda/grids.cuh"
#include "items.h"

namespace nb {
constexpr long kUnits = 256, kUnitTiles = 8;  // of a table's gradient: at most, and tiles of one
constexpr long kSlotBytes = 64 << 20;         // of all sums of a table's gradient, if each head has one
struct Queue {
  const Job& job;
  Added added;
  int grids, phase = 0, threads = 0, head_parts = 1;
  long* first;  // items before each grid, and of all of them
  long items = 0, units = 0, next = 0;

  explicit Queue(const Job& of) : job(of), added{table_of(of), nullptr, nullptr, 1} {
    grids = job.params.grids ? job.params.grid_count : 1;
    first = static_cast<long*>(malloc((grids + 1l) * sizeof(long)));
    if (!first) abort();
  }
  ~Queue() { free(first); }

  const Grid& grid(int number) const { return static_cast<const Grid*>(job.params.grids)[number]; }
  template <class Use>
  void each_call(int of_phase, const Use& use) const {
    Job of_grid = job;
    Call call(of_grid, added);
    for (int n = 0; n < grids; ++n) {
      if (job.params.grids) set_lengths(of_grid.params, grid(n));
      call.count(of_phase);
      use(call, n);
    }
  }

  // Begins a phase.
  void begin(int number) {
    phase = number;
    next = items = 0;
    each_call(phase, [&](const Call& call, int n) {
      first[n] = items;
      items += call.items;
      head_parts = call.head_parts();
    });
    first[grids] = items;
    units = added.slots ? long(head_parts) * added.splits : items;
    threads = int(units < job.threads ? units : job.threads);
  }
  // Threads take units of items: single ones, or many of the same heads whose sums for a table's gradient are added up.
  Unit unit(long number) const {
    if (!added.slots) return {number, number + 1, 1};
    const long places = items / head_parts, part = number % head_parts, split = number / head_parts;
    return {places * split / added.splits * head_parts + part, places * (split + 1) / added.splits * head_parts,
            head_parts};
  }

  // The grid of an item: the last one with no more items before it.
  int grid_of(long item) const {
    int low = 0, high = grids;
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      if (first[middle] <= item) low = middle;
      else high = middle;
    }
    return low;
  }
};

// The grid of a thread: its parameters and its call.
struct Present {
  Job job;
  Call call;
  int number = -1;
  bool alike;  // the grid before has the same lengths, and nothing else that groups depend on

  explicit Present(const Queue& queue) : job(queue.job), call(job, queue.added) {}
  Present(const Present&) = delete;

  // Whether an item is one of another grid than the item before; then the parameters are those of that grid.
  bool enters(const Queue& queue, long item) {
    if (number >= 0 && item >= queue.first[number] && item < queue.first[number + 1]) return false;
    const int before = number;
    number = queue.grid_of(item);
    job.params = queue.job.params;
    if (job.params.grids) {
      const Grid &grid = queue.grid(number), &other = queue.grid(before < 0 ? number : before);
      set_grid(job.params, grid, number, {size_of(job.type), job.type == kDouble ? 8 : 4, job.head_dim, job.value_dim});
      alike = before >= 0 && !job.params.key_range && same_lengths(grid, other);
    } else {
      alike = false;
    }
    call.sides = sides_of(job);
    call.count(queue.phase);
    return true;
  }
  // Where an item is that is not one of the extra items, or no heads if there is none.
  Place place(const Queue& queue, long item) {
    if (item >= queue.items) item = queue.items - 1;
    enters(queue, item);
    item -= queue.first[number];
    return item < call.extra_items ? Place{} : place_of(call, item);
  }
};

// How many sums a table's gradient has for each head: few enough for their memory and for what a sum costs. The number
// of threads plays no part.
inline int splits_of(const Queue& queue) {
  const Job& job = queue.job;
  const Table& table = queue.added.table;
  long tiles = 0;
  int head_parts = 1;
  queue.each_call(0, [&](const Call& call, int) {
    long own = long(call.job.params.batch) * (call.splits_heads() ? job.group[0] : table.head_tiles);
    for (int axis = 0; axis < 3; ++axis) own *= long(call.classes[axis]) * call.groups[axis] * job.group[axis + 1];
    tiles += own;
    head_parts = call.head_parts();
  });
  const long bytes = job.params.heads * table.entries * (job.type == kDouble ? 8 : 4);
  long most = kUnits / head_parts;
  if (most > tiles / kUnitTiles) most = tiles / kUnitTiles;
  if (most > kSlotBytes / bytes) most = kSlotBytes / bytes;
  return int(most < 1 ? 1 : most);
}
}  // namespace nb
