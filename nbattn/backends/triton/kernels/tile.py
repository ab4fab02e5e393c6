"""A tile of rows on three axes, and the tiles of columns that it visits. Rows are queries and
columns keys; in dK/dV rows are keys and columns the queries that attend to them.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.numbers import Columns, Part, Rows
from nbattn.backends.triton.kernels.window import (
    FAR,
    WRAP,
    clamp,
    floor_div,
    members,
    readers_of,
    window_of,
)


@triton.jit
def row_tiles(length, dilation, EXTENT: tl.constexpr):
    """Tiles of rows of one axis: each residue class has as many as the longest needs."""
    return tl.minimum(dilation, length) * tl.cdiv(tl.cdiv(length, dilation), EXTENT)


@triton.jit
def tile_numbers(axes, tile, KEYS: tl.constexpr, V: tl.constexpr):
    """The numbers of a tile on the three axes; what is beyond the last one is beyond axis 0."""
    length1 = axes[1].queries
    length2 = axes[2].queries
    if KEYS:
        length1 = axes[1].held_keys
        length2 = axes[2].held_keys
    tiles1 = row_tiles(length1, axes[1].dilation, V.rows[1])
    tiles2 = row_tiles(length2, axes[2].dilation, V.rows[2])
    return tile // tiles2 // tiles1, tile // tiles2 % tiles1, tile % tiles2


@triton.jit
def in_range(axis, lo, hi, residue, key_range, sample, NUMBER: tl.constexpr, RANK: tl.constexpr):
    """The keys `[lo, hi)` of a class, only those in the sample's key_range if there is one."""
    if key_range is not None:
        if NUMBER >= 3 - RANK:
            at = key_range + (sample.to(tl.int64) * RANK + NUMBER - (3 - RANK)) * 2
            since = clamp(tl.load(at), 0, axis.held_keys)
            until = clamp(tl.load(at + 1), 0, axis.held_keys)
            lo, hi = members(axis.first_key + since, until - since, residue, axis.dilation)
    return lo, hi


@triton.jit
def query_part(axis, tile, key_range, sample, NUMBER: tl.constexpr, V: tl.constexpr):
    """One axis of a tile of queries, by the number of the tile on it."""
    ROWS: tl.constexpr = V.rows[NUMBER]
    COLUMNS: tl.constexpr = V.columns[NUMBER]
    RANK: tl.constexpr = V.rank
    per_class = tl.cdiv(tl.cdiv(axis.queries, axis.dilation), ROWS)
    position = axis.offset + tile // per_class
    residue = position - floor_div(position, axis.dilation) * axis.dilation
    keys = members(0, axis.keys, residue, axis.dilation)[1]
    key_lo, key_hi = members(axis.first_key, axis.held_keys, residue, axis.dilation)
    row_lo, row_hi = members(axis.offset, axis.queries, residue, axis.dilation)
    key_lo, key_hi = in_range(axis, key_lo, key_hi, residue, key_range, sample, NUMBER, RANK)
    first = row_lo + tile % per_class * ROWS
    rows = clamp(row_hi - first, 0, ROWS)
    lo, full_hi, full_head = window_of(axis, first, keys)
    full_lo, hi, head = window_of(axis, first + rows - 1, keys)
    if axis.border == WRAP:  # columns that are not there are left out one by one
        full_hi = tl.where((key_lo <= 0) & (key_hi >= keys), full_hi, full_lo)
    else:
        lo = tl.maximum(tl.maximum(lo, head), key_lo)
        hi = tl.minimum(hi, key_hi)
    head_lo = clamp(key_lo, 0, head)
    head_hi = clamp(key_hi, head_lo, head)
    tiles = tl.cdiv(tl.maximum(hi - lo, 0), COLUMNS) + tl.cdiv(head_hi - head_lo, COLUMNS)
    return Part(
        first,
        rows,
        residue - axis.offset,
        residue - axis.first_key,
        axis.dilation,
        head_lo,
        head_hi,
        lo,
        hi,
        tl.where(full_head > 0, full_head, -FAR),  # circles have columns below 0
        full_lo,
        full_hi,
        key_lo,
        key_hi,
        first,
        first + rows,
        tl.where(axis.border == WRAP, keys, 0),
        keys,
        tl.where(rows > 0, tiles, 0),
    )


