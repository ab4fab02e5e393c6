"""Runs Flash programs without a GPU: computes each call by dense attention with the mask that the
kernel would compute, in any dtype. For tests and inspection; "auto" never chooses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nbattn.backends.calls import Arrays, RowTensors
from nbattn.backends.flash import ranges, run
from nbattn.backends.flash.meaning import FlashArguments
from nbattn.backends.inputs import Gradients, Inputs, accumulate_dtype
from nbattn.program.program import Program


@dataclass(frozen=True)
class Model:
    """Computes a call by dense attention with the call's mask, `key_range` if it is ranged, and the
    slopes if it has them.
    """

    key_range: Tensor | None = None
    slopes: Tensor | None = None

    def forward(
        self,
        call: FlashArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes output and logsumexp, in the dtype of the scores."""
        query, *cache = arrays
        key, value = (t[:, : call.read(t.shape[1])] for t in cache)
        outside = self._outside(call, key)
        key, value = (_zeroed(t, outside) for t in (key, value))
        arrays = query, key, value
        scores, _ = self._scores(call, arrays, scale, softcap, outside)
        lse = torch.logsumexp(scores, dim=-1)
        weights = scores.softmax(dim=-1).masked_fill(lse[..., None] == float("-inf"), 0)
        out = (weights @ _each_head(value, query)).transpose(1, 2)
        return out if into is None else into.copy_(out), lse.transpose(1, 2)

    def backward(
        self,
        call: FlashArguments,
        arrays: Arrays,
        rows: RowTensors,
        scale: float,
        softcap: float | None,
    ) -> Arrays:
        """Computes the gradients of q, k, v from the rows' final output and logsumexp."""
        outside = self._outside(call, arrays[1])
        arrays = arrays[0], _zeroed(arrays[1], outside), _zeroed(arrays[2], outside)
        scores, slope = self._scores(call, arrays, scale, softcap, outside)
        query, key, value = (_each_head(t, arrays[0]) for t in arrays)
        out, grad_out = (_each_head(t, arrays[0]) for t in (rows.out, rows.grad_out))
        weights = _weights(scores, rows.lse.transpose(1, 2).to(scores.dtype))
        delta = (grad_out * out).sum(-1, keepdim=True)
        if rows.grad_lse is not None:
            delta = delta - rows.grad_lse.transpose(1, 2)[..., None]
        grad = weights * (grad_out @ value.mT - delta) * slope * scale
        of_query, of_key, of_value = grad @ key, grad.mT @ query, weights.mT @ grad_out
        group = query.shape[1] // arrays[1].shape[2]
        of_key, of_value = (t.unflatten(1, (-1, group)).sum(2) for t in (of_key, of_value))
        return of_query.transpose(1, 2), of_key.transpose(1, 2), of_value.transpose(1, 2)

    def _outside(self, call: FlashArguments, key: Tensor) -> Tensor | None:
        """Whether a key is outside `key_range`, bool `[B, M]`; None without one."""
        if not call.ranged:
            return None
        assert self.key_range is not None
        return ranges.outside(self.key_range, call.axis, key.shape[1])

    def _scores(
        self,
        call: FlashArguments,
        arrays: Arrays,
        scale: float,
        softcap: float | None,
        outside: Tensor | None,
    ) -> tuple[Tensor, Tensor | float]:
        """Scores `[B, H, N, M]`, -inf outside the mask, and the derivative of the softcap."""
        query, key = (_each_head(t, arrays[0]) for t in arrays[:2])
        scores, slope = query @ key.mT * scale, 1.0
        if softcap is not None:
            capped = torch.tanh(scores / softcap)
            scores, slope = softcap * capped, 1 - capped**2
        if call.window.slopes:
            scores = scores - self._linear(call, *scores.shape[2:], scores)
        allowed = call.allowed((query.shape[2],), (key.shape[2],))
        inside = torch.from_numpy(allowed).to(query.device)
        if outside is not None:
            inside = inside & ~outside[:, None, None]
        return scores.masked_fill(~inside, float("-inf")), slope

    def _linear(self, call: FlashArguments, rows: int, keys: int, like: Tensor) -> Tensor:
        """The slopes times what the kernel takes for distances, `[B or 1, H, N, M]`."""
        assert self.slopes is not None
        slopes = torch.atleast_2d(self.slopes).to(like)
        distances = torch.from_numpy(call.distances(rows, keys)).to(like)
        if call.grids is None or len(slopes) == 1:
            return slopes[..., None, None] * distances
        lengths = torch.from_numpy(np.diff(call.grids.query.starts)).to(like.device)
        of_rows = slopes.repeat_interleave(lengths, dim=0).t()  # every row has those of its grid
        return (of_rows[..., None] * distances)[None]


def _zeroed(tensor: Tensor, outside: Tensor | None) -> Tensor:
    """`[B, M, Hk, D]` with zeros for keys outside `key_range`, which may hold anything."""
    return tensor if outside is None else tensor.masked_fill(outside[..., None, None], 0)


def _each_head(tensor: Tensor, query: Tensor) -> Tensor:
    """Returns `[B, N, H | Hk, D]` as `[B, H, N, D]` in the dtype of the scores."""
    group = query.shape[2] // tensor.shape[2]
    exact = tensor.transpose(1, 2).to(accumulate_dtype(query.dtype))
    return exact.repeat_interleave(group, dim=1) if group > 1 else exact


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse); 0 in rows without keys."""
    lse = lse[..., None]
    return (scores - lse.masked_fill(lse == float("-inf"), 0)).exp()


def forward(program: Program, inputs: Inputs, *, return_lse: bool) -> tuple[Tensor, Tensor]:
    """Computes output and logsumexp of a program."""
    return run.forward(program, inputs, _model(inputs))


def backward(
    program: Program,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients of a program."""
    return run.backward(program, inputs, _model(inputs), out, lse, grad_out, grad_lse)


def _model(inputs: Inputs) -> Model:
    return Model(inputs.key_range, inputs.alibi_slopes)
