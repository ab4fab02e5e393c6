"""The forward: output and logsumexp of a tile of queries."""

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
    LN2,
    LOG2E,
    added,
    dot,
    online_softmax,
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
def forward(
    query,
    key,
    value,
    extra_key,
    extra_value,
    extra_range,
    key_range,
    sink,
    relative_bias,
    alibi_slopes,
    grids,
    out,
    lse,
    axes,
    query_strides,
    key_strides,
    value_strides,
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
    SUM: tl.constexpr = tl.float64 if V.double else tl.float32
    counts = counts_of(counts)
    place = place_of(grids, axes_of(axes), counts, 0)
    axes = place.axes
    parts = query_parts(place, key_range, V)
    rows = rows_of(parts, axes, False, V)
    inside = all_inside(rows)
    query_strides = strides_of(strides_from(query_strides), axes[1].queries, axes[2].queries, V)
    key_strides = strides_of(strides_from(key_strides), axes[1].held_keys, axes[2].held_keys, V)
    value_strides = strides_of(strides_from(value_strides), axes[1].held_keys, axes[2].held_keys, V)
    key_head = place.head // counts.group
    query += start_of(query_strides, place, place.head, place.first_query, V)
    key += start_of(key_strides, place, key_head, place.first_key, V)
    value += start_of(value_strides, place, key_head, place.first_key, V)
    row_at = offsets_of(query_strides, rows, V)
    q = load(query, row_at, inside, query_strides.channel, V.neighbours, D, D_SIZE)

    top = tl.full([ROWS], -float("inf"), SUM)
    total = tl.zeros([ROWS], SUM)
    if sink is not None:
        logit = tl.load(sink + place.head)
        top = tl.maximum(top, logit * LOG2E)
        total += tl.where(logit == -float("inf"), 0.0, 1.0)
    sums = tl.zeros([ROWS, DV_SIZE], SUM)
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
        masked = scores
        if not is_full(columns):
            masked = tl.where(read, scores, -float("inf"))
        # Always `masked`. Only without a branch between both products does Triton give each warp of
        # NVIDIA's whole rows; else the maxima and sums of rows go through shared memory.
        scores = tl.where(visit < 0, scores, masked)
        weights, top, total, shrink = online_softmax(scores, top, total)
        at = offsets_of(value_strides, columns, V)
        v = load(value, at, there, value_strides.channel, V.neighbours, DV, DV_SIZE)
        sums = sums * shrink[:, None] + dot(weights.to(v.dtype), v, V)
    if extra_key is not None:
        lo, hi = extra_keys(extra_range, place.sample, counts.extra)
        for start in range(lo, hi, V.column_count):
            number = start + tl.arange(0, V.column_count)
            there = number < hi
            heads = counts.heads // counts.group
            extra = extra_tokens(place, number, counts.extra, heads, key_head)
            k = load(extra_key, extra * D, there, 1, True, D, D_SIZE)
            scores, _ = scores_of(dot(q, tl.trans(k), V), scale, softcap, V)
            scores = tl.where(there[None, :], scores, -float("inf"))
            weights, top, total, shrink = online_softmax(scores, top, total)
            v = load(extra_value, extra * DV, there, 1, True, DV, DV_SIZE)
            sums = sums * shrink[:, None] + dot(weights.to(v.dtype), v, V)

    is_empty = total == 0
    token = query_tokens(place, rows, counts.heads, V) + place.head
    store(out, token * DV, inside, sums * tl.where(is_empty, 0.0, 1 / total)[:, None], DV, DV_SIZE)
    if lse is not None:
        whole = tl.where(is_empty, -float("inf"), (top + tl.log2(total)) * LN2)
        tl.store(lse + token, whole, mask=inside)
