"""The keys of a query and the queries of a key, in class coordinates: the only window arithmetic of
the Triton kernels.

`nbattn/rows.py` explains the rules; tests check that both give identical results. Integers stay
within 32 bits because every number of an axis is within +-2^29. A window on a circle is not cut
where the axis ends, so a row's columns are one interval: of at most one lap, inside
`[-keys, 2 * keys)`.
"""

import triton
import triton.language as tl

SHIFT = tl.constexpr(1)
WRAP = tl.constexpr(2)
FAR = tl.constexpr(1 << 30)  # beyond every coordinate


@triton.jit
def floor_div(a, b):
    """The quotient rounded down, for b > 0."""
    return a // b - tl.where(a % b < 0, 1, 0)


@triton.jit
def ceil_div(a, b):
    """The quotient rounded up, for b > 0."""
    return a // b + tl.where(a % b > 0, 1, 0)


@triton.jit
def clamp(x, lo, hi):
    """X inside [lo, hi]."""
    return tl.minimum(tl.maximum(x, lo), hi)


@triton.jit
def leader_step(axis):
    """Distance from the start of a stride group to its leader."""
    return tl.where(axis.causal != 0, axis.stride - 1, axis.stride // 2)


@triton.jit
def window_of(axis, u, keys):
    """The keys `[lo, hi)` and `[0, prefix)` of query u; no end decreases as u grows."""
    group = floor_div(u, axis.stride) * axis.stride
    leader = group + leader_step(axis)
    leader = tl.where(group < keys, tl.minimum(leader, keys - 1), leader)
    size = axis.left + axis.right + 1
    lo = leader - axis.left
    hi = leader + axis.right + 1
    if axis.border == SHIFT:
        lo = clamp(lo, 0, tl.maximum(0, keys - size))
        hi = lo + tl.minimum(keys, size)
    elif axis.border == WRAP:
        lo = tl.where(size > keys, 0, lo)
        hi = lo + tl.minimum(keys, size)
    else:
        lo = tl.maximum(lo, 0)
        hi = tl.minimum(hi, keys)
    prefix = tl.minimum(axis.prefix, keys) + 0 * u
    if axis.causal != 0:
        hi = tl.minimum(hi, u + 1)
        prefix = clamp(u + 1, 0, prefix)
    return lo, hi, prefix


@triton.jit
def readers_of(axis, t, keys):
    """The queries `[lo, hi)` that attend to key t. `lo` never decreases as t grows; neither does
    `hi` for t >= prefix.
    """
    step = leader_step(axis)
    size = axis.left + axis.right + 1
    lo = ceil_div(t - axis.right - step, axis.stride) * axis.stride
    hi = floor_div(t + axis.left - step, axis.stride) * axis.stride + axis.stride
    if axis.border == WRAP:
        lo = tl.where(size > keys, 0, lo)
        hi = tl.where(size >= keys, lo + keys, hi)
    else:
        late = floor_div(keys - 1, axis.stride) * axis.stride + axis.stride
        # the leaders of the last groups are at the last key
        hi = tl.where(t + axis.left >= keys - 1, tl.maximum(hi, late), hi)
        if axis.border == SHIFT:
            lo = tl.where(t < size, -FAR, lo)
            hi = tl.where(t >= keys - size, FAR, hi)
        if axis.causal != 0:
            lo = tl.maximum(lo, t)
        since = tl.where(axis.causal != 0, t, -FAR)
        lo = tl.where(t < axis.prefix, since, lo)
        hi = tl.where(t < axis.prefix, FAR, hi)
    return lo, hi


@triton.jit
def members(first, count, residue, dilation):
    """The coordinates `[lo, hi)` of a class whose positions are in `[first, first + count)`."""
    return ceil_div(first - residue, dilation), ceil_div(first + count - residue, dilation)
