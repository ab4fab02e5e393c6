"""The gradients of a tile of queries: the forward's traversal, with the weights computed again from
the final logsumexp.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.numbers import RUN_TIME
from nbattn.backends.triton.kernels.place import (
    axes_of,
    counts_of,
    extra_keys,
    extra_tokens,
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
    pairs_of,
    query_parts,
    rows_of,
    visits,
)


@triton.jit(do_not_specialize=RUN_TIME)
def grad_query(
    query,
    key,
    value,
    extra_key,
    extra_value,
    extra_range,
    key_range,
    relative_bias,
    alibi_slopes,
    grids,
    grad_out,
    terms,
    grad,
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
    """One program for each tile of queries, head and sample."""
    D: tl.constexpr = V.head_dim
    DV: tl.constexpr = V.value_dim
    D_SIZE: tl.constexpr = V.head_size
    DV_SIZE: tl.constexpr = V.value_size
    ROWS: tl.constexpr = V.row_count
    COLUMNS: tl.constexpr = V.column_count
    SUM: tl.constexpr = tl.float64 if V.double else tl.float32
    counts = counts_of(counts)
    place = place_of(grids, axes_of(axes), counts, 1)
    axes = place.axes
    parts = query_parts(place, key_range, V)
    rows = rows_of(parts, axes, False, V)
    inside = all_inside(rows)

    query_strides = strides_of(strides_from(query_strides), axes[1].queries, axes[2].queries, V)
    grad_out_strides = strides_of(
        strides_from(grad_out_strides), axes[1].queries, axes[2].queries, V
    )
    key_strides = strides_of(strides_from(key_strides), axes[1].held_keys, axes[2].held_keys, V)
    value_strides = strides_of(strides_from(value_strides), axes[1].held_keys, axes[2].held_keys, V)
    key_head = place.head // counts.group
    kv_heads = counts.heads // counts.group
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

    sums = tl.zeros([ROWS, D_SIZE], SUM)
    for visit in range(visits(parts)):
        columns = columns_of(parts, visit, V)
        there = all_inside(columns)
        at = offsets_of(key_strides, columns, V)
        k = load(key, at, there, key_strides.channel, V.neighbours, D, D_SIZE)
        scores, bend = scores_of(dot(q, tl.trans(k), V), scale, softcap, V)
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
        weights = tl.exp2(scores - lse[:, None])
        at = offsets_of(value_strides, columns, V)
        v = load(value, at, there, value_strides.channel, V.neighbours, DV, DV_SIZE)
        grads = grad_scores(weights, dot(do, tl.trans(v), V) - delta[:, None], bend, V)
        if not is_full(columns):
            grads = tl.where(read, grads, 0.0)
        sums += dot(grads.to(k.dtype), k, V)
    if extra_key is not None:
        lo, hi = extra_keys(extra_range, place.sample, counts.extra)
        for start in range(lo, hi, COLUMNS):
            number = start + tl.arange(0, COLUMNS)
            there = number < hi
            extra = extra_tokens(place, number, counts.extra, kv_heads, key_head)
            k = load(extra_key, extra * D, there, 1, True, D, D_SIZE)
            scores, bend = scores_of(dot(q, tl.trans(k), V), scale, softcap, V)
            weights = tl.exp2(scores - lse[:, None])
            v = load(extra_value, extra * DV, there, 1, True, DV, DV_SIZE)
            grads = grad_scores(weights, dot(do, tl.trans(v), V) - delta[:, None], bend, V)
            grads = tl.where(there[None, :], grads, 0.0)
            sums += dot(grads.to(k.dtype), k, V)
    store(grad, token * D, inside, sums * tl.full([], scale, SUM), D, D_SIZE)
