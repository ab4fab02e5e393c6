"""Where a program's tile lies: its grid, head and sample, and where vectors and numbers lie in
tensors.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.numbers import Axis, Counts, Place, Strides
from nbattn.backends.triton.kernels.window import clamp

# Numbers of a grid in the table of `grid_rows` in run.py: lengths of queries and of keys, offsets
# on three axes, tiles of rows before it by kernel, tokens before it.
GRID = tl.constexpr(16)
FIRST_TILE = tl.constexpr(9)
FIRST_TOKEN = tl.constexpr(13)


@triton.jit
def plain(number):
    """The number that `numbers.unlike_others` has written."""
    return (number >> 2).to(tl.int32)


@triton.jit
def axes_of(axes):
    """The axes of a kernel's argument."""
    return (axis_of(axes[0]), axis_of(axes[1]), axis_of(axes[2]))


@triton.jit
def axis_of(axis):
    """One axis of a kernel's argument."""
    return Axis(
        plain(axis.keys),
        plain(axis.left),
        plain(axis.right),
        plain(axis.dilation),
        plain(axis.stride),
        plain(axis.offset),
        plain(axis.prefix),
        plain(axis.border),
        plain(axis.causal),
        plain(axis.queries),
        plain(axis.first_key),
        plain(axis.held_keys),
    )


@triton.jit
def counts_of(counts):
    """The numbers of a launch."""
    return Counts(
        plain(counts.tiles),
        plain(counts.blocks),
        plain(counts.heads),
        plain(counts.group),
        plain(counts.extra),
        plain(counts.slope_step),
        plain(counts.grids),
    )


@triton.jit
def strides_from(strides):
    """The strides of a kernel's argument, as wide as they are."""
    return Strides(
        strides.batch >> 2,
        strides.axis0 >> 2,
        strides.axis1 >> 2,
        strides.axis2 >> 2,
        strides.head >> 2,
        strides.channel >> 2,
    )


@triton.jit
def place_of(grids, axes, counts, KERNEL: tl.constexpr):
    """The place of this program. The tile varies fastest, so that neighbours share columns in the
    caches.
    """
    number = tl.program_id(0)
    head = number // counts.tiles % counts.blocks
    sample = number // counts.tiles // counts.blocks
    return tile_place(grids, axes, counts, number % counts.tiles, head, sample, KERNEL)


@triton.jit
def tile_place(grids, axes, counts, tile, head, sample, KERNEL: tl.constexpr):
    """The place of a tile. Each of the packed grids is a sample, which has some of the tiles;
    `KERNEL` is the column of the table with the tiles before a grid.
    """
    if grids is not None:
        sample = grid_of(grids, counts.grids, tile, KERNEL)
        tile -= tl.load(grids + sample * GRID + FIRST_TILE + KERNEL).to(tl.int32)
    return sample_place(grids, axes, tile, head, sample)


@triton.jit
def sample_place(grids, axes, tile, head, sample):
    """The place of a tile of a sample, or of a grid."""
    first_query = tl.full([], 0, tl.int64)
    first_key = tl.full([], 0, tl.int64)
    if grids is not None:
        row = grids + sample * GRID
        first_query = tl.load(row + FIRST_TOKEN)
        first_key = tl.load(row + FIRST_TOKEN + 1)
        axes = (of_grid(axes[0], row), of_grid(axes[1], row + 1), of_grid(axes[2], row + 2))
    return Place(tile, head, sample, first_query, first_key, axes)


@triton.jit
def grid_of(grids, count, tile, KERNEL: tl.constexpr):
    """The last grid with no more than `tile` tiles before it."""
    lo = tile * 0
    hi = tile * 0 + count
    while hi - lo > 1:
        middle = (lo + hi) // 2
        before = tl.load(grids + middle * GRID + FIRST_TILE + KERNEL).to(tl.int32) <= tile
        lo = tl.where(before, middle, lo)
        hi = tl.where(before, hi, middle)
    return lo


@triton.jit
def of_grid(axis, row):
    """An axis with the lengths of one grid."""
    queries = tl.load(row).to(tl.int32)
    keys = tl.load(row + 3).to(tl.int32)
    return Axis(
        keys,
        axis.left,
        axis.right,
        axis.dilation,
        axis.stride,
        tl.load(row + 6).to(tl.int32),
        axis.prefix,
        axis.border,
        axis.causal,
        queries,
        axis.first_key,
        keys,
    )


