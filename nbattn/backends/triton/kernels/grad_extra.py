"""The gradients of extra keys and values: rows are extra keys, columns all queries of the sample,
in all query heads of the key head. The queries are shared by several programs, whose sums are added
afterwards, always in one order.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.numbers import RUN_TIME
from nbattn.backends.triton.kernels.place import (
    axes_of,
    counts_of,
    extra_keys,
    extra_tokens,
    flat_offsets,
    load,
    sample_place,
    start_of,
    store,
    strides_from,
    strides_of,
)
from nbattn.backends.triton.kernels.scores import dot, grad_scores, scores_of


@triton.jit(do_not_specialize=RUN_TIME)
def grad_extra(
    query,
    extra_key,
    extra_value,
    extra_range,
    grids,
    grad_out,
    terms,
    grad_keys,
    grad_values,
    axes,
    query_strides,
    grad_out_strides,
    counts,
    samples,
    scale: tl.float64,
    softcap: tl.float64,
    V: tl.constexpr,
):
    """One program for each share of the queries, tile of extra keys, key head and sample.

    `grad_keys` and `grad_values` are `[shares, samples, extra, heads, channels]`, in the type of
    sums.
    """
    D: tl.constexpr = V.head_dim
    DV: tl.constexpr = V.value_dim
    D_SIZE: tl.constexpr = V.head_size
    DV_SIZE: tl.constexpr = V.value_size
    ROWS: tl.constexpr = V.row_count
    COLUMNS: tl.constexpr = V.column_count
    SUM: tl.constexpr = tl.float64 if V.double else tl.float32
    share = tl.program_id(1)
    shares = tl.num_programs(1)
    program = tl.program_id(0)
    counts = counts_of(counts)
    tile = program % counts.tiles
    key_head = program // counts.tiles % counts.blocks
    place = sample_place(
        grids, axes_of(axes), tile, key_head, program // counts.tiles // counts.blocks
    )
    axes = place.axes
    heads = counts.heads // counts.group
    row = place.tile * ROWS + tl.arange(0, ROWS)
    lo, hi = extra_keys(extra_range, place.sample, counts.extra)
    inside = row < counts.extra
    valid = (row >= lo) & (row < hi)
    token = extra_tokens(place, row, counts.extra, heads, place.head)
    k = load(extra_key, token * D, valid, 1, True, D, D_SIZE)
    v = load(extra_value, token * DV, valid, 1, True, DV, DV_SIZE)

    query_strides = strides_of(strides_from(query_strides), axes[1].queries, axes[2].queries, V)
    grad_out_strides = strides_of(
        strides_from(grad_out_strides), axes[1].queries, axes[2].queries, V
    )
    key_sums = tl.zeros([ROWS, D_SIZE], SUM)
    value_sums = tl.zeros([ROWS, DV_SIZE], SUM)
    queries = axes[0].queries * axes[1].queries * axes[2].queries
    own = tl.cdiv(tl.cdiv(queries, COLUMNS), shares)
    for visit in range(own * counts.group):
        head = place.head * counts.group + visit // own
        number = (share * own + visit % own) * COLUMNS + tl.arange(0, COLUMNS)
        there = number < queries
        first = start_of(query_strides, place, head, place.first_query, V)
        at = flat_offsets(query_strides, number, axes, V)
        q = load(query + first, at, there, query_strides.channel, V.neighbours, D, D_SIZE)
        scores, bend = scores_of(dot(k, tl.trans(q), V), scale, softcap, V)
        sample = place.sample.to(tl.int64) * queries
        if V.packed:
            sample = place.first_query
        column = (sample + number) * counts.heads + head
        lse = tl.load(terms + 2 * column, mask=there, other=0.0)
        weights = tl.exp2(scores - lse[None, :])
        read = there[None, :] & valid[:, None]
        weights = tl.where(read, weights, 0.0)
        first = start_of(grad_out_strides, place, head, place.first_query, V)
        at = flat_offsets(grad_out_strides, number, axes, V)
        do = load(grad_out + first, at, there, grad_out_strides.channel, V.neighbours, DV, DV_SIZE)
        value_sums += dot(weights.to(do.dtype), do, V)
        delta = tl.load(terms + 2 * column + 1, mask=there, other=0.0)
        grads = grad_scores(weights, dot(v, tl.trans(do), V) - delta[None, :], bend, V)
        grads = tl.where(read, grads, 0.0)
        key_sums += dot(grads.to(q.dtype), q, V)
    token += share.to(tl.int64) * samples * counts.extra * heads
    store(grad_keys, token * D, inside, key_sums * tl.full([], scale, SUM), D, D_SIZE)
    store(grad_values, token * DV, inside, value_sums, DV, DV_SIZE)
