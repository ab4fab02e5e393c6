"""What every backend takes and returns: tensors in, output and logsumexp out, gradients back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    """The tensors and numbers of one attention.

    query `[B, *space, H, D]`, key `[B, *key_space, Hk, D]`, value `[B, *key_space, Hk, Dv]`; sink
    `[H]`; key_range int32 `[B, rank, 2]`; extra_key `[B, E, Hk, D]`, extra_value `[B, E, Hk, Dv]`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None
    key_range: Tensor | None
    extra_key: Tensor | None
    extra_value: Tensor | None
    scale: float
    softcap: float | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them, in the order of the fields."""
        return self[:7]

    @property
    def rank(self) -> int:
        """Axes of the space."""
        return self.query.dim() - 3

    @property
    def space(self) -> torch.Size:
        """Lengths of the queries' axes."""
        return self.query.shape[1:-2]

    @property
    def has_extra(self) -> bool:
        """Whether every row reads something. A sink does not count: it may be -inf."""
        return self.extra_key is not None and self.extra_key.shape[1] > 0


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of the inputs, in their shapes; None for inputs that are absent."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None
    extra_key: Tensor | None
    extra_value: Tensor | None


def repeated(attend: Callable[[Inputs], Tensor], inputs: Inputs, grad_out: Tensor) -> Gradients:
    """Gradients of q, k and v by repeating a differentiable forward under autograd: for kernels
    whose backward is not to be called by itself.
    """
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (inputs.query, inputs.key, inputs.value)]
        again = inputs._replace(query=leaves[0], key=leaves[1], value=leaves[2])
        query, key, value = torch.autograd.grad(attend(again), leaves, grad_out)
    return Gradients(query, key, value, None, None, None)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores and logsumexp: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def layout_of(query: Tensor, key: Tensor, value: Tensor) -> str:
    """The strides class of q, k, v, a name of `program.request.LAYOUTS`.

    "packed" is what a projection to q, k and v leaves: views of one tensor, row beside row. In
    cross attention keys and values are, and the queries are a tensor of their own.
    """
    if query.is_contiguous() and key.is_contiguous() and value.is_contiguous():
        return "contiguous"
    if not _side_by_side(key, value):
        return "strided"
    alone = query.is_contiguous() and query.shape[:-2] != key.shape[:-2]
    return "packed" if alone or _side_by_side(query, key) else "strided"


def _side_by_side(one: Tensor, other: Tensor) -> bool:
    """Whether rows of two tensors are parts of the same longer rows."""
    return (
        one.stride()[:-2] == other.stride()[:-2]
        and one.stride()[-2:] == (one.shape[-1], 1)
        and other.stride()[-2:] == (other.shape[-1], 1)
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    )


def rows_apart(tensor: Tensor, *, shared: bool = False) -> bool:
    """Whether every row of channels is dense memory of its own; with `shared`, batch and heads may
    repeat it (strides of 0). Expanded tensors and frames with a hop are not apart.
    """
    size = tensor.shape[-1]
    if size > 1 and tensor.stride(-1) != 1:
        return False
    for axis in range(tensor.dim() - 1):
        stride = tensor.stride(axis)
        if stride < size and tensor.shape[axis] > 1:
            positions = axis == tensor.dim() - 2  # of `[B, H, N, D]`
            if stride or positions or not shared:
                return False
    return True


def new_output(query: Tensor, value: Tensor) -> Tensor:
    """An empty output `[B, *space, H, Dv]`, contiguous."""
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def new_lse(query: Tensor) -> Tensor:
    """An empty logsumexp `[B, *space, H]`."""
    return query.new_empty(query.shape[:-1], dtype=accumulate_dtype(query.dtype))
