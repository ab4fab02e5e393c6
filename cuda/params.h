// params.h - the one argument of every kernel, passed by value. nbattn/kernels/layout.py packs it.
#pragma once
#include "base.cuh"

namespace nb {
enum Border { kClip = 0, kShift = 1, kWrap = 2 };

// One axis of a mask at its length; window.cuh defines the window. All numbers are within +-2^29.
struct Axis {
  int keys;               // length of the key axis
  int left, right;        // keys on each side, in steps of the dilation
  int dilation, stride;   // at least 1
  int offset;             // position of the first query of the tensors on the key axis
  int prefix;             // number of first keys that every query attends to
  int border, causal;     // a Border; 0 or 1
};

// What the tensors hold of an axis: all of it, or the part of one rank.
struct Held {
  int queries, first_key, keys;  // lengths of the tensors; position of their first key
};

// Strides of a [B, a0, a1, a2, H, D] tensor, in elements: batch, three axes, head, channel.
struct Strides {
  long long batch, axis[3], head, channel;
};

// Masks with fewer than three axes get leading axes of one query and one key. Tensors without a stride here are
// contiguous: out and grad_* like their tensors, extra_* [B, E, Hk, channels], lse [B, *space, H].
struct Params {
  const void *query, *key, *value, *extra_key, *extra_value;
  const void *sink;       // [H], in the accumulator's type, or null
  const int *key_range;   // [B, rank, 2], or null
  void *out, *lse;        // lse may be null in the forward kernels
  const void *grad_out, *grad_lse;  // grad_lse may be null
  void *delta;  // [B, *space, H, 2]: lse in units of log 2 (0 for rows without keys), sum(out * grad_out) - grad_lse
  void *grad_query, *grad_key, *grad_value, *grad_extra_key, *grad_extra_value;
  const int *extra_range;       // [B, 2], or null
  const void *relative_bias;    // [H, 2 K - 1 per axis], K = left + right + 1, in the accumulator's type, or null
  const void *alibi_slopes;     // [H], or [B, H] with a slope_step of H, in the accumulator's type, or null
  const void *grids;            // a table of the grids that are packed one after another, or null
  void *grad_relative_bias;
  Strides query_stride, key_stride, value_stride, grad_out_stride;
  double scale, softcap;
  Axis axis[3];
  Held held[3];
  int batch, heads, group, extra, rank, packed;  // group: query heads per key head; packed: of them on axis 0
  int slope_step, grid_count;
};
static_assert(sizeof(Axis) == 36 && sizeof(Held) == 12 && sizeof(Strides) == 48 && sizeof(Params) == 560,
              "nbattn/kernels/layout.py has drifted");
}  // namespace nb
