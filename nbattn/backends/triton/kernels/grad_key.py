"""The gradients of a tile of keys and values: rows are keys, columns the queries that attend to
them, in all query heads of the key head.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.numbers import RUN_TIME
from nbattn.backends.triton.kernels.place import (
    axes_of,
    counts_of,
    key_tokens,
    load,
    offsets_of,
    place_of,
    query_tokens,
    start_of,
    store,
    strides_from,
    strides_of,
)
from nbattn.backends.triton.kernels.scores import (
    added,
    dot,
    grad_scores,
    scores_of,
)
from nbattn.backends.triton.kernels.tile import (
    all_inside,
    columns_of,
    is_full,
    key_parts,
    pairs_of,
    rows_of,
    visits,
)


@triton.jit(do_not_specialize=RUN_TIME)
def grad_key(
    query,
    key,
    value,
    key_range,
    relative_bias,
    alibi_slopes,
    grids,
    grad_out,
    terms,
    grad_keys,
    grad_values,
    axes,
    query_strides,
    key_strides,
    value_strides,
    grad_out_strides,
    counts,
    scale: tl.float64,
    softcap: tl.float64,
    V: tl.constexpr,
):
    """One program for each tile of keys, key head and sample."""
    D: tl.constexpr = V.head_dim
    DV: tl.constexpr = V.value_dim
    D_SIZE: tl.constexpr = V.head_size
    DV_SIZE: tl.constexpr = V.value_size
    ROWS: tl.constexpr = V.row_count
    SUM: tl.constexpr = tl.float64 if V.double else tl.float32
    counts = counts_of(counts)
    place = place_of(grids, axes_of(axes), counts, 2)
    axes = place.axes
    parts = key_parts(place, key_range, V)
    rows = rows_of(parts, axes, True, V)
    valid = rows[0].valid & rows[1].valid & rows[2].valid

    query_strides = strides_of(strides_from(query_strides), axes[1].queries, axes[2].queries, V)
    grad_out_strides = strides_of(
        strides_from(grad_out_strides), axes[1].queries, axes[2].queries, V
    )
    key_strides = strides_of(strides_from(key_strides), axes[1].held_keys, axes[2].held_keys, V)
    value_strides = strides_of(strides_from(value_strides), axes[1].held_keys, axes[2].held_keys, V)
    key += start_of(key_strides, place, place.head, place.first_key, V)
    value += start_of(value_strides, place, place.head, place.first_key, V)
    row_at = offsets_of(key_strides, rows, V)
    k = load(key, row_at, valid, key_strides.channel, V.neighbours, D, D_SIZE)  # others may be NaN
    row_at = offsets_of(value_strides, rows, V)
    v = load(value, row_at, valid, value_strides.channel, V.neighbours, DV, DV_SIZE)

    key_sums = tl.zeros([ROWS, D_SIZE], SUM)
    value_sums = tl.zeros([ROWS, DV_SIZE], SUM)
    own = visits(parts)
    for visit in range(own * counts.group):
        columns = columns_of(parts, visit % own, V)
        there = all_inside(columns)
        head = place.head * counts.group + visit // own
        first = start_of(query_strides, place, head, place.first_query, V)
        at = offsets_of(query_strides, columns, V)
        q = load(query + first, at, there, query_strides.channel, V.neighbours, D, D_SIZE)
        scores, bend = scores_of(dot(k, tl.trans(q), V), scale, softcap, V)
        read = pairs_of(rows, columns, V)
        scores = added(
            scores, relative_bias, alibi_slopes, place, head, counts, rows, columns, read, True, V
        )
        token = query_tokens(place, columns, counts.heads, V) + head
        lse = tl.load(terms + 2 * token, mask=there, other=0.0)
        weights = tl.exp2(scores - lse[None, :])
        first = start_of(grad_out_strides, place, head, place.first_query, V)
        at = offsets_of(grad_out_strides, columns, V)
        do = load(grad_out + first, at, there, grad_out_strides.channel, V.neighbours, DV, DV_SIZE)
        delta = tl.load(terms + 2 * token + 1, mask=there, other=0.0)
        grads = grad_scores(weights, dot(v, tl.trans(do), V) - delta[None, :], bend, V)
        if not is_full(columns):
            weights = tl.where(read, weights, 0.0)
            grads = tl.where(read, grads, 0.0)
        value_sums += dot(weights.to(do.dtype), do, V)
        key_sums += dot(grads.to(q.dtype), q, V)

    inside = all_inside(rows)
    token = key_tokens(place, rows, counts.heads // counts.group, V) + place.head
    store(grad_keys, token * D, inside, key_sums * tl.full([], scale, SUM), D, D_SIZE)
    store(grad_values, token * DV, inside, value_sums, DV, DV_SIZE)
