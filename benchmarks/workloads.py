"""The workloads of the CPU benchmarks: masks, shapes and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from nbattn import Mask, geometry


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One attention: `[B, *space, H, D]` queries and a mask; keys can have another space."""

    name: str
    title: str
    mask: Mask
    space: tuple[int, ...]
    heads: int
    head_dim: int
    batch: int = 1
    key_space: tuple[int, ...] | None = None

    @property
    def keys(self) -> tuple[int, ...]:
        """The space of the keys."""
        return self.space if self.key_space is None else self.key_space

    @property
    def queries(self) -> int:
        """The number of queries per head."""
        return math.prod(self.space)

    @property
    def key_count(self) -> int:
        """The number of keys per head."""
        return math.prod(self.keys)

    @property
    def query_shape(self) -> tuple[int, ...]:
        """`[B, *space, H, D]`."""
        return (self.batch, *self.space, self.heads, self.head_dim)

    @property
    def key_shape(self) -> tuple[int, ...]:
        """`[B, *key_space, H, D]`."""
        return (self.batch, *self.keys, self.heads, self.head_dim)

    @property
    def lines(self) -> tuple[geometry.BoundAxis, ...]:
        """The mask bound to this workload's lengths."""
        return geometry.bind(self.mask, self.space, self.keys)

    @property
    def useful_flops(self) -> int:
        """FLOPs of a forward pass over the pairs that the mask allows."""
        return 4 * self.batch * self.heads * geometry.pairs(self.lines) * self.head_dim

    def tensors(self, dtype: torch.dtype, *, requires_grad: bool = False) -> tuple[Tensor, ...]:
        """Create random q, k, v and output gradient, heads last, with a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        shapes = (self.query_shape, self.key_shape, self.key_shape, self.query_shape)
        tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        for tensor in tensors[:3]:
            tensor.requires_grad_(requires_grad)
        return tuple(tensors)

    def dense(self) -> Tensor:
        """Return the mask as a bool matrix `[Nq, Nk]`, row-major."""
        return torch.from_numpy(self.mask.dense(self.space, self.keys))

    def __str__(self) -> str:
        shape = "x".join(map(str, self.space))
        if self.keys != self.space:
            shape += f" on {'x'.join(map(str, self.keys))}"
        return f"{shape}, {self.title}, B{self.batch} H{self.heads} D{self.head_dim}"


def _nat(name: str, side: int, dilation: int = 1, batch: int = 8) -> Workload:
    title = "NAT 7x7" if dilation == 1 else f"DiNAT 7x7 dilation {dilation}"
    mask = Mask.neighborhood((7, 7), dilation=dilation)
    return Workload(
        name=name, title=title, mask=mask, space=(side, side), heads=2, head_dim=32, batch=batch
    )


def _square(name: str, kernel: int) -> Workload:
    mask = Mask.neighborhood((kernel, kernel))
    return Workload(
        name=name, title=f"{kernel}x{kernel}", mask=mask, space=(64, 64), heads=16, head_dim=128
    )


def _line(name: str, title: str, mask: Mask, queries: int, keys: int | None = None) -> Workload:
    key_space = None if keys is None else (keys,)
    return Workload(
        name=name,
        title=title,
        mask=mask,
        space=(queries,),
        key_space=key_space,
        heads=8,
        head_dim=64,
    )


_ALL = (
    _line("W1", "causal window 512", Mask.sliding_window(511), 8192),
    _line("W2", "window 255", Mask.neighborhood(255), 4096),
    _nat("W3", 56),
    _nat("W3-B1", 56, batch=1),
    _nat("W3-28", 28),
    _nat("W3-14", 14),
    _nat("W3-7", 7),
    _nat("W4", 56, dilation=8),
    _nat("W4b", 56, dilation=4),
    _nat("W4-28", 28, dilation=4),
    _nat("W4-14", 14, dilation=2),
    _square("W5", 16),
    _square("W5b", 32),
    Workload(
        name="W6",
        title="4x8x8",
        mask=Mask.neighborhood((4, 8, 8)),
        space=(8, 24, 24),
        heads=8,
        head_dim=64,
    ),
    Workload(
        name="LTX",
        title="11x11x11",
        mask=Mask.neighborhood((11, 11, 11)),
        space=(24, 24, 24),
        heads=2,
        head_dim=64,
    ),
    Workload(
        name="LTX-4",
        title="3x5x5",
        mask=Mask.neighborhood((3, 5, 5)),
        space=(16, 24, 24),
        heads=8,
        head_dim=64,
    ),
    _line("W7a", "top-left causal", Mask.causal("top-left"), 2048, 512),
    _line("W7b", "top-left causal", Mask.causal("top-left"), 512, 2048),
)
WORKLOADS = {workload.name: workload for workload in _ALL}


def select(names: str) -> list[Workload]:
    """Return the workloads of a comma-separated list; "all" returns all.

    Raises:
        SystemExit: a name is unknown; the message lists the known ones.
    """
    if names == "all":
        return list(_ALL)
    return [WORKLOADS[name] for name in known(names.split(","), WORKLOADS, "workload")]


def known(names: Iterable[str], table: Iterable[str], kind: str) -> list[str]:
    """Return the stripped names, all of which must be in the table.

    Raises:
        SystemExit: a name is unknown; the message lists the known ones.
    """
    names, table = [name.strip() for name in names], list(table)
    for name in names:
        if name not in table:
            raise SystemExit(f"{kind} {name!r} is not one of {', '.join(table)}.")
    return names
