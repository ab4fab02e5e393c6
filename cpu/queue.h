// queue.h - the items that threads share: those of all grids, one grid after the other, or of one call without grids.
#pragma once
#include <stdlib.h>

#include "../cuda/grids.cuh"
#include "items.h"

namespace nb {
struct Queue {
  const Job& job;
  int grids, phase, threads;
  long* first;  // items before each grid, and of all of them
  long items, next;

  explicit Queue(const Job& of) : job(of), phase(0), threads(0), items(0), next(0) {
    grids = job.params.grids ? job.params.grid_count : 1;
    first = static_cast<long*>(malloc((grids + 1l) * sizeof(long)));
    if (!first) abort();
  }
  ~Queue() { free(first); }

  const Grid& grid(int number) const { return static_cast<const Grid*>(job.params.grids)[number]; }

  // Begins a phase.
  void begin(int number) {
    Job of_grid = job;
    Call call(of_grid);
    phase = number;
    next = items = 0;
    for (int n = 0; n < grids; ++n) {
      if (job.params.grids) set_lengths(of_grid.params, grid(n));
      first[n] = items;
      call.count(phase);
      items += call.items;
    }
    first[grids] = items;
    threads = int(items < job.threads ? items : job.threads);
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

  explicit Present(const Queue& queue) : job(queue.job), call(job) {}
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
}  // namespace nb
