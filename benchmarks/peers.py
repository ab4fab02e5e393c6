"""The peers: nbattn, SDPA and gathered keys, each prepared in its fastest layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from workloads import Workload

import nbattn
from nbattn.axis import Axis
from nbattn.timing import Action

GATHER_BYTES = 1 << 30  # the most bytes of gathered keys and values per run
_SAME = tuple[Tensor, ...]


class RefusedError(Exception):
    """A peer cannot run a workload; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A peer ready to run.

    Args:
        run: the timed function; returns the output, or the output and the gradients of q, k and v.
        restore: converts one of these tensors to `[n, D]`: first sample, first head, row-major; a
            peer that runs a part of the queries returns those.
        note: remark for the table.
        share: fraction of the work that a run does; times and memory are divided by it.
        checked: number of returned tensors for which `restore` is valid.
    """

    run: Action
    restore: Callable[[Tensor], Tensor]
    note: str = ""
    share: float = 1.0
    checked: int = 4

    def results(self) -> list[Tensor]:
        """Run once; return the restored tensors."""
        result = self.run()
        tensors = result if isinstance(result, tuple) else (result,)
        return [self.restore(tensor.detach()) for tensor in tensors[: self.checked]]


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to compute a workload.

    Args:
        title: description for the table's legend.
        prepare: creates the tensors and everything else that is not timed; its arguments are the
            workload, the dtype and whether a backward pass follows.

    `prepare` raises `RefusedError` where the peer cannot run.
    """

    title: str
    prepare: Callable[[Workload, torch.dtype, bool], Prepared]


def passes(function: Callable[..., Tensor], inputs: _SAME, training: bool) -> Action:
    """Return the forward of a function on q, k, v, or forward and backward with a gradient."""
    *qkv, grad = inputs

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*qkv)

    def both() -> tuple[Tensor, ...]:
        out = function(*qkv)
        return (out, *torch.autograd.grad(out, qkv, grad))

    return both if training else forward


# Layouts.


def heads_first(workload: Workload, dtype: torch.dtype, training: bool) -> _SAME:
    """Return contiguous `[B, H, N, D]` tensors, tokens row-major."""
    tensors = [t.flatten(1, -3).transpose(1, 2).contiguous() for t in workload.tensors(dtype)]
    for tensor in tensors[:3]:
        tensor.requires_grad_(training)
    return tuple(tensors)


def first_head(tensor: Tensor) -> Tensor:
    """Return the first head of `[B, H, N, D]` as `[N, D]`."""
    return tensor[0, 0]


