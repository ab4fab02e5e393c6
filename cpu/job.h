// job.h - the argument of a call, and what follows from it: sizes, strides, work items, scratch memory.
#pragma once
#include "../cuda/params.h"
#include "element.h"

namespace nb {
enum Pass { kForward = 0, kGradQuery = 1, kGradKey = 2, kGradAll = 3 };

struct Job {
  Params params;  // as the GPU's kernels take it; lse, out, gradients, extra keys and delta are contiguous
  int type, pass;
  int tile[4], group[4];  // rows of a tile, tiles of a group: query heads of one key head, then the three axes
  int slab[3];            // groups of a work item of kGradAll on the three axes
  int threads, head_dim, value_dim;
};
static_assert(sizeof(Job) == 624, "nbattn/backends/native/run.py has drifted");

constexpr int kScores = 512;          // columns whose scores are kept at once
constexpr int kAheadBytes = 1024;     // of the next group's rows and columns that are asked for with each piece
constexpr long kStaysCached = 8 << 20;  // bytes of queries, keys and values that nobody needs to ask for
constexpr long kRowBytes = 256 << 10; // rows of columns that are kept at once

constexpr int rounded(int n, int step) { return (n + step - 1) / step * step; }

// Rows of the queries, or of the keys: of all samples, positions and heads.
inline long long rows_of(const Job& job, bool keys) {
  const Params& p = job.params;
  long long rows = (long long)(p.batch) * (keys ? p.heads / p.group : p.heads);
  for (const Held& held : p.held) rows *= keys ? held.keys : held.queries;
  return rows;
}

// A tensor's rows: strides of the positions, and how many numbers a row has.
struct Side {
  const void* data;
  Strides stride;
  int length;
};
// The strides of a contiguous [B, *space, heads, channels].
inline Strides contiguous(const Params& p, int heads, int channels, bool keys) {
  Strides s;
  s.channel = 1;
  s.head = channels;
  long long step = static_cast<long long>(heads) * channels;
  for (int axis = 2; axis >= 0; --axis) {
    s.axis[axis] = step;
    step *= keys ? p.held[axis].keys : p.held[axis].queries;
  }
  s.batch = step;
  return s;
}
// Those of extra keys [B, E, Hk, channels]: their positions are on the last axis.
inline Strides of_extra(const Params& p, int kv_heads, int channels) {
  const long long step = static_cast<long long>(kv_heads) * channels;
  return {p.extra * step, {0, 0, step}, channels, 1};
}
}  // namespace nb