@triton.jit
def strides_of(strides, length1, length2, V: tl.constexpr):
    """The strides of a grid: packed tensors have only that of a token."""
    axis1 = strides.axis1
    axis0 = strides.axis0
    if V.packed:
        axis1 = strides.axis2 * length2
        axis0 = axis1 * length1
    return Strides(strides.batch, axis0, axis1, strides.axis2, strides.head, strides.channel)


@triton.jit
def start_of(strides, place, head, token, V: tl.constexpr):
    """The offset of a head's first position: in a sample, or in a grid from its first token on."""
    at = head.to(tl.int64) * strides.head
    if V.packed:
        at += token * strides.axis2
    else:
        at += place.sample.to(tl.int64) * strides.batch
    return at * V.step


@triton.jit
def offsets_of(strides, places, V: tl.constexpr):
    """The offsets of rows or columns from the first position of their head."""
    at0 = places[0].position
    at1 = places[1].position
    at2 = places[2].position
    if V.wide:
        at0 = at0.to(tl.int64)
        at1 = at1.to(tl.int64)
        at2 = at2.to(tl.int64)
    return (at0 * strides.axis0 + at1 * strides.axis1 + at2 * strides.axis2) * V.step


@triton.jit
def flat_offsets(strides, number, axes, V: tl.constexpr):
    """The offsets of queries by their number in a sample or grid."""
    at2 = number % axes[2].queries
    at1 = number // axes[2].queries % axes[1].queries
    at0 = number // axes[2].queries // axes[1].queries
    if V.wide:
        at0 = at0.to(tl.int64)
        at1 = at1.to(tl.int64)
        at2 = at2.to(tl.int64)
    return (at0 * strides.axis0 + at1 * strides.axis1 + at2 * strides.axis2) * V.step


@triton.jit
def load(
    tensor,
    at,
    inside,
    step,
    NEIGHBOURS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
):
    """The vectors at given offsets, `[rows, SIZE]`; zeros where a row or a channel is not there.

    `step` is the stride of channels, `NEIGHBOURS` whether it is known to be 1.
    """
    channel = tl.arange(0, SIZE)
    mask = inside[:, None]
    if DIM != SIZE:
        mask = mask & (channel < DIM)[None, :]
    if not NEIGHBOURS:
        channel = channel * step
    return tl.load(tensor + at[:, None] + channel[None, :], mask=mask, other=0.0)


@triton.jit
def store(tensor, at, inside, values, DIM: tl.constexpr, SIZE: tl.constexpr):
    """Writes vectors to given offsets of a contiguous tensor."""
    channel = tl.arange(0, SIZE)
    mask = inside[:, None]
    if DIM != SIZE:
        mask = mask & (channel < DIM)[None, :]
    tl.store(tensor + at[:, None] + channel[None, :], values.to(tensor.dtype.element_ty), mask=mask)


@triton.jit
def query_tokens(place, rows, heads, V: tl.constexpr):
    """The numbers of queries in a contiguous `[B, *space, heads]`, or in `[T, heads]`, in 64 bits,
    but for the head.
    """
    axes = place.axes
    at = (rows[0].position * axes[1].queries + rows[1].position) * axes[2].queries
    first = place.first_query
    if not V.packed:
        first = place.sample.to(tl.int64) * axes[0].queries * axes[1].queries * axes[2].queries
    return first * heads + (at + rows[2].position).to(tl.int64) * heads


@triton.jit
def key_tokens(place, rows, heads, V: tl.constexpr):
    """The same numbers of keys."""
    axes = place.axes
    at = (rows[0].position * axes[1].held_keys + rows[1].position) * axes[2].held_keys
    first = place.first_key
    if not V.packed:
        first = place.sample.to(tl.int64) * axes[0].held_keys * axes[1].held_keys
        first = first * axes[2].held_keys
    return first * heads + (at + rows[2].position).to(tl.int64) * heads


@triton.jit
def extra_keys(extra_range, sample, count):
    """The extra keys of a sample that are read: `[lo, hi)`."""
    lo = count * 0
    hi = count
    if extra_range is not None:
        at = extra_range + sample.to(tl.int64) * 2
        lo = clamp(tl.load(at), 0, count)
        hi = clamp(tl.load(at + 1), 0, count)
    return lo, hi


@triton.jit
def extra_tokens(place, at, count, heads, head):
    """The numbers of extra keys in a contiguous `[B, E, heads]`, in 64 bits."""
    return (place.sample.to(tl.int64) * count + at) * heads + head
