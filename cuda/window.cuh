// window.cuh - the keys of a query and the queries of a key, in class coordinates: the only window arithmetic
// on the device. nbattn/rows.py explains the rules; tests check that both give identical results. Integers
// stay within +-2^31 because every number in an Axis is within +-2^29.
#pragma once
#include "params.h"

namespace nb {
constexpr int kFar = 1 << 30;  // beyond every coordinate

NB_DEVICE int min_of(int a, int b) { return a < b ? a : b; }
NB_DEVICE int max_of(int a, int b) { return a > b ? a : b; }
NB_DEVICE int clamp_to(int x, int lo, int hi) { return min_of(max_of(x, lo), hi); }
NB_DEVICE int floor_div(int a, int b) { return a / b - (a % b < 0); }  // b > 0
NB_DEVICE int ceil_div(int a, int b) { return a / b + (a % b > 0); }
NB_DEVICE int floor_mod(int a, int b) { return a - floor_div(a, b) * b; }

struct Interval {  // [lo, hi), empty when lo >= hi
  int lo, hi;
  NB_DEVICE int size() const { return max_of(0, hi - lo); }
  NB_DEVICE Interval plus(int x) const { return {lo + x, hi + x}; }
  NB_DEVICE bool has(int x) const { return x >= lo && x < hi; }
};
NB_DEVICE Interval cut(Interval x, Interval by) { return {max_of(x.lo, by.lo), min_of(x.hi, by.hi)}; }
NB_DEVICE bool within(Interval x, Interval outer) { return x.lo >= outer.lo && x.hi <= outer.hi; }

// One residue class of the dilation: coordinate x is at position residue + dilation * x of the key axis. The window
// rules need the keys of the whole axis; the tensors hold the keys and queries at the given coordinates.
struct Class {
  int residue, keys;
  Interval held_keys, held_queries;
};
// The coordinates of a class whose positions are in [first, first + count).
NB_DEVICE Interval members(int first, int count, int residue, int dilation) {
  return {ceil_div(first - residue, dilation), ceil_div(first + count - residue, dilation)};
}
NB_DEVICE Class class_of(const Axis& a, const Held& held, int residue) {
  return {residue, members(0, a.keys, residue, a.dilation).hi, members(held.first_key, held.keys, residue, a.dilation),
          members(a.offset, held.queries, residue, a.dilation)};
}
// The class of the tensors' first queries or first keys, by number.
NB_DEVICE Class class_of_query(const Axis& a, const Held& held, int query) {
  return class_of(a, held, floor_mod(a.offset + query, a.dilation));
}
NB_DEVICE Class class_of_key(const Axis& a, const Held& held, int key) {
  return class_of(a, held, floor_mod(held.first_key + key, a.dilation));
}

// The keys of query u: [lo, hi) before wrapping, and the first `prefix` keys. No field decreases as u grows.
struct Window {
  int lo, hi, prefix;
};
NB_DEVICE int leader_step(const Axis& a) { return a.causal ? a.stride - 1 : a.stride / 2; }

NB_DEVICE Window window_of(const Axis& a, int u, int keys) {
  const int group = floor_div(u, a.stride) * a.stride;
  int leader = group + leader_step(a);
  if (group < keys) leader = min_of(leader, keys - 1);
  int lo = leader - a.left, hi = leader + a.right + 1, prefix = min_of(a.prefix, keys);
  const int size = hi - lo;
  if (a.border == kClip) {
    lo = max_of(lo, 0);
    hi = min_of(hi, keys);
  } else if (a.border == kShift) {
    lo = clamp_to(lo, 0, max_of(0, keys - size));
    hi = lo + min_of(keys, size);
  } else if (size >= keys) {  // wrap: the window has every key
    lo = 0;
    hi = keys;
  }
  if (a.causal) {
    hi = min_of(hi, u + 1);
    prefix = clamp_to(u + 1, 0, prefix);
  }
  return {lo, hi, prefix};
}

// On a circle: the first key of query u, and the first query that attends to key t, before wrapping; also of windows
// that have every key.
NB_DEVICE int first_on_circle(const Axis& a, int u) { return floor_div(u, a.stride) * a.stride + leader_step(a) - a.left; }
NB_DEVICE int first_reader_on_circle(const Axis& a, int t) {
  return ceil_div(t - a.right - leader_step(a), a.stride) * a.stride;
}

// The queries that attend to key t, before wrapping. `lo` never decreases as t grows; neither does `hi` for
// t >= prefix.
NB_DEVICE Interval readers_of(const Axis& a, int t, int keys) {
  const int step = leader_step(a), size = a.left + a.right + 1;
  int lo = ceil_div(t - a.right - step, a.stride) * a.stride;
  int hi = floor_div(t + a.left - step, a.stride) * a.stride + a.stride;
  if (a.border == kWrap) return size >= keys ? Interval{0, keys} : Interval{lo, hi};
  if (t + a.left >= keys - 1)  // the last leaders are at the last key
    hi = max_of(hi, floor_div(keys - 1, a.stride) * a.stride + a.stride);
  if (a.border == kShift) {
    if (t < size) lo = -kFar;
    if (t >= keys - size) hi = kFar;
  }
  if (a.causal) lo = max_of(lo, t);
  if (t < a.prefix) return {a.causal ? t : -kFar, kFar};
  return {lo, hi};
}
}  // namespace nb
