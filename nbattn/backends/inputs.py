"""The inputs and results of every backend: tensors, output and logsumexp, gradients."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from nbattn.grids import PackedGrids
from nbattn.kernels import tensor_maps
from nbattn.kernels.tensor_maps import View


class Inputs(NamedTuple):
    """The tensors and numbers of one attention call.

    query `[B, *space, H, D]`, key `[B, *key_space, Hk, D]`, value `[B, *key_space, Hk, Dv]`; sink
    `[H]`; key_range int32 `[B, rank, 2]`; extra_key `[B, E, Hk, D]`, extra_value `[B, E, Hk, Dv]`;
    extra_range int32 `[B, 2]`; relative_bias `[H, 2 K - 1, …]`; alibi_slopes float32 `[H]` or
    `[B, H]`. With grids, query is `[T, H, D]`, key and value `[Tk, Hk, …]`, and B the number of
    grids.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None = None
    key_range: Tensor | None = None
    extra_key: Tensor | None = None
    extra_value: Tensor | None = None
    extra_range: Tensor | None = None
    relative_bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    grids: PackedGrids | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors, in the order of the fields."""
        return tuple(self)[:10]  # pyright: ignore[reportReturnType]; torch 2.8 cannot slice `self`

    @property
    def rank(self) -> int:
        """The number of axes of the space."""
        return self.query.dim() - 3 if self.grids is None else self.grids.rank

    @property
    def space(self) -> torch.Size:
        """The lengths of the queries' axes."""
        return self.query.shape[1:-2]

    @property
    def has_extra(self) -> bool:
        """Whether there are extra keys."""
        return self.extra_key is not None and self.extra_key.shape[1] > 0

    @property
    def always_has_key(self) -> bool:
        """Whether every query has a key, as all attend to extra keys. A sink is no key: it may be
        -inf.
        """
        return self.has_extra and self.extra_range is None


@dataclass(frozen=True, slots=True)
class Gradients:
    """Gradients of the inputs, in their shapes; None for inputs that are absent."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None
    extra_key: Tensor | None
    extra_value: Tensor | None
    relative_bias: Tensor | None = None


@dataclass(frozen=True)
class KernelRun:
    """One kernel with one tile: a function that launches it alone, and what it has computed."""

    run: Callable[[], None]
    results: list[Tensor]


# A tile's name, and a function that runs the passes that the tile's kernel belongs to.
Attempt = tuple[str, Callable[[], KernelRun]]
# The tensors of a call, in the order of `Inputs` and of the operators' schema.
TENSORS = Inputs._fields[:10]
# The tensors with a gradient, in the order of `Gradients` and of the operators' results.
GRADIENTS = tuple(field.name for field in fields(Gradients))
# The tensors of which a plan depends only on whether they are there.
SWITCHES = ("sink", "key_range", "extra_range", "relative_bias", "alibi_slopes")


def repeated(attend: Callable[[Inputs], Tensor], inputs: Inputs, grad_out: Tensor) -> Gradients:
    """Computes the gradients of q, k and v by repeating a differentiable forward under autograd,
    for kernels whose backward cannot be called alone.
    """
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in (inputs.query, inputs.key, inputs.value)]
        differentiable = inputs._replace(query=leaves[0], key=leaves[1], value=leaves[2])
        query, key, value = torch.autograd.grad(attend(differentiable), leaves, grad_out)
    return Gradients(query, key, value, None, None, None)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of scores and logsumexp: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def layout_of(query: Tensor, key: Tensor, value: Tensor) -> str:
    """Returns the layout of q, k, v, a name of `program.request.LAYOUTS`.

    "packed" means that one projection computed q, k and v: they are parts of the rows of one
    tensor, which begin at multiples of 16 bytes as tensor maps need it. In cross attention only
    keys and values are, and queries are a separate tensor. "regular" are other strides that tensor
    maps can say, as those of `[B, H, *space, D]`.
    """
    if query.is_contiguous() and key.is_contiguous() and value.is_contiguous():
        return "contiguous"
    if _side_by_side(key, value):
        alone = query.is_contiguous() and query.shape[:-2] != key.shape[:-2]
        if alone or _side_by_side(query, key):
            return "packed"
    views = (View(tuple(t.shape), t.stride()) for t in (query, key, value))
    return "regular" if all(map(tensor_maps.has_boxes, views)) else "strided"


def _side_by_side(first: Tensor, second: Tensor) -> bool:
    """Whether the rows of two tensors are parts of the same longer rows, one after the other."""
    steps, itemsize = first.stride()[:-2], first.element_size()
    row = max(tensor.shape[-2:].numel() for tensor in (first, second))
    inner = (n * step for n, step in zip((*first.shape[1:-2], row), (*steps[1:], 1), strict=True))
    return (
        steps == second.stride()[:-2]
        and all(step > 0 and step * itemsize % 16 == 0 for step in steps)
        and all(map(operator.ge, steps, inner))
        and first.stride()[-2:] == (first.shape[-1], 1)
        and second.stride()[-2:] == (second.shape[-1], 1)
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )


def rows_apart(tensor: Tensor, *, shared: bool = False) -> bool:
    """Whether every row of channels is dense and no two rows overlap in memory; with `shared`,
    batch and heads may repeat rows (strides of 0). Rows of expanded tensors and of overlapping
    frames (`Tensor.unfold`) overlap.
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
    """Returns an uninitialized output `[B, *space, H, Dv]`, contiguous."""
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def new_lse(query: Tensor) -> Tensor:
    """Returns an uninitialized logsumexp `[B, *space, H]`."""
    return query.new_empty(query.shape[:-1], dtype=accumulate_dtype(query.dtype))


def kernel_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Returns what the project's own kernels read, by the names in `kernels.layout.POINTERS`; what
    they take without strides is contiguous.
    """
    tensors = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    if inputs.extra_key is not None and inputs.extra_value is not None and inputs.has_extra:
        tensors["extra_key"] = inputs.extra_key.contiguous()
        tensors["extra_value"] = inputs.extra_value.contiguous()
        if inputs.extra_range is not None:
            tensors["extra_range"] = inputs.extra_range.to(torch.int32).contiguous()
    for name in ("sink", "relative_bias", "alibi_slopes"):
        tensor: Tensor | None = getattr(inputs, name)
        if tensor is not None:
            exact = accumulate_dtype(inputs.query.dtype)
            cast = (
                tensor if tensor.dtype is exact else tensor.to(exact)
            )  # torch's check costs a call
            tensors[name] = cast.contiguous()
    if inputs.key_range is not None:
        tensors["key_range"] = inputs.key_range.to(torch.int32).contiguous()
    return tensors
