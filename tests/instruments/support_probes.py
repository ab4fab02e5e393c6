"""Probes of support: which (query, key) pairs a backend computes, found with one-hot tensors.

Zero queries give every key of a row the same weight 1/n, so that one-hot values show in the
output which keys were used; one-hot gradients and keys show the same for every gradient. Nothing
here has a tolerance: the pairs found must equal the enumerator's matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from math import prod
from random import Random
from typing import Any

import torch
from oracle import is_legal, matrix
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask

Space = tuple[int, ...]
Specimen = tuple[Mask, Space, Space]
BATCH, KEY_HEADS, GROUP = 2, 2, 2
HEADS = KEY_HEADS * GROUP
ITEMS = BATCH * KEY_HEADS  # as many one-hot chunks fit one call

FIELDS: dict[str, tuple[Any, ...]] = {
    "left": (None, 0, 1, 2, 3, 7),
    "right": (None, 0, 1, 2, 4),
    "dilation": (1, 1, 2, 3),
    "stride": (1, 1, 2, 3),
    "causal": (False, False, True),
    "align": ("top-left", "bottom-right"),
    "offset": (0, 0, -3, -1, 2, 5),
    "border": ("clip", "shift", "wrap"),
    "prefix": (0, 0, 0, 2),
}
LENGTHS = {1: (0, 1, 2, 5, 7, 12, 13), 2: (1, 2, 3, 5, 6), 3: (1, 2, 3, 4)}
SAMPLES = {1: 60, 2: 32, 3: 14}

NAMED: list[Specimen] = [
    (Mask(Axis()), (5,), (9,)),
    (Mask(Axis()), (0,), (4,)),
    (Mask(Axis()), (4,), (0,)),
    (Mask(Axis()), (1,), (1,)),
    (Mask(Axis(0, 0)), (6,), (6,)),
    (Mask(Axis(2, 1, align="top-left")), (9,), (5,)),
    (Mask(Axis(2, 1, dilation=3, align="top-left")), (11,), (13,)),
    (Mask(Axis(2, 1, offset=40, align="top-left")), (4,), (6,)),  # all rows right of the axis
    (Mask(Axis(2, 1, offset=-40, align="top-left")), (4,), (6,)),  # and left of it
    (Mask(Axis(1, causal=True, stride=4)), (11,), (11,)),  # stride > left + 1
    (Mask(Axis(None, 3, align="bottom-right")), (7,), (4,)),
    (Mask(Axis(3, None, offset=2, align="top-left")), (7,), (9,)),
    (Mask(Axis(3, 3, border="shift", dilation=2)), (9,), (9,)),
    (Mask(Axis(9, 9, border="shift")), (4,), (4,)),
    (Mask(Axis(2, 2, border="shift", stride=3, align="top-left")), (10,), (7,)),
    (Mask(Axis(2, 2, border="shift", stride=3, dilation=2)), (11,), (11,)),
    (Mask(Axis(4, causal=True, border="shift", align="top-left")), (9,), (6,)),
    (Mask(Axis(2, 2, border="wrap")), (7,), (7,)),
    (Mask(Axis(1, 1, border="wrap", dilation=2, stride=2)), (12,), (12,)),
    (Mask(Axis(9, 9, border="wrap")), (4,), (4,)),
    (Mask(Axis(1, 0, causal=True, prefix=3)), (9,), (9,)),
    (Mask(Axis(0, 0, prefix=2)), (9,), (9,)),
    (Mask(Axis(0, 0, prefix=20, align="top-left")), (3,), (6,)),
    # dense kernels: trimmed, blocked, folded, dilated, causal
    (Mask(Axis(causal=True)), (9,), (9,)),
    (Mask(Axis(causal=True, align="top-left")), (9,), (4,)),
    (Mask(Axis(causal=True, align="top-left")), (4,), (9,)),
    (Mask(Axis(causal=True, offset=-3, align="top-left")), (9,), (7,)),
    (Mask(Axis(causal=True, align="bottom-right")), (9,), (6,)),
    (Mask(Axis(causal=True, align="bottom-right")), (6,), (6,)),
    (Mask(Axis(causal=True, dilation=2)), (8,), (8,)),
    (Mask(Axis(causal=True, dilation=3)), (11,), (11,)),
    (Mask(Axis(causal=True, dilation=3, align="top-left")), (7,), (11,)),
    (Mask(Axis(causal=True, dilation=2, offset=-1)), (9,), (9,)),
    (Mask(Axis(causal=True, dilation=2, offset=-4, align="top-left")), (13,), (9,)),
    (Mask(Axis(dilation=2)), (8,), (8,)),
    (Mask(Axis(dilation=3, align="top-left")), (8,), (11,)),
    (Mask(Axis(dilation=2, offset=1, align="top-left")), (9,), (6,)),
    (Mask(Axis(2, 1, stride=4)), (12,), (12,)),
    (Mask(Axis(2, 1, stride=4)), (13,), (13,)),
    (Mask(Axis(1, 1, stride=3, align="top-left")), (11,), (9,)),
    (Mask(Axis(1, 0, stride=4)), (12,), (12,)),
    (Mask(Axis(1, 1, border="shift", stride=3)), (12,), (12,)),
    (Mask(Axis(2, 0), Axis()), (1, 5), (1, 7)),
    (Mask(Axis(0, 0), Axis()), (4, 3), (4, 5)),
    (Mask(Axis(0, 0), Axis(causal=True)), (3, 6), (3, 6)),
    (Mask(Axis(causal=True), Axis(0, 0)), (6, 3), (6, 3)),
    (Mask(Axis(causal=True), Axis(0, 0, dilation=2)), (5, 4), (5, 4)),
    (Mask(Axis(dilation=2, align="top-left"), Axis()), (5, 3), (6, 2)),
    (Mask(Axis(dilation=2), Axis(dilation=2)), (4, 4), (4, 4)),
    (Mask(Axis(dilation=2), Axis(causal=True, dilation=3)), (1, 9), (1, 9)),
    (Mask(Axis(0, 0), Axis(2, 1, stride=4)), (3, 8), (3, 8)),
    (Mask(Axis(1, 0, stride=2), Axis(1, 0, stride=2), Axis()), (4, 4, 3), (4, 4, 2)),
    (Mask(Axis(1, causal=True), Axis(1, 1, border="shift")), (4, 5), (4, 5)),
    (Mask(Axis(2, causal=True), Axis(1, 1, border="shift"), Axis(1, 1, border="wrap")),
     (3, 4, 5), (3, 4, 5)),
    (Mask(Axis(1, 1, align="top-left"), Axis(1, 1, border="wrap", dilation=2)), (5, 6), (3, 6)),
    (Mask(Axis(1, 1, prefix=1), Axis(1, 1, border="wrap")), (6, 7), (6, 7)),
    (Mask(Axis(1, 1), Axis(2, 0, offset=30)), (3, 4), (3, 4)),
    (Mask(Axis(1, 1, align="top-left"), Axis(1, 1), Axis(1, 1)), (0, 3, 2), (2, 3, 2)),
    (Mask(Axis(1, 1), Axis(1, 1, align="top-left"), Axis(1, 1)), (2, 3, 2), (2, 0, 2)),
]  # fmt: skip

LARGE: list[Specimen] = [
    (Mask(Axis(40, 17)), (300,), (300,)),
    (Mask(Axis(63, causal=True, align="bottom-right")), (130,), (300,)),
    (Mask(Axis(9, causal=True, dilation=7, prefix=0, align="top-left")), (300,), (290,)),
    (Mask(Axis(5, 5, border="wrap", dilation=3)), (300,), (300,)),
    (Mask(Axis(12, causal=True, prefix=40)), (300,), (300,)),
    (Mask(Axis(20, 20, border="shift", stride=8, align="top-left")), (300,), (260,)),
    (Mask(Axis(causal=True, align="top-left")), (300,), (280,)),
    (Mask(Axis(causal=True, dilation=4)), (301,), (301,)),
    (Mask(Axis(8, 7, stride=16)), (320,), (320,)),
    (Mask(Axis(3, 3, border="shift"), Axis(3, 3, border="shift")), (24, 20), (24, 20)),
    (Mask(Axis(2, 2, border="shift", dilation=3), Axis(4, causal=True)), (24, 20), (24, 20)),
    (Mask(Axis(2, 2, border="wrap"), Axis(1, 1, border="wrap", dilation=2)), (24, 20), (24, 20)),
    (Mask(Axis(3, 2, align="top-left"), Axis(2, 3, align="bottom-right")), (20, 14), (24, 20)),
    (Mask(Axis(2, causal=True), Axis(2, 2, border="shift"), Axis(1, 1, border="wrap")),
     (6, 8, 9), (6, 8, 9)),
]  # fmt: skip


def draw_axis(random: Random, lengths: Space) -> tuple[Axis, int, int]:
    """A legal axis with the lengths it is bound to, by rejection."""
    while True:
        fields = {name: random.choice(values) for name, values in FIELDS.items()}
        queries, keys = random.choice(lengths), random.choice(lengths)
        if fields["border"] == "wrap":
            fields |= {"causal": False, "align": "top-left", "offset": 0, "prefix": 0}
            keys = queries
        if fields["causal"]:
            fields["right"] = 0
        if is_legal(fields, queries, keys):
            return Axis(**fields), queries, keys


def sampled() -> Iterator[Specimen]:
    random = Random(20)
    for rank, count in SAMPLES.items():
        for _ in range(count):
            chosen, queries, keys = zip(
                *(draw_axis(random, LENGTHS[rank]) for _ in range(rank)), strict=True
            )
            yield Mask(*chosen), queries, keys


SMALL = [*NAMED, *sampled()]


@lru_cache(None)
def oracle(mask: Mask, queries: Space, keys: Space) -> Tensor:
    return torch.from_numpy(matrix(mask.axes, queries, keys))


def chunks(count: int) -> int:
    """The width of a one-hot chunk, so that all chunks together cover `count` places."""
    return max(1, -(-count // ITEMS))


@lru_cache(None)
def one_hot(space: Space, heads: int, dtype: torch.dtype, *, only: bool = False) -> Tensor:
    """[B, *space, heads, W]: item (b, key head) has ones for its own W places of the space.

    With `only`, one query head of the group has them and the others nothing.
    """
    count, group = prod(space), heads // KEY_HEADS
    width = chunks(count)
    probe = torch.zeros(BATCH, KEY_HEADS, group, count, width, dtype=dtype)
    places = torch.arange(count)
    item, column = places // width, places % width
    members = [item % group] if only else range(group)
    for member in members:
        probe[item // KEY_HEADS, item % KEY_HEADS, member, places, column] = 1
    return probe.permute(0, 3, 1, 2, 4).reshape(BATCH, *space, heads, width)


def assemble(found: Tensor, count: int) -> Tensor:
    """[B, N, KEY_HEADS, W] of a probe as [N, count]: chunk after chunk, unused columns dropped."""
    return found.permute(1, 0, 2, 3).flatten(1)[:, :count]


class Probe:
    """One specimen on one route and dtype; methods return the pairs they found, [Nq, Nk]."""

    def __init__(self, specimen: Specimen, route: tuple[Any, ...], dtype: torch.dtype) -> None:
        self.mask, self.queries, self.keys = specimen
        self.backend, self.require = route[:2]
        self.dtype = dtype
        self.counts = prod(self.queries), prod(self.keys)

    def zeros(self, space: Space, heads: int, width: int) -> Tensor:
        return torch.zeros(BATCH, *space, heads, width, dtype=self.dtype)

    def run(self, query: Tensor, key: Tensor, value: Tensor, **more: Any) -> Any:
        return nbattn.attention(
            query, key, value, self.mask, backend=self.backend, require=self.require, **more
        )

    def forward(self) -> Tensor:
        """Pairs from the output; its size and the logsumexp give their number once more."""
        value = one_hot(self.keys, KEY_HEADS, self.dtype)
        query = self.zeros(self.queries, HEADS, value.shape[-1])
        out, lse = self.run(query, torch.ones_like(value), value, return_lse=True)
        out = out.reshape(BATCH, self.counts[0], KEY_HEADS, GROUP, out.shape[-1])
        assert torch.equal(out, out[:, :, :, :1].expand_as(out))
        weights = assemble(out[:, :, :, 0], self.counts[1])
        pairs = weights != 0
        n = pairs.sum(1, keepdim=True)
        assert torch.equal((weights.double() * n).round(), pairs.double())  # each is 1/n
        assert lse.dtype == torch.float64 if self.dtype == torch.float64 else torch.float32
        found = lse.reshape(BATCH, self.counts[0], HEADS).double()
        assert torch.equal(found.exp().round(), n.double()[None].expand_as(found))
        assert torch.equal(found == float("-inf"), (n == 0)[None].expand_as(found))
        return pairs

    def value_gradient(self) -> Tensor:
        upstream = one_hot(self.queries, HEADS, self.dtype, only=True)
        width = upstream.shape[-1]
        query = self.zeros(self.queries, HEADS, width)
        value = self.zeros(self.keys, KEY_HEADS, width).requires_grad_()
        out = self.run(query, self.zeros(self.keys, KEY_HEADS, width), value)
        (grad,) = torch.autograd.grad(out, value, upstream)
        return self.of_keys(grad)

    def query_gradient(self) -> Tensor:
        """dQ with one-hot keys: the gradient of every score."""
        key = one_hot(self.keys, KEY_HEADS, self.dtype)
        width = key.shape[-1]
        query = self.zeros(self.queries, HEADS, width).requires_grad_()
        grad = self.score_gradient(query, key, query)
        grad = grad.reshape(BATCH, self.counts[0], KEY_HEADS, GROUP, width) != 0
        assert torch.equal(grad, grad[:, :, :, :1].expand_as(grad))
        return assemble(grad[:, :, :, 0], self.counts[1])

    def key_gradient(self) -> Tensor:
        query = one_hot(self.queries, HEADS, self.dtype, only=True)
        width = query.shape[-1]
        key = self.zeros(self.keys, KEY_HEADS, width).requires_grad_()
        return self.of_keys(self.score_gradient(query, key, key))

    def score_gradient(self, query: Tensor, key: Tensor, wanted: Tensor) -> Tensor:
        """The gradient of q or k with values and output gradients of 1.

        A sink as heavy as all keys together takes at least half of every row, so that the gradient
        of no score that is read cancels, whatever the rounding.
        """
        sink = torch.full((HEADS,), float(max(self.counts[1], 1))).log()
        out = self.run(query, key, torch.ones_like(key), scale=1.0, sink=sink)
        (grad,) = torch.autograd.grad(out, wanted, torch.ones_like(out))
        return grad

    def of_keys(self, grad: Tensor) -> Tensor:
        assert grad.isfinite().all()
        flat = grad.reshape(BATCH, self.counts[1], KEY_HEADS, grad.shape[-1])
        return (assemble(flat, self.counts[0]) != 0).T


def check(specimen: Specimen, route: tuple[Any, ...], dtype: torch.dtype) -> list[str]:
    """The passes that the planner let run; each found exactly the enumerator's pairs."""
    want = oracle(*specimen)
    probe = Probe(specimen, route, dtype)
    done: list[str] = []
    with suppress(BackendError):
        pairs = probe.forward()
        assert torch.equal(pairs, want), (specimen, "forward")
        done.append("forward")
    for name in ("value_gradient", "query_gradient", "key_gradient"):
        with suppress(BackendError):
            assert torch.equal(getattr(probe, name)(), want), (specimen, name)
            done.append(name)
    return done
