"""Everything that decides a plan, as one frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from nbattn.dialects.device import DeviceInfo
from nbattn.errors import InputError
from nbattn.mask import Mask

_FLASH = ("flash", "flash:aten", "flash:fa2", "flash:fa3", "flash:fa4")
_MODEL = tuple(name.replace("flash", "flash-model") for name in _FLASH)
BACKENDS = ("auto", "reference", "tiled", "sdpa", *_FLASH, *_MODEL, "cuda", "flex", "natten")
_DENSE, _PADS = ("dense", "causal", "mask", "tile"), ("virtual-pad", "pack", "pad", "zero-pad")
_PEERS = ("blocks", "window")
_FLASHES = ("translate", "trim", "split", *_PADS, "kv-cache")
_KERNELS = ("mma", "simt")
STRATEGIES = (*_DENSE, *_FLASHES, "fold", "merge", *_PEERS, *_KERNELS)
LAYOUTS = ("contiguous", "packed", "strided")
DTYPES = ("float16", "bfloat16", "float32", "float64")


class Known(NamedTuple):
    """What limits look at (`dialects.limits.Facts`): the same for every length."""

    device: DeviceInfo
    dtype: str
    head_dim: int
    value_dim: int
    training: bool
    return_lse: bool
    softcap: bool
    key_range: bool
    sink: bool
    extra_keys: int
    deterministic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a plan is for: shapes, dtype, device, and what the call needs.

    Args:
        mask: the mask.
        batch, query_space, key_space, heads, kv_heads, head_dim, value_dim: the shapes
            `[batch, *query_space, heads, head_dim]` and `[batch, *key_space, kv_heads, …]`.
        dtype: by name, "bfloat16".
        device: its data.
        layout: "contiguous", "packed" (q, k, v are views of one tensor) or "strided".
        training: a backward pass follows.
        deterministic: the same bits every time.
        return_lse: the logsumexp is an output.
        extra_keys: how many keys every query reads besides the mask's.
        softcap, sink, key_range: whether the call has them.
        backend: a name of `BACKENDS`.
        require, forbid: strategies or backends that the plan must or must not use.
    """

    mask: Mask
    batch: int
    query_space: tuple[int, ...]
    key_space: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: str
    device: DeviceInfo
    layout: str = "contiguous"
    training: bool = False
    deterministic: bool = False
    return_lse: bool = False
    extra_keys: int = 0
    softcap: bool = False
    sink: bool = False
    key_range: bool = False
    backend: str = "auto"
    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {"backend": BACKENDS, "layout": LAYOUTS, "dtype": DTYPES}
        for name, names in known.items():
            if getattr(self, name) not in names:
                raise InputError(
                    f"{name}={getattr(self, name)!r} is not known.",
                    f"one of {', '.join(map(repr, names))}.",
                )
        for name in ("require", "forbid"):
            check_traits(name, getattr(self, name))

    @property
    def known(self) -> Known:
        """What of the request its lengths do not change."""
        return Known(*(getattr(self, name) for name in Known._fields))

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.heads // self.kv_heads

    @property
    def query_count(self) -> int:
        """Queries of one sample and head."""
        return math.prod(self.query_space)

    @property
    def key_count(self) -> int:
        """Keys of one sample and head."""
        return math.prod(self.key_space)

    def summary(self) -> str:
        """The request in one line, as errors and `explain()` show it."""
        query = [self.batch, *self.query_space, self.heads, self.head_dim]
        key = [self.batch, *self.key_space, self.kv_heads, self.head_dim]
        flags = [f.name for f in fields(self) if getattr(self, f.name) is True]
        extras = [f"extra_keys={self.extra_keys}"] * (self.extra_keys > 0)
        extras += [f"value_dim={self.value_dim}"] * (self.value_dim != self.head_dim)
        extras += [self.layout] * (self.layout != "contiguous")
        return " ".join(
            [f"query {query} key {key} {self.dtype} {self.device.name}", *extras, *flags]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the device by name."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        listed = {name: list(value) for name, value in plain.items() if isinstance(value, tuple)}
        return {**plain, **listed, "mask": repr(self.mask), "device": self.device.name}


def check_traits(name: str, traits: tuple[str, ...]) -> None:
    """Refuse a require= or forbid= that names nothing."""
    known = (*STRATEGIES, *BACKENDS[1:])
    for trait in traits:
        if trait not in known:
            raise InputError(
                f"{name} names {trait!r}, which is neither a strategy nor a backend.",
                f"one of {', '.join(map(repr, known))}.",
            )
