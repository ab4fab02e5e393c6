"""Prepares the backward: of every query the logsumexp in units of log 2, and
delta = sum(out * grad_out) - grad_lse; both 0 for queries without keys.
"""

import triton
import triton.language as tl

from nbattn.backends.triton.kernels.numbers import RUN_TIME
from nbattn.backends.triton.kernels.place import counts_of, load, plain, strides_from
from nbattn.backends.triton.kernels.scores import LOG2E


@triton.jit(do_not_specialize=RUN_TIME)
def delta(
    out,
    grad_out,
    lse,
    grad_lse,
    terms,
    space,
    grad_out_strides,
    counts,
    samples,
    V: tl.constexpr,
):
    """One program for `V.row_count` rows of `[B, *space, H]`, whose terms are `[rows, 2]`.

    Args:
        space: lengths of the three axes.
        samples: the batch.
    """
    SUM: tl.constexpr = tl.float64 if V.double else tl.float32
    ROWS: tl.constexpr = V.row_count
    DV: tl.constexpr = V.value_dim
    DV_SIZE: tl.constexpr = V.value_size
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    counts = counts_of(counts)
    grad_out_strides = strides_from(grad_out_strides)
    space = (plain(space[0]), plain(space[1]), plain(space[2]))
    count = samples.to(tl.int64) * space[0] * space[1] * space[2] * counts.heads
    inside = row < count
    head = row % counts.heads
    token = row // counts.heads
    last = token % space[2]
    middle = token // space[2] % space[1]
    first = token // space[2] // space[1] % space[0]
    sample = token // space[2] // space[1] // space[0]
    at = (
        sample * grad_out_strides.batch
        + first * grad_out_strides.axis0
        + middle * grad_out_strides.axis1
    )
    at = at + last * grad_out_strides.axis2 + head * grad_out_strides.head
    grad = load(grad_out, at, inside, grad_out_strides.channel, False, DV, DV_SIZE).to(SUM)
    given = load(out, row * DV, inside, 1, True, DV, DV_SIZE).to(SUM)
    total = tl.sum(given * grad, 1)
    if grad_lse is not None:
        total -= tl.load(grad_lse + row, mask=inside, other=0.0)
    own = tl.load(lse + row, mask=inside, other=0.0)
    is_empty = own == -float("inf")  # no gradient of such a row may reach another one
    tl.store(terms + 2 * row, tl.where(is_empty, 0.0, own * LOG2E), mask=inside)
    tl.store(terms + 2 * row + 1, tl.where(is_empty, 0.0, total), mask=inside)
