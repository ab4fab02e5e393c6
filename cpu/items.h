// items.h - the work items of a call: which groups of which sample and key head each of them is. Threads take units of
// them: single items, or many of the same heads whose sums for a table's gradient are added up.
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

constexpr long kUnits = 256, kUnitTiles = 8;  // of a table's gradient: at most, and tiles of one
constexpr long kSlotBytes = 64 << 20;         // of all sums of a table's gradient, if each head has one
struct Call {
  const Job& job;
  Sides sides;
  Table table;
  const char* cells;          // of the tiles' heads, or null
  char* slots;                // sums of the table's gradient: `splits` for each head; or null
  int splits;
  int kv_heads, head_groups, threads;
  int classes[3], groups[3];  // of the classes that have rows; of the longest class
  int slabs[3];               // items of a class
  int alternating = -1, phase = 0;  // on this axis, if there is one, every other slab runs in each phase
  long extra_items = 0, items = 0, units = 0, next = 0;

  bool splits_heads() const { return job.pass == kForward || job.pass == kGradQuery; }
  // Slabs of a class that run in this phase.
  int shares(int axis) const { return axis == alternating ? (slabs[axis] + 1 - phase) / 2 : slabs[axis]; }

  // Items of the same sample and place differ in their heads.
  int head_parts() const { return kv_heads * (splits_heads() ? head_groups : 1); }
  Unit unit(long number) const {
    if (!slots) return {number, number + 1, 1};
    const int parts = head_parts();
    const long places = items / parts, part = number % parts, split = number / parts;
    return {places * split / splits * parts + part, places * (split + 1) / splits * parts, parts};
  }

  // Begins a phase.
  void begin(int number) {
    phase = number;
    next = 0;
    items = long(job.params.batch) * head_parts();
    for (int axis = 0; axis < 3; ++axis) items *= long(classes[axis]) * shares(axis);
    items += extra_items;
    units = slots ? long(head_parts()) * splits : items;
    threads = int(units < job.threads ? units : job.threads);
  }
};
inline Call call_of(const Job& job) {
  const Params& p = job.params;
  const bool keys = job.pass == kGradKey;
  Call call = {job, sides_of(job), table_of(job), nullptr, nullptr, 1, p.heads / p.group, 1, 0, {}, {}, {}};
  call.head_groups = keys ? 1 : ceil_div(p.group, job.tile[0] * job.group[0]);
  if (keys) call.extra_items = long(p.batch) * call.kv_heads * ceil_div(p.extra, kLanes);
  for (int axis = 0; axis < 3; ++axis) {
    call.classes[axis] = classes_of(job, axis, keys);
    call.groups[axis] = groups_of(job, axis, keys);
    call.slabs[axis] = ceil_div(call.groups[axis], job.slab[axis]);
    if (job.pass == kGradAll && call.slabs[axis] > 1) call.alternating = axis;
  }
  return call;
}
// How many sums a table's gradient has for each head: few enough for their memory and for what a sum costs. The number
// of threads plays no part.
inline int splits_of(const Call& call) {
  const Job& job = call.job;
  long tiles = long(job.params.batch) * (call.splits_heads() ? job.group[0] : call.table.head_tiles);
  for (int axis = 0; axis < 3; ++axis) tiles *= long(call.classes[axis]) * call.groups[axis] * job.group[axis + 1];
  const long bytes = job.params.heads * call.table.entries * (job.type == kDouble ? 8 : 4);
  long most = kUnits / call.head_parts();
  if (most > tiles / kUnitTiles) most = tiles / kUnitTiles;
  if (most > kSlotBytes / bytes) most = kSlotBytes / bytes;
  return int(most < 1 ? 1 : most);
}

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
