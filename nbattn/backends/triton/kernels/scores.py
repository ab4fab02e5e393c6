"""Scores in units of log 2, what is added to them by position, and the online softmax."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def dot(a, b, V: tl.constexpr):
    """The product of two matrices."""
    if V.double:
        return tl.dot(a, b, out_dtype=tl.float64)
    else:
        return tl.dot(a, b, input_precision=V.precision)


@triton.jit
def tanh(x, SUM: tl.constexpr):
    """The hyperbolic tangent. Near 0, where a large cap puts all scores, a series keeps digits."""
    square = x * x
    near = x * (1 + square * (-1.0 / 3 + square * (2.0 / 15 - square * (17.0 / 315))))
    far = 1 - 2 / (1 + tl.exp2(x * (2 * LOG2E)))
    LIMIT: tl.constexpr = 0.0004 if tl.float64 == SUM else 0.0625
    return tl.where(square < LIMIT, near, far)


@triton.jit
def scores_of(products, scale, softcap, V: tl.constexpr):
    """Scores of the products of queries and keys, and the derivative of the softcap."""
    SUM: tl.constexpr = products.dtype
    factor = tl.full([], scale, SUM)
    if V.softcap:
        cap = tl.full([], softcap, SUM)
        bent = tanh(products * (factor / cap), SUM)
        return bent * (cap * LOG2E), 1 - bent * bent
    else:
        return products * (factor * LOG2E), 1.0


@triton.jit
def table_steps(axes, RANK: tl.constexpr):
    """Steps of a table of relative positions on the three axes, and the entries of a head."""
    size2 = 2 * (axes[2].left + axes[2].right) + 1
    size1 = 2 * (axes[1].left + axes[1].right) + 1
    size0 = 2 * (axes[0].left + axes[0].right) + 1
    step1 = size2
    step0 = size2
    entries = size2
    if RANK >= 2:
        entries = entries * size1
        step0 = entries
    if RANK == 3:
        entries = entries * size0
    return step0, step1, entries


@triton.jit
def entries_of(axes, rows, columns, KEYS: tl.constexpr, RANK: tl.constexpr):
    """The entry of each pair in a head's table: the step from query to key on every axis, counted
    from that to the first key of the farthest window.
    """
    step0, step1, _ = table_steps(axes, RANK)
    row = rows[2].at
    column = columns[2].at
    first = axes[2].left + axes[2].right
    if RANK >= 2:
        row += rows[1].at * step1
        column += columns[1].at * step1
        first += (axes[1].left + axes[1].right) * step1
    if RANK == 3:
        row += rows[0].at * step0
        column += columns[0].at * step0
        first += (axes[0].left + axes[0].right) * step0
    if KEYS:
        return (first + row)[:, None] - column[None, :]
    else:
        return (first - row)[:, None] + column[None, :]


@triton.jit
def added(
    scores,
    relative_bias,
    alibi_slopes,
    place,
    head,
    counts,
    rows,
    columns,
    read,
    KEYS: tl.constexpr,
    V: tl.constexpr,
):
    """Scores with the entries of a head's table, or with ALiBi's distances, if there are any."""
    SUM: tl.constexpr = scores.dtype
    axes = place.axes
    if relative_bias is not None:
        table = relative_bias + head.to(tl.int64) * table_steps(axes, V.rank)[2]
        at = entries_of(axes, rows, columns, KEYS, V.rank)
        scores += tl.load(table + at, mask=read, other=0.0) * LOG2E
    if alibi_slopes is not None:
        slope = tl.load(alibi_slopes + place.sample.to(tl.int64) * counts.slope_step + head)
        distance = tl.abs(rows[2].at[:, None] - columns[2].at[None, :]) * axes[2].dilation
        scores -= distance.to(SUM) * (slope * LOG2E)
    return scores


@triton.jit
def online_softmax(scores, top, total):
    """Weights relative to the running maximum of the rows, the maximum and the sum with these
    columns, and the factor of earlier sums.
    """
    largest = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(largest == -float("inf"), 0.0, largest)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    return weights, largest, total * shrink + tl.sum(weights, 1), shrink


@triton.jit
def grad_scores(weights, grads, bend, V: tl.constexpr):
    """The gradients of products from weights and the gradients of scores before the softmax; these
    may be infinite or NaN in pairs that are not read, so callers leave such pairs out afterwards.
    """
    grads = weights * grads
    if V.softcap:
        grads = grads * bend
    return grads
