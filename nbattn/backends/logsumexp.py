"""Merges parts of one softmax by their logsumexp (calls with other keys, extra keys, sinks), and
makes scales positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nbattn.backends.inputs import Inputs, accumulate_dtype

TINY = torch.finfo(torch.float32).tiny


def positive(inputs: Inputs) -> tuple[Inputs, float]:
    """Returns inputs with a scale above 0, since kernels multiply masked scores of -inf by it, and
    the factor that queries were multiplied by: its sign, or all of a scale that is 0 in float32.
    """
    if inputs.scale >= TINY:
        return inputs, 1.0
    sign, scale = (-1.0, -inputs.scale) if inputs.scale <= -TINY else (inputs.scale, 1.0)
    return inputs._replace(query=inputs.query * sign, scale=scale), sign


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merges a part with other keys into out `[..., D]` and lse `[...]`, in place."""
    joint = torch.logaddexp(lse, part_lse)
    weight, part_weight = (share(side, joint) for side in (lse, part_lse))
    out.copy_(weight * out.to(lse.dtype) + part_weight * part.to(lse.dtype))
    lse.copy_(joint)


def merge_sink(sink: Tensor | None, out: Tensor, lse: Tensor) -> None:
    """Merges a sink into out and lse, in place: every weight shrinks by the same factor."""
    if sink is None:
        return
    joint = torch.logaddexp(lse, sink.to(lse.dtype).expand_as(lse))
    out.mul_(share(lse, joint).to(out.dtype))
    lse.copy_(joint)


def share(lse: Tensor, joint: Tensor) -> Tensor:
    """Returns exp(lse - joint), the sum of a row's weights in one part; 0 for rows without keys."""
    return (lse - joint).exp().masked_fill(joint == float("-inf"), 0)[..., None]


def sink_gradient(
    sink: Tensor | None, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None = None
) -> Tensor | None:
    """Returns the sink's weight times grad_lse - sum(grad_out * out), summed over rows. Whatever
    comes back for a logsumexp of -inf counts as 0.
    """
    if sink is None:
        return None
    exact = accumulate_dtype(out.dtype)
    delta = (grad_out.to(exact) * out.to(exact)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse.masked_fill(lse == float("-inf"), 0)
    weight = share(sink.to(exact).expand_as(lse), lse).squeeze(-1)
    return -(weight * delta).flatten(0, -2).sum(0).to(sink.dtype)
