"""The gradient of the table of relative positions. The programs of a head share its tiles in a
fixed order, and each adds to a table of its own; these are added afterwards, so that nothing is
atomic.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.numbers import RUN_TIME
from nbattn.backends.triton.kernels.place import (
    axes_of,
    counts_of,
    load,
    offsets_of,
    query_tokens,
    start_of,
    strides_from,
    strides_of,
    tile_place,
)
from nbattn.backends.triton.kernels.scores import (
    added,
    dot,
    scores_of,
    table_steps,
)
from nbattn.backends.triton.kernels.tile import (
    all_inside,
    columns_of,
    pairs_of,
    query_parts,
    rows_of,
    visits,
)


@triton.jit
def skewed(pairs, V: tl.constexpr):
    """The sums of a visit's pairs `[rows, columns]` that have the same steps on all axes.

    On each axis of R rows and C columns there are R + C - 1 steps, from that of the last row to the
    first column on. The result `[S0 * S1 * S2]` has the next power of two of them, the others 0.
    """
    R1: tl.constexpr = V.rows[1]
    R2: tl.constexpr = V.rows[2]
    C0: tl.constexpr = V.columns[0]
    C1: tl.constexpr = V.columns[1]
    C2: tl.constexpr = V.columns[2]
    S0: tl.constexpr = V.steps[0]
    S1: tl.constexpr = V.steps[1]
    S2: tl.constexpr = V.steps[2]
    row = tl.arange(0, V.row_count)[:, None]
    step = tl.arange(0, S0 * S1 * S2)[None, :]
    c0 = step // (S1 * S2) - (V.rows[0] - 1) + row // (R1 * R2)
    c1 = step // S2 % S1 - (R1 - 1) + row // R2 % R1
    c2 = step % S2 - (R2 - 1) + row % R2
    there = (c0 >= 0) & (c0 < C0) & (c1 >= 0) & (c1 < C1) & (c2 >= 0) & (c2 < C2)
    column = tl.where(there, (c0 * C1 + c1) * C2 + c2, 0)
    return tl.sum(tl.where(there, tl.gather(pairs, column, 1), 0.0), 0)


@triton.jit
def add_steps(to, sums, parts, columns, axes, V: tl.constexpr):
    """Adds the sums of a visit to the table of this program, each to the entry of its step."""
    step0, step1, _ = table_steps(axes, V.rank)
    S1: tl.constexpr = V.steps[1]
    S2: tl.constexpr = V.steps[2]
    step = tl.arange(0, V.steps[0] * S1 * S2)
    entry, inside = entry_on(step % S2, parts, columns, axes, 2, V)
    if V.rank >= 2:
        at, here = entry_on(step // S2 % S1, parts, columns, axes, 1, V)
        entry += at * step1
        inside = inside & here
    if V.rank == 3:
        at, here = entry_on(step // (S1 * S2), parts, columns, axes, 0, V)
        entry += at * step0
        inside = inside & here
    else:
        inside = inside & (step // (S1 * S2) == 0)
    if V.rank == 1:
        inside = inside & (step // S2 == 0)
    tl.debug_barrier()  # other threads have added what they had
    earlier = tl.load(to + entry, mask=inside, other=0.0)
    tl.store(to + entry, earlier + sums, mask=inside)


@triton.jit
def entry_on(step, parts, columns, axes, NUMBER: tl.constexpr, V: tl.constexpr):
    """The entries of a visit's steps on one axis, and which of them the table has."""
    first = tl.min(columns[NUMBER].at, 0) - parts[NUMBER].first - (V.rows[NUMBER] - 1)
    reach = axes[NUMBER].left + axes[NUMBER].right
    entry = first + step + reach
    return entry, (entry >= 0) & (entry <= 2 * reach)