@triton.jit
def key_part(axis, tile, key_range, sample, NUMBER: tl.constexpr, V: tl.constexpr):
    """One axis of a tile of keys, by the number of the tile on it."""
    ROWS: tl.constexpr = V.rows[NUMBER]
    COLUMNS: tl.constexpr = V.columns[NUMBER]
    RANK: tl.constexpr = V.rank
    per_class = tl.cdiv(tl.cdiv(axis.held_keys, axis.dilation), ROWS)
    position = axis.first_key + tile // per_class
    residue = position - floor_div(position, axis.dilation) * axis.dilation
    keys = members(0, axis.keys, residue, axis.dilation)[1]
    row_lo, row_hi = members(axis.first_key, axis.held_keys, residue, axis.dilation)
    query_lo, query_hi = members(axis.offset, axis.queries, residue, axis.dilation)
    valid_lo, valid_hi = in_range(axis, row_lo, row_hi, residue, key_range, sample, NUMBER, RANK)
    first = row_lo + tile % per_class * ROWS
    rows = clamp(row_hi - first, 0, ROWS)
    last = first + rows - 1
    lo, full_hi = readers_of(axis, first, keys)
    full_lo, hi = readers_of(axis, last, keys)
    in_prefix = first < axis.prefix
    after = readers_of(axis, axis.prefix, keys)[1]
    hi = tl.where(in_prefix, FAR, hi)
    full_hi = tl.where(in_prefix & (last >= axis.prefix), after, full_hi)
    is_full = (first >= valid_lo) & (last < valid_hi)
    if axis.border == WRAP:
        is_full = is_full & (query_lo <= 0) & (query_hi >= keys)
    else:
        lo = tl.maximum(lo, query_lo)
        hi = tl.minimum(hi, query_hi)
    is_read = (first < valid_hi) & (last >= valid_lo) & (rows > 0)
    return Part(
        first,
        rows,
        residue - axis.first_key,
        residue - axis.offset,
        axis.dilation,
        0,
        0,
        lo,
        hi,
        -FAR,  # no columns; those before the first key are below 0
        full_lo,
        tl.where(is_full, full_hi, full_lo),
        query_lo,
        query_hi,
        valid_lo,
        valid_hi,
        tl.where(axis.border == WRAP, keys, 0),
        keys,
        tl.where(is_read, tl.cdiv(tl.maximum(hi - lo, 0), COLUMNS), 0),
    )


@triton.jit
def query_parts(place, key_range, V: tl.constexpr):
    """A tile of queries on the three axes."""
    axes = place.axes
    own0, own1, own2 = tile_numbers(axes, place.tile, False, V)
    part0 = query_part(axes[0], own0, key_range, place.sample, 0, V)
    part1 = query_part(axes[1], own1, key_range, place.sample, 1, V)
    part2 = query_part(axes[2], own2, key_range, place.sample, 2, V)
    return part0, part1, part2


@triton.jit
def key_parts(place, key_range, V: tl.constexpr):
    """A tile of keys on the three axes."""
    axes = place.axes
    own0, own1, own2 = tile_numbers(axes, place.tile, True, V)
    part0 = key_part(axes[0], own0, key_range, place.sample, 0, V)
    part1 = key_part(axes[1], own1, key_range, place.sample, 1, V)
    part2 = key_part(axes[2], own2, key_range, place.sample, 2, V)
    return part0, part1, part2


@triton.jit
def rows_on(part, axis, index, KEYS: tl.constexpr):
    """A tile's rows on one axis, counted by `index`; keys outside key_range have no columns."""
    at = part.first + index
    inside = index < part.rows
    valid = (at >= part.valid_lo) & (at < part.valid_hi)
    if KEYS:
        lo, hi = readers_of(axis, at, part.keys)
        head = 0 * at
    else:
        lo, hi, head = window_of(axis, at, part.keys)
    hi = tl.where(inside & valid, hi, lo)
    head = tl.where(inside & valid & (head > 0), head, -FAR)  # circles have columns below 0
    return Rows(at, lo, hi, head, part.row_origin + part.step * at, inside, inside & valid)


