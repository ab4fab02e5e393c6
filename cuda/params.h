// params.h - the one argument of every kernel, passed by value. nbattn/kernels/layout.py packs it.
#pragma once
#include "base.cuh"

namespace nb {
enum Border { kClip = 0, kShift = 1, kWrap = 2 };

// One axis of a mask with its lengths; window.cuh defines the window. All numbers are within +-2^29.
struct Axis {
  int queries, keys;      // lengths
  int left, right;        // keys on each side, in steps of the dilation
  int dilation, stride;   // at least 1
  int offset;             // position of query 0 on the key axis
  int prefix;             // number of first keys that every query attends to
  int border, causal;     // a Border; 0 or 1
};

// Strides of a [B, a0, a1, a2, H, D] tensor, in elements: batch, three axes, head, channel.
struct Strides {
  long long batch, axis[3], head, channel;
};

// Masks with fewer than three axes get leading axes of one query and one key. Tensors without a stride here are
// contiguous: out and grad_* like their tensors, extra_* [B, E, Hk, channels], lse and delta [B, *space, H].
struct Params {
  const void *query, *key, *value, *extra_key, *extra_value;
  const void *sink;       // [H], in the accumulator's type, or null
  const int *key_range;   // [B, rank, 2], or null
  void *out, *lse;        // lse may be null in the forward kernels
  const void *grad_out, *grad_lse;  // grad_lse may be null
  void *delta;            // sum(out * grad_out) - grad_lse
  void *grad_query, *grad_key, *grad_value, *grad_extra_key, *grad_extra_value;
  Strides query_stride, key_stride, value_stride, grad_out_stride;
  double scale, softcap;
  Axis axis[3];
  int batch, heads, group, extra, rank, reserved;  // group: query heads per key head
};
static_assert(sizeof(Axis) == 40 && sizeof(Strides) == 48 && sizeof(Params) == 488,
              "nbattn/kernels/layout.py has drifted");
}  // namespace nb
