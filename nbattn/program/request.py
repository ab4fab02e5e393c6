"""The request: everything that determines a plan, as one frozen value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from nbattn import biases, grids, synonyms
from nbattn.errors import InputError
from nbattn.geometry import Axes, Held, bind
from nbattn.grids import PackedGrids
from nbattn.mask import Mask
from nbattn.program.device import DeviceInfo

LAYOUTS = ("contiguous", "packed", "regular", "strided")
DTYPES = ("float16", "bfloat16", "float32", "float64")


class Needs(NamedTuple):
    """What a kernel's limits check of a request: all but the mask, its lengths and the choice."""

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
    extra_range: bool
    relative_bias: bool
    alibi_slopes: bool
    deterministic: bool


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Request:
    """What a plan is made for: mask, shapes, dtype, device, and what the call needs.

    Args:
        mask: the mask.
        batch, query_space, key_space, heads, kv_heads, head_dim, value_dim: the shapes
            `[batch, *query_space, heads, head_dim]` and `[batch, *key_space, kv_heads, …]`.
        dtype: its name, "bfloat16".
        device: the planner's data of the device.
        layout: "contiguous", "packed" (q, k, v are views of one tensor), "regular" (other strides
            that tensor maps can say) or "strided".
        training: whether a backward pass follows.
        deterministic: whether every run must return the same bits.
        return_lse: whether the logsumexp is an output.
        extra_keys: the number of keys that every query attends to in addition to the mask's.
        softcap, sink, key_range, extra_range, relative_bias, alibi_slopes: whether the call has
            them.
        backend: a name of `backends.families.BACKENDS`, which the planner checks.
        require, forbid: strategies or backends that the plan must or must not use.
        held: per axis, the part of it that the tensors contain; empty if they contain all of it.
        grids: the sizes of grids that are packed one after another; None for one grid per sample.
            The batch is then 1, and both spaces have one length, the number of all tokens.
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
    extra_range: bool = False
    relative_bias: bool = False
    alibi_slopes: bool = False
    backend: str = "auto"
    require: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()
    grids: PackedGrids | None = None
    # Computed once, since every candidate needs them: query heads per key head, queries and keys of
    # a sample and head, and what limits check.
    heads_per_key_head: int = field(init=False, compare=False)
    query_count: int = field(init=False, compare=False)
    key_count: int = field(init=False, compare=False)
    needs: Needs = field(init=False, compare=False)

    def __post_init__(self) -> None:
        for name, names in (("layout", LAYOUTS), ("dtype", DTYPES)):
            if getattr(self, name) not in names:
                given = getattr(self, name)
                guess = synonyms.meant(given, names, synonyms.DTYPES) or names[0]
                raise InputError(
                    f"{name}={given!r} is not known: one of {', '.join(names)}.",
                    f'{name}="{guess}"',
                )
        assign = object.__setattr__
        assign(self, "heads_per_key_head", self.heads // self.kv_heads)
        assign(self, "query_count", math.prod(self.query_space))
        assign(self, "key_count", math.prod(self.key_space))
        assign(self, "needs", Needs(*(getattr(self, name) for name in Needs._fields)))

    def __repr__(self) -> str:
        choice = (f"{name}={getattr(self, name)!r}" for name in ("backend", "require", "forbid"))
        given = [text for text in choice if not text.endswith(("='auto'", "=()"))]
        return f"Request({', '.join([self.summary(), repr(self.mask), *given])})"

    def axes(self) -> Axes:
        """Returns the mask's axes at the request's lengths; none for packed grids, whose sizes each
        have their own.

        Raises:
            MaskError: the mask does not fit them, or what is added to its scores.
        """
        if self.grids is not None:
            grids.check(self.mask, self.grids, table=self.relative_bias, slopes=self.alibi_slopes)
            return ()
        axes = bind(self.mask, self.query_space, self.key_space, self.held)
        biases.check(self.mask, axes, table=self.relative_bias, slopes=self.alibi_slopes)
        return axes

    def of_size(self, number: int, batch: int = 1) -> Request:
        """Returns the request of a batch of packed grids that have one size.

        Args:
            number: of the size, in `self.grids.sizes`.
            batch: how many grids.
        """
        assert self.grids is not None
        sizes = self.grids.sizes
        return replace(
            self,
            batch=batch,
            query_space=tuple(sizes.query[number].tolist()),
            key_space=tuple(sizes.key[number].tolist()),
            grids=None,
        )

    def summary(self) -> str:
        """Describes the request in one line, for errors and `explain()`."""
        batch = [self.batch] * (self.grids is None)
        query = [*batch, *self.query_space, self.heads, self.head_dim]
        key = [*batch, *self.key_space, self.kv_heads, self.head_dim]
        flags = [f.name for f in fields(self) if f.init and getattr(self, f.name) is True]
        flags += [] if self.grids is None else [self.grids.summary()]
        extras = [f"extra_keys={self.extra_keys}"] * (self.extra_keys > 0)
        extras += [f"value_dim={self.value_dim}"] * (self.value_dim != self.head_dim)
        extras += [self.layout] * (self.layout != "contiguous")
        extras += [f"part {tuple(part)}" for part in self.held]
        return " ".join(
            [f"query {query} key {key} {self.dtype} {self.device.name}", *extras, *flags]
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, with the device's name."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        listed = {name: list(value) for name, value in plain.items() if isinstance(value, tuple)}
        if not self.held:  # a request for whole axes has no such entry
            del plain["held"], listed["held"]
        packed: PackedGrids | None = plain.pop("grids")
        if packed is not None:
            listed["grids"] = packed.query.array.tolist()
            listed["key_grids"] = packed.key.array.tolist()
        return {**plain, **listed, "mask": repr(self.mask), "device": self.device.name}


def dtype_name(dtype: object) -> str:
    """Returns the name of a torch dtype, or checks a name.

    >>> dtype_name("torch.bfloat16")
    'bfloat16'
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        guess = synonyms.meant(name, DTYPES, synonyms.DTYPES) or "bfloat16"
        problem = f"dtype={name} is not known: one of {', '.join(DTYPES)}."
        raise InputError(problem, f'dtype="{guess}"')
    return name


def request_of(
    mask: Mask,
    query_shape: Sequence[int],
    key_shape: Sequence[int],
    *,
    dtype: object,
    **options: Any,
) -> Request:
    """Builds the request of shapes `[B, *space, H, D]` and `[B, *key_space, Hk, D]`, or of packed
    grids `[T, H, D]` and `[Tk, Hk, D]`; no other code computes requests from shapes.

    Args:
        dtype: a torch dtype, or its name.
        **options: the fields of `Request` that do not follow from the shapes.
    """
    if options.get("grids") is not None:
        query_shape, key_shape = (1, *query_shape), (1, *key_shape)
    return Request(
        mask=mask,
        batch=query_shape[0],
        query_space=tuple(query_shape[1:-2]),
        key_space=tuple(key_shape[1:-2]),
        heads=query_shape[-2],
        kv_heads=key_shape[-2],
        head_dim=query_shape[-1],
        dtype=dtype_name(dtype),
        **options,
    )