@triton.jit
def rows_of(parts, axes, KEYS: tl.constexpr, V: tl.constexpr):
    """The rows of a tile on the three axes."""
    COUNT: tl.constexpr = V.row_count
    R1: tl.constexpr = V.rows[1]
    R2: tl.constexpr = V.rows[2]
    row = tl.arange(0, COUNT)
    rows0 = rows_on(parts[0], axes[0], row // (R1 * R2), KEYS)
    rows1 = rows_on(parts[1], axes[1], row // R2 % R1, KEYS)
    rows2 = rows_on(parts[2], axes[2], row % R2, KEYS)
    return rows0, rows1, rows2


@triton.jit
def columns_on(part, number, index, NUMBER: tl.constexpr, V: tl.constexpr):
    """The columns of a visit on one axis, by the number of their tile; `index` counts them."""
    EXTENT: tl.constexpr = V.columns[NUMBER]
    if NUMBER < 3 - V.rank:  # one query and one key
        return Columns(index * 0, index * 0, index >= 0, number == 0)
    start = part.lo + number * EXTENT
    stop = part.hi
    if V.two_runs:
        heads = tl.cdiv(part.head_hi - part.head_lo, EXTENT)
        in_head = number < heads
        start = tl.where(in_head, part.head_lo + number * EXTENT, start - heads * EXTENT)
        stop = tl.where(in_head, part.head_hi, stop)
    full = (start >= part.full_lo) & (start + EXTENT <= part.full_hi)
    if V.two_runs:
        full = full | (start + EXTENT <= part.full_head)
    full = full & (start + EXTENT <= stop)
    at = start + index
    inside = at < stop
    place = at
    if V.circle:
        place += tl.where(at < 0, part.lap, 0) - tl.where(at >= part.keys, part.lap, 0)
        inside = inside & (place >= part.column_lo) & (place < part.column_hi)
    return Columns(at, part.column_origin + part.step * place, inside, full)


@triton.jit
def columns_of(parts, visit, V: tl.constexpr):
    """The columns of a visit on the three axes; visits vary fastest along the last one."""
    COUNT: tl.constexpr = V.column_count
    C1: tl.constexpr = V.columns[1]
    C2: tl.constexpr = V.columns[2]
    column = tl.arange(0, COUNT)
    number0 = visit * 0
    number1 = number0
    number2 = visit
    if V.rank >= 2:  # a division costs as much as several addresses
        number1 = visit // parts[2].tiles
        number2 -= number1 * parts[2].tiles
    if V.rank == 3:
        number0 = number1 // parts[1].tiles
        number1 -= number0 * parts[1].tiles
    columns0 = columns_on(parts[0], number0, column // (C1 * C2), 0, V)
    columns1 = columns_on(parts[1], number1, column // C2 % C1, 1, V)
    columns2 = columns_on(parts[2], number2, column % C2, 2, V)
    return columns0, columns1, columns2


@triton.jit
def attends(rows, columns, NUMBER: tl.constexpr, V: tl.constexpr):
    """Whether each row attends to each column on one axis."""
    at = columns[NUMBER].at[None, :]
    yes = (at >= rows[NUMBER].lo[:, None]) & (at < rows[NUMBER].hi[:, None])
    if V.two_runs:
        yes = yes | (at < rows[NUMBER].head[:, None])
    return yes


@triton.jit
def pairs_of(rows, columns, V: tl.constexpr):
    """Whether each row attends to each column of a visit, and is there."""
    inside = columns[0].inside & columns[1].inside & columns[2].inside
    read = inside[None, :] & (rows[0].inside & rows[1].inside & rows[2].inside)[:, None]
    if V.rows[0] * V.columns[0] > 1:
        read = read & attends(rows, columns, 0, V)
    if V.rows[1] * V.columns[1] > 1:
        read = read & attends(rows, columns, 1, V)
    if V.rows[2] * V.columns[2] > 1:
        read = read & attends(rows, columns, 2, V)
    return read


@triton.jit
def is_full(columns):
    """Whether every row attends to every column of a visit."""
    return columns[0].full & columns[1].full & columns[2].full


@triton.jit
def all_inside(sides):
    """Which rows or columns of the three axes are there."""
    return sides[0].inside & sides[1].inside & sides[2].inside


@triton.jit
def visits(parts):
    """Tiles of columns that a tile of rows visits."""
    return parts[0].tiles * parts[1].tiles * parts[2].tiles
