"""Prepares the backward: of every query the logsumexp in units of log 2, and
delta = sum(out * grad_out) - grad_lse; both 0 for queries without keys.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.place import load
from nbattn.backends.triton.kernels.scores import LOG2E


@triton.jit
def delta(
    out,
    grad_out,
    lse,
    grad_lse,
    terms,
    space,
    strides,
    heads,
    count,
    V: tl.constexpr,
):
    """One program for `V.row_count` rows of `[B, *space, H]`, whose terms are `[rows, 2]`.

    Args:
        space: lengths of the last two axes, and of all three of a sample.
        count: rows.
    """
    SUM: tl.constexpr = tl.float64 if V.double else tl.float32
    ROWS: tl.constexpr = V.row_count
    DV: tl.constexpr = V.value_dim
    DV_SIZE: tl.constexpr = V.value_size
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < count
    head = row % heads
    token = row // heads
    last = token % space[2]
    middle = token // space[2] % space[1]
    first = token // space[2] // space[1] % space[0]
    sample = token // space[2] // space[1] // space[0]
    at = sample * strides.batch + first * strides.axis0 + middle * strides.axis1
    at = at + last * strides.axis2 + head * strides.head
    grad = load(grad_out, at, inside, strides.channel, DV, DV_SIZE).to(SUM)
    given = load(out, row * DV, inside, None, DV, DV_SIZE).to(SUM)
    total = tl.sum(given * grad, 1)
    if grad_lse is not None:
        total -= tl.load(grad_lse + row, mask=inside, other=0.0)
    own = tl.load(lse + row, mask=inside, other=0.0)
    is_empty = own == -float("inf")  # no gradient of such a row may reach another one
    tl.store(terms + 2 * row, tl.where(is_empty, 0.0, own * LOG2E), mask=inside)
    tl.store(terms + 2 * row + 1, tl.where(is_empty, 0.0, total), mask=inside)
