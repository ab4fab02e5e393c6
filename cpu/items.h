// items.h - the work items of a call: which groups of which sample and key head each of them is.
#pragma once
#include "table.h"

namespace nb {
// A call's tensors: those of rows (the lanes) and of columns, [D] and [E] numbers a row.
struct Sides {
  Side row_a, row_b, column_a, column_b, extra_a, extra_b, out, grad_a, grad_b;  // the last two are of columns
};
inline Sides sides_of(const Job& job) {
  const Params& p = job.params;
  const int d = job.head_dim, e = job.value_dim, kv_heads = p.heads / p.group;
  const Side query = {p.query, p.query_stride, d}, key = {p.key, p.key_stride, d}, value = {p.value, p.value_stride, e},
             grad_out = {p.grad_out, p.grad_out_stride, e}, extra_key = {p.extra_key, of_extra(p, kv_heads, d), d},
             extra_value = {p.extra_value, of_extra(p, kv_heads, e), e}, out = {p.out, contiguous(p, p.heads, e, false), e},
             grad_key = {p.grad_key, contiguous(p, kv_heads, d, true), d},
             grad_value = {p.grad_value, contiguous(p, kv_heads, e, true), e};
  if (job.pass == kGradKey) return {key, value, query, grad_out, extra_key, extra_value, out, {}, {}};
  return {query, grad_out, key, value, extra_key, extra_value, out, grad_key, grad_value};
}

struct Unit {  // items first, first + step, ... before stop
  long first, stop, step;
};

// What all grids share of a call with a table.
struct Added {
  Table table;
  const char* cells;  // of the tiles' heads, or null
  char* slots;        // sums of the table's gradient: `splits` for each head; or null
  int splits;
};

// A call, or its part of one grid: `job` has the parameters of that grid.
struct Call {
  const Job& job;
  const Added& added;
  Sides sides;
  int kv_heads, head_groups;
  int classes[3], groups[3];  // of the classes that have rows; of the longest class
  int slabs[3];               // items of a class
  int alternating, phase;     // on this axis, if there is one, every other slab runs in each phase
  long extra_items, items;

  Call(const Job& of, const Added& added) : job(of), added(added) {}

  bool splits_heads() const { return job.pass == kForward || job.pass == kGradQuery; }
  // Slabs of a class that run in this phase.
  int shares(int axis) const { return axis == alternating ? (slabs[axis] + 1 - phase) / 2 : slabs[axis]; }

  // Items of the same sample and place differ in their heads.
  int head_parts() const { return kv_heads * (splits_heads() ? head_groups : 1); }

  // Counts the items of a phase.
  void count(int number) {
    const Params& p = job.params;
    const bool keys = job.pass == kGradKey;
    phase = number;
    alternating = -1;
    kv_heads = p.heads / p.group;
    head_groups = keys ? 1 : ceil_div(p.group, job.tile[0] * job.group[0]);
    extra_items = keys ? long(p.batch) * kv_heads * ceil_div(p.extra, kLanes) : 0;
    items = long(p.batch) * head_parts();
    for (int axis = 0; axis < 3; ++axis) {
      classes[axis] = classes_of(job, axis, keys);
      groups[axis] = groups_of(job, axis, keys);
      slabs[axis] = ceil_div(groups[axis], job.slab[axis]);
      if (job.pass == kGradAll && slabs[axis] > 1) alternating = axis;
    }
    for (int axis = 0; axis < 3; ++axis) items *= long(classes[axis]) * shares(axis);
    items = alternating < 0 && phase > 0 ? 0 : items + extra_items;
  }
};

// The groups of a work item.
struct Place {
  int sample, kv_head;
  Interval heads;     // groups of query heads
  Interval group[3];  // numbers of groups: the class is slowest
};
inline Place place_of(const Call& call, long item) {  // not one of the extra items, which come first
  Place place;
  item -= call.extra_items;
  place.kv_head = int(item % call.kv_heads);
  item /= call.kv_heads;
  place.heads = {0, call.head_groups};
  if (call.splits_heads()) {
    const int at = int(item % call.head_groups);
    place.heads = {at, at + 1};
    item /= call.head_groups;
  }
  for (int axis = 2; axis >= 0; --axis) {
    const int shares = call.shares(axis), slab = call.job.slab[axis], share = int(item % shares);
    const int first = slab * (axis == call.alternating ? 2 * share + call.phase : share);
    item /= shares;
    const int start = int(item % call.classes[axis]) * call.groups[axis];
    item /= call.classes[axis];
    place.group[axis] = {start + first, start + min_of(first + slab, call.groups[axis])};
  }
  place.sample = int(item);
  return place;
}
// The next group of an item; false if there is none.
inline bool advance(int (&at)[3], const Place& place) {
  for (int axis = 2; axis >= 0; --axis) {
    if (++at[axis] < place.group[axis].hi) return true;
    at[axis] = place.group[axis].lo;
  }
  return false;
}
}  // namespace nb