@triton.jit
def add_tile(
    query,
    key,
    value,
    key_range,
    relative_bias,
    alibi_slopes,
    grad_out,
    terms,
    to,
    place,
    query_strides,
    key_strides,
    value_strides,
    grad_out_strides,
    counts,
    scale,
    softcap,
    V: tl.constexpr,
):
    """Adds the gradients of a tile of queries to the table of this program."""
    D: tl.constexpr = V.head_dim
    DV: tl.constexpr = V.value_dim
    D_SIZE: tl.constexpr = V.head_size
    DV_SIZE: tl.constexpr = V.value_size
    axes = place.axes
    parts = query_parts(place, key_range, V)
    rows = rows_of(parts, axes, False, V)
    inside = all_inside(rows)
    key_head = place.head // counts.group
    query += start_of(query_strides, place, place.head, place.first_query, V)
    grad_out += start_of(grad_out_strides, place, place.head, place.first_query, V)
    key += start_of(key_strides, place, key_head, place.first_key, V)
    value += start_of(value_strides, place, key_head, place.first_key, V)
    row_at = offsets_of(query_strides, rows, V)
    q = load(query, row_at, inside, query_strides.channel, V.neighbours, D, D_SIZE)
    row_at = offsets_of(grad_out_strides, rows, V)
    do = load(grad_out, row_at, inside, grad_out_strides.channel, V.neighbours, DV, DV_SIZE)
    token = query_tokens(place, rows, counts.heads, V) + place.head
    lse = tl.load(terms + 2 * token, mask=inside, other=0.0)
    delta = tl.load(terms + 2 * token + 1, mask=inside, other=0.0)
    for visit in range(visits(parts)):
        columns = columns_of(parts, visit, V)
        there = all_inside(columns)
        at = offsets_of(key_strides, columns, V)
        k = load(key, at, there, key_strides.channel, V.neighbours, D, D_SIZE)
        scores, _ = scores_of(dot(q, tl.trans(k), V), scale, softcap, V)
        read = pairs_of(rows, columns, V)
        scores = added(
            scores,
            relative_bias,
            alibi_slopes,
            place,
            place.head,
            counts,
            rows,
            columns,
            read,
            False,
            V,
        )
        weights = tl.where(read, tl.exp2(scores - lse[:, None]), 0.0)
        at = offsets_of(value_strides, columns, V)
        v = load(value, at, there, value_strides.channel, V.neighbours, DV, DV_SIZE)
        grads = dot(do, tl.trans(v), V) - delta[:, None]
        sums = skewed(tl.where(read, weights * grads, 0.0), V)
        add_steps(to, sums, parts, columns, axes, V)


@triton.jit(do_not_specialize=RUN_TIME)
def grad_table(
    query,
    key,
    value,
    key_range,
    relative_bias,
    alibi_slopes,
    grids,
    grad_out,
    terms,
    grad_tables,
    axes,
    query_strides,
    key_strides,
    value_strides,
    grad_out_strides,
    counts,
    samples,
    scale: tl.float64,
    softcap: tl.float64,
    V: tl.constexpr,
):
    """One program for each share of the tiles, and head. `grad_tables` is `[shares, H, entries]`,
    of zeros.
    """
    share = tl.program_id(0)
    head = tl.program_id(1)
    shares = tl.num_programs(0)
    axes = axes_of(axes)
    counts = counts_of(counts)
    entries = table_steps(axes, V.rank)[2]
    to = grad_tables + (share.to(tl.int64) * counts.heads + head) * entries
    for number in range(share, counts.tiles * samples, shares):
        tile = number % counts.tiles
        place = tile_place(grids, axes, counts, tile, head, number // counts.tiles, 3)
        add_tile(
            query,
            key,
            value,
            key_range,
            relative_bias,
            alibi_slopes,
            grad_out,
            terms,
            to,
            place,
            strides_of(
                strides_from(query_strides), place.axes[1].queries, place.axes[2].queries, V
            ),
            strides_of(
                strides_from(key_strides), place.axes[1].held_keys, place.axes[2].held_keys, V
            ),
            strides_of(
                strides_from(value_strides), place.axes[1].held_keys, place.axes[2].held_keys, V
            ),
            strides_of(
                strides_from(grad_out_strides), place.axes[1].queries, place.axes[2].queries, V
            ),
            counts,
            scale,
            softcap,
            V,
        )
