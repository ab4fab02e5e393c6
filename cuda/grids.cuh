// grids.cuh - grids of different lengths that tensors hold one after another: the parameters of one of them. The GPU's
// and the CPU's kernels share it.
#pragma once
#include "params.h"

namespace nb {
// One grid, row-major. Masks with fewer than three axes get leading axes of one query and one key.
struct Grid {
  int queries[3], keys[3];           // lengths of its axes
  int offset[3];                     // position of its first query on the key axes
  int first_tile[3];                 // tiles of rows in the grids before it: of the GPU's fwd, dq, dkdv
  long long first_query, first_key;  // tokens in the grids before it
};
static_assert(sizeof(Grid) == 64, "nbattn/kernels/layout.py has drifted");

NB_DEVICE bool same_lengths(const Grid& a, const Grid& b) {
  bool same = true;
  for (int axis = 0; axis < 3; ++axis)
    same = same && a.queries[axis] == b.queries[axis] && a.keys[axis] == b.keys[axis] && a.offset[axis] == b.offset[axis];
  return same;
}

struct Sizes {  // bytes of an element and of an accumulator, channels
  int element, number, head_dim, value_dim;
};

// Packed tensors are [1, 1, 1, T, H, D]: the step of a token is that of the last axis.
NB_DEVICE void set_steps(Strides& s, const int (&length)[3]) {
  s.axis[1] = s.axis[2] * length[2];
  s.axis[0] = s.axis[1] * length[1];
}
template <class T>
NB_DEVICE void move(T*& tensor, long long bytes) {
  typedef unsigned char Byte;
  if (tensor) tensor = reinterpret_cast<T*>(const_cast<Byte*>(reinterpret_cast<const Byte*>(tensor)) + bytes);
}

// The lengths of a grid, in place of those of all tokens.
NB_DEVICE void set_lengths(Params& p, const Grid& grid) {
  for (int axis = 0; axis < 3; ++axis) {
    p.axis[axis].keys = grid.keys[axis];
    p.axis[axis].offset = grid.offset[axis];
    p.held[axis] = {grid.queries[axis], 0, grid.keys[axis]};
  }
}
// The parameters of grid `number`, in place of those of all grids: everything that is per sample moves to its own.
NB_DEVICE void set_grid(Params& p, const Grid& grid, int number, const Sizes& of) {
  const long long kv_heads = p.heads / p.group, extra = number * (p.extra * kv_heads),
                  query = grid.first_query * p.heads, key = grid.first_key * kv_heads;
  set_lengths(p, grid);
  move(p.query, grid.first_query * p.query_stride.axis[2] * of.element);
  move(p.grad_out, grid.first_query * p.grad_out_stride.axis[2] * of.element);
  move(p.key, grid.first_key * p.key_stride.axis[2] * of.element);
  move(p.value, grid.first_key * p.value_stride.axis[2] * of.element);
  set_steps(p.query_stride, grid.queries);
  set_steps(p.grad_out_stride, grid.queries);
  set_steps(p.key_stride, grid.keys);
  set_steps(p.value_stride, grid.keys);
  move(p.out, query * of.value_dim * of.element);
  move(p.grad_query, query * of.head_dim * of.element);
  move(p.lse, query * of.number);
  move(p.grad_lse, query * of.number);
  move(p.delta, query * of.number * 2);
  move(p.grad_key, key * of.head_dim * of.element);
  move(p.grad_value, key * of.value_dim * of.element);
  move(p.extra_key, extra * of.head_dim * of.element);
  move(p.extra_value, extra * of.value_dim * of.element);
  move(p.grad_extra_key, extra * of.head_dim * of.element);
  move(p.grad_extra_value, extra * of.value_dim * of.element);
  move(p.key_range, number * (p.rank * 2ll * sizeof(int)));
  move(p.extra_range, number * (2ll * sizeof(int)));
  move(p.alibi_slopes, number * (static_cast<long long>(p.slope_step) * of.number));
}
}  // namespace nb