def order(space: tuple[int, ...], dilation: tuple[int, ...], tile: tuple[int, ...]) -> Tensor:
    """Return row-major positions sorted by residue class, then by tile, then inside the tile.

    The dilation times the tile must divide the space.
    """
    rank = len(space)
    split = [(n // (d * t), t, d) for n, d, t in zip(space, dilation, tile, strict=True)]
    positions = torch.arange(math.prod(space)).reshape([size for axis in split for size in axis])
    axes = [3 * axis + part for part in (2, 0, 1) for axis in range(rank)]
    return positions.permute(axes).flatten()


def class_lengths(workload: Workload) -> tuple[int, ...]:
    """Return the number of positions per residue class of every axis.

    Raises:
        RefusedError: a dilation does not divide its axis, or queries and keys differ in length.
    """
    steps = [axis.dilation for axis in workload.mask.axes]
    if max(steps) > 1 and workload.keys != workload.space:
        raise RefusedError("queries and keys differ in length")
    if any(n % d for n, d in zip(workload.space, steps, strict=True)):
        raise RefusedError("a dilation does not divide the space")
    return tuple(n // d for n, d in zip(workload.space, steps, strict=True))


# Peers.


def own(
    backend: str, *, widened: bool = False
) -> Callable[[Workload, torch.dtype, bool], Prepared]:
    """Return the peer `nbattn.attention`, heads last; `widened`: a 16-bit job in float32."""

    def prepare(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
        if widened and dtype.itemsize != 2:
            raise RefusedError("the dtype has no 16 bits")
        run_in = torch.float32 if widened else dtype
        try:
            chosen = nbattn.plan(
                workload.mask, workload.query_shape, workload.key_shape, dtype=run_in,
                device="cpu", training=training, backend=backend,
            ).chosen  # fmt: skip
        except nbattn.NbattnError as error:
            raise RefusedError(str(error).partition("\n")[0]) from None
        inputs = tuple(tensor.to(run_in) for tensor in workload.tensors(dtype))
        for tensor in inputs[:3]:
            tensor.requires_grad_(training)
        words = {call.arguments.describe() for call in chosen.program.calls}

        def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return nbattn.attention(query, key, value, workload.mask, backend=backend)

        note = f"{chosen.name}: {'; '.join(sorted(words))}"
        return Prepared(
            passes(function, inputs, training), lambda t: t[0, ..., 0, :].flatten(0, -2), note
        )

    return prepare


def sdpa_mask(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare SDPA with the dense boolean mask."""
    mask = workload.dense()

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return Prepared(passes(function, heads_first(workload, dtype, training), training), first_head)


def sdpa_causal(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare SDPA with `is_causal`, which is top-left."""
    if workload.mask not in (nbattn.Mask.causal(), nbattn.Mask.causal("top-left")):
        raise RefusedError("the mask is not plain causal")

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    return Prepared(passes(function, heads_first(workload, dtype, training), training), first_head)


def sdpa_unmasked(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare SDPA without a mask, where one window covers every residue class."""
    lengths = class_lengths(workload)
    if not all(_covered(axis, n) for axis, n in zip(workload.mask.axes, lengths, strict=True)):
        raise RefusedError("no window covers a whole residue class")
    at = order(workload.space, tuple(axis.dilation for axis in workload.mask.axes), lengths)
    back, count = at.argsort(), math.prod(lengths)

    def fold(tensor: Tensor) -> Tensor:
        parts = tensor[:, :, at].unflatten(2, (-1, count))
        return parts.transpose(1, 2).flatten(0, 1).contiguous().detach()

    inputs = [fold(t) for t in heads_first(workload, dtype, training)]
    for tensor in inputs[:3]:
        tensor.requires_grad_(training)

    def restore(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (workload.batch, -1))[0, :, 0].flatten(0, 1)[back]

    run = passes(torch.nn.functional.scaled_dot_product_attention, tuple(inputs), training)
    return Prepared(run, restore, "tokens sorted by residue class beforehand, not counted")


def _covered(axis: Axis, length: int) -> bool:
    """Whether every window of an axis with `length` positions per class is the whole class."""
    if axis.left is None or axis.right is None:
        return axis.left is None and axis.right is None
    if axis.border == "shift":
        return axis.left + axis.right + 1 >= length
    return min(axis.left, axis.right) >= length - 1


def gather(workload: Workload, dtype: torch.dtype, training: bool) -> Prepared:
    """Prepare copies of every query's keys, as unfold does, then a batch of one-row products."""
    mask = workload.dense()
    width = int(mask.sum(dim=1).max())
    filled = width * len(mask) == int(mask.sum())
    if not filled:
        raise RefusedError("queries have different numbers of keys")
    heads, queries = _affordable(workload, width, dtype.itemsize)
    index = mask.nonzero()[:, 1][: queries * width]
    inputs = [t.flatten(0, 1)[:heads].detach() for t in heads_first(workload, dtype, training)]
    inputs = [t[:, :queries].contiguous() if n in (0, 3) else t for n, t in enumerate(inputs)]
    for tensor in inputs[:3]:
        tensor.requires_grad_(training)

    def function(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (t.index_select(1, index).unflatten(1, (-1, width)) for t in (key, value))
        scores = query[:, :, None] @ keys.mT * workload.head_dim**-0.5
        return (scores.softmax(-1) @ values)[:, :, 0]

    every = workload.batch * workload.heads
    share = heads / every * queries / workload.queries
    note = "" if share == 1 else f"{heads} of {every} heads"
    if queries < workload.queries:
        note += f", {queries} of {workload.queries} queries"
    note += ", scaled" if note else ""
    run = passes(function, tuple(inputs), training)
    checked = 4 if queries == workload.queries else 2
    return Prepared(run, lambda t: t[0], note, share, checked)


def _affordable(workload: Workload, width: int, itemsize: int) -> tuple[int, int]:
    """Return how many heads (of all samples) and queries fit in `GATHER_BYTES` when gathered."""
    queries, every = workload.queries, workload.batch * workload.heads
    row = 2 * width * workload.head_dim * itemsize
    heads = min(every, GATHER_BYTES // (row * queries))
    return (heads, queries) if heads else (1, min(queries, GATHER_BYTES // row))
