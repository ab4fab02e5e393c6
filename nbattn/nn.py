"""The layer: a Module that projects tokens to heads, computes attention with a mask, and projects
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbattn import arguments, shapes
from nbattn.axis import whole
from nbattn.errors import InputError, MaskError, counted, kind
from nbattn.functional import attention, plan
from nbattn.mask import Mask
from nbattn.planner.plan import Plan
from nbattn.program.device import DeviceInfo
from nbattn.symbolic import holds


class NeighborhoodAttention(nn.Module):
    """Multi-head attention of tokens on a grid, each over the keys that a mask allows.

    Channels come last: `x` is `[B, *space, dim]`. Pass an image `[B, C, H, W]` as
    `x.movedim(1, -1)`; unmoved, it fits if W is `dim`, which no shape check can detect.

    The state dict has NATTEN's names, `qkv.weight`, `qkv.bias`, `proj.weight`, `proj.bias`, and the
    names of `qk_transform`. The rows of qkv are those of q, then k, then v, each head by head. The
    mask is not in it. All arguments except mask and qk_transform are plain data, as in a file.

    Args:
        dim: channels of input and output.
        num_heads: query heads H.
        mask: the keys that each query attends to; one `Axis` per axis of the space.
        kv_heads: key and value heads Hk, a divisor of `num_heads`, which is the default.
        head_dim: D, the channels of every head; default `dim // num_heads`.
        qkv_bias: whether q, k and v have a bias; the output projection always has one.
        proj_drop: probability of dropout after the output projection.
        qk_transform: a Module between projection and attention, for rotary embeddings or QK norm:
            `(query, key) -> (query, key)`, `[B, *space, H, D]` and `[B, *key_space, Hk, D]`, of the
            same shapes; the results are cast to the dtype of the projection. It does not get extra
            tokens, which have no position on the grid. To support them it needs a method
            `extra_key(key) -> key` for their keys `[B, E, Hk, D]`: a norm normalises them, a
            rotation returns them unchanged.
        backend: as in `attention`; a named backend has no fallback.

    Raises:
        InputError: a number or name is not legal, or mask is not a Mask.

    >>> layer = NeighborhoodAttention(64, 4, Mask.neighborhood((7, 7)))
    >>> layer(torch.randn(2, 14, 14, 64)).shape
    torch.Size([2, 14, 14, 64])
    >>> layer.plan_for((2, 14, 14, 64), device="sm_90").chosen.backend
    'sdpa'
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mask: Mask,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        qk_transform: nn.Module | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        arguments.check_mask(mask)
        arguments.check_backend(backend, (), ())
        arguments.check_flags({"qkv_bias": qkv_bias})
        _check_probability("proj_drop", proj_drop)
        if qk_transform is not None and not isinstance(qk_transform, nn.Module):
            raise InputError(
                f"qk_transform is {kind(qk_transform)}, not a torch.nn.Module.",
                "a Module whose forward(query, key) returns both.",
            )
        self.dim, self.num_heads = _whole("dim", dim, 1), _whole("num_heads", num_heads, 1)
        self.kv_heads = _kv_heads(self.num_heads, kv_heads)
        self.head_dim = _head_dim(self.dim, self.num_heads, head_dim)
        self.mask, self.backend = mask, backend
        heads = (self.num_heads, self.kv_heads, self.kv_heads)
        self.qkv = Projection(self.dim, heads, self.head_dim, bias=qkv_bias)
        self.qk_transform = qk_transform
        self.proj = nn.Linear(self.num_heads * self.head_dim, self.dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        extra_tokens: Tensor | None = None,
        key_range: Tensor | None = None,
    ) -> Tensor:
        """Computes attention of x over itself, or over a context.

        Args:
            x: `[B, *space, dim]`.
            context: `[B, *key_space, dim]`, the source of keys and values; default x.
            extra_tokens: `[B, E, dim]` that every query attends to, through the same key and value
                projections (registers, text); they are not queries.
            key_range: int32 `[B, rank, 2]`: no query attends to keys outside [start, stop).

        Returns:
            `[B, *space, dim]`. A query without keys gives `proj.bias`.

        Raises:
            InputError, MaskError, BackendError: as `attention`.
        """
        self._check(x, context, extra_tokens)
        query, key, value, extra_key, extra_value = self.qkv(x, context, extra_tokens)
        query, key, extra_key = self._transform(query, key, extra_key)
        out = attention(
            query,
            key,
            value,
            self.mask,
            key_range=key_range,
            extra_key=extra_key,
            extra_value=extra_value,
            backend=self.backend,
        )
        return self.proj_drop(self.proj(out.flatten(-2)))

    def plan_for(
        self,
        shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        extra_tokens: int = 0,
        key_range: bool = False,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | DeviceInfo | None = None,
        training: bool | None = None,
    ) -> Plan:
        """Plans what forward would run for these shapes, with the current settings.

        Args:
            shape: of x, `[B, *space, dim]`.
            context_shape: of the context, `[B, *key_space, dim]`.
            extra_tokens: their number E.
            key_range: whether there is one.
            dtype: default: that of the parameters, or of autocast if it is on.
            device: default: that of the parameters; a name such as "sm_90" needs no device.
            training: whether a backward pass follows; default: whether grad mode is on and a
                parameter of q, k or v is trained. Pass it if only x needs a gradient.

        Raises:
            InputError, MaskError, BackendError: as forward.

        >>> layer = NeighborhoodAttention(512, 8, Mask.sliding_window(255))
        >>> request = layer.plan_for((1, 4096, 512), dtype="bfloat16", device="sm_90").request
        >>> request.query_space, request.heads, request.head_dim, request.training
        ((4096,), 8, 64, True)
        """
        sizes = self._sizes("shape", shape)
        keys = sizes if context_shape is None else self._sizes("context_shape", context_shape)
        _same_batch(sizes, "context_shape", keys, first="shape")
        if _whole("extra_tokens", extra_tokens, 0):
            self._check_extra_key()
        weight = self.qkv.weight
        return plan(
            self.mask,
            (*sizes[:-1], self.num_heads, self.head_dim),
            (*keys[:-1], self.kv_heads, self.head_dim),
            dtype=(_autocast(weight) or weight.dtype) if dtype is None else dtype,
            device=weight.device if device is None else device,
            training=self._trains() if training is None else training,
            backend=self.backend,
            extra_keys=int(extra_tokens),
            key_range=key_range,
        )

    def extra_repr(self) -> str:
        """The constructor's arguments; optional ones if they differ from their defaults."""
        defaults = {
            "kv_heads": self.num_heads,
            "head_dim": self.dim / self.num_heads,
            "qkv_bias": True,
            "proj_drop": 0.0,
            "backend": "auto",
        }
        bias: Any = self.qkv.bias
        values = {name: getattr(self, name, None) for name in defaults}
        values |= {"qkv_bias": bias is not None, "proj_drop": self.proj_drop.p}
        changed = [f"{n}={values[n]!r}" for n, default in defaults.items() if values[n] != default]
        return ", ".join([f"{self.dim}, {self.num_heads}, {self.mask!r}", *changed])

    def _trains(self) -> bool:
        """Whether q, k or v would need a gradient because of a parameter."""
        modules = filter(None, (self.qkv, self.qk_transform))
        trained = (p.requires_grad for module in modules for p in module.parameters())
        return torch.is_grad_enabled() and any(trained)

    def _transform(
        self, query: Tensor, key: Tensor, extra_key: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Applies the transform to queries and keys; results have the layout of the projection."""
        transform: Any = self.qk_transform
        if transform is None:
            return query, key, extra_key
        results = transform(query, key)
        if not isinstance(results, tuple) or len(results) != 2:
            raise InputError(
                f"{kind(transform)} as qk_transform returned {kind(results)}, not two tensors.",
                "return query, key.",
            )
        new_query = _like("query", results[0], query)
        new_key = _like("key", results[1], key)
        if extra_key is not None:
            extra_key = _like("extra key", transform.extra_key(extra_key), extra_key)
        return new_query, new_key, extra_key

    def _check(self, x: Tensor, context: Tensor | None, extra_tokens: Tensor | None) -> None:
        """Checks that the shapes fit the layer and one another."""
        for name, tokens in (("x", x), ("context", context), ("extra_tokens", extra_tokens)):
            if tokens is None and name != "x":
                continue
            if not isinstance(tokens, Tensor):
                actual = "None" if tokens is None else kind(tokens)
                raise InputError(f"{name} is {actual}, not a tensor.", self._expected(name))
            if tokens.is_nested or tokens.layout != torch.strided:
                raise InputError(
                    f"{name} is a sparse or nested tensor.",
                    f"{name} dense and padded, with key_range=.",
                )
            self._check_shape(name, tokens.shape)
            _same_batch(x.shape, name, tokens.shape)
        shapes.warn_of_channels_first(x.shape, self.dim)
        if extra_tokens is not None:
            self._check_extra_key()

    def _check_extra_key(self) -> None:
        """Checks that the transform, if any, has a method for the keys of extra tokens."""
        if self.qk_transform is not None and not callable(
            getattr(self.qk_transform, "extra_key", None)
        ):
            raise InputError(
                f"extra_tokens with {kind(self.qk_transform)} as qk_transform, which has no method "
                "extra_key for their keys.",
                "give it the method: def extra_key(self, key): return key.",
            )

    def _check_shape(self, name: str, shape: Sequence[int]) -> None:
        rank = 1 if name == "extra_tokens" else self.mask.rank
        if len(shape) == rank + 2 and holds(shape[-1] == self.dim):
            return
        fix = self._expected(name)
        if len(shape) != rank + 2:
            problem = (
                f"{name} has {counted(len(shape), 'dimension')} {list(shape)}, not {rank + 2}."
            )
            raise InputError(problem, fix, repr(self.mask))
        if shape[1] == self.dim and name in ("x", "context"):
            fix = f"{name}.movedim(1, -1): channels come last."
        problem = f"{name} has {counted(shape[-1], 'channel')} {list(shape)}, not {self.dim}."
        raise InputError(problem, fix, repr(self.mask))

    def _expected(self, name: str) -> str:
        space = "E" if name == "extra_tokens" else ", ".join("XYZ"[: self.mask.rank])
        return f"{name} as [B, {space}, {self.dim}]."

    def _sizes(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns a shape as plain integers."""
        if not isinstance(shape, Sequence) or isinstance(shape, str):
            raise InputError(f"{name} is {kind(shape)}, not a shape.", f"{name}=x.shape.")
        sizes = tuple(_whole(f"{name}[{n}]", size, 0) for n, size in enumerate(shape))
        self._check_shape(name, sizes)
        return sizes


class Projection(nn.Linear):
    """One matrix for q, k and v, whose parts are applied separately.

    So each result is contiguous without a copy, and cross attention computes no unused part. It is
    called as a module, once per forward, so that hooks, parametrisations and sharding work. Its
    replacements (adapters, quantised layers) must take and return the same.
    """

    def __init__(self, dim: int, heads: tuple[int, int, int], head_dim: int, *, bias: bool) -> None:
        super().__init__(dim, sum(heads) * head_dim, bias=bias)
        self.heads, self.head_dim = heads, head_dim

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, context: Tensor | None, extra_tokens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """Returns query of x, key and value of context, key and value of extra tokens, in heads."""
        weight = self.weight  # taken once: a parametrisation computes it
        x = _fitting("x", x, weight)
        context = x if context is None else _fitting("context", context, weight)
        query, key, value = self._parts(weight)
        grid = (_heads(x, *query), _heads(context, *key), _heads(context, *value))
        if extra_tokens is None:
            return *grid, None, None
        extra_tokens = _fitting("extra_tokens", extra_tokens, weight)
        return *grid, _heads(extra_tokens, *key), _heads(extra_tokens, *value)

    def _parts(self, weight: Tensor) -> list[tuple[Tensor, Tensor | None, tuple[int, int]]]:
        """Returns weight, bias and (heads, head_dim) of q, k, v."""
        rows = [heads * self.head_dim for heads in self.heads]
        bias: Any = self.bias  # may be None, though torch's annotation excludes it
        biases = [None] * 3 if bias is None else bias.split(rows)
        shapes = [(heads, self.head_dim) for heads in self.heads]
        return list(zip(weight.split(rows), biases, shapes, strict=True))


def _heads(tokens: Tensor, weight: Tensor, bias: Tensor | None, shape: tuple[int, int]) -> Tensor:
    return nn.functional.linear(tokens, weight, bias).unflatten(-1, shape)


def _autocast(weight: Tensor) -> torch.dtype | None:
    """The autocast dtype on the device of this weight; None if autocast is off, or for float64."""
    place = weight.device.type
    if weight.dtype == torch.float64 or place == "meta" or not torch.is_autocast_enabled(place):
        return None
    return torch.get_autocast_dtype(place)


def _fitting(name: str, tokens: Tensor, weight: Tensor) -> Tensor:
    """Checks tokens against a weight; under autocast casts them once for all parts."""
    if tokens.device != weight.device:
        raise InputError(
            f"{name} is on {tokens.device}, the layer on {weight.device}.",
            f"{name}.to({str(weight.device)!r}).",
        )
    cast = _autocast(weight)
    if cast is not None and tokens.is_floating_point() and tokens.dtype != torch.float64:
        return tokens.to(cast)
    if tokens.dtype != weight.dtype:
        actual, expected = (str(t.dtype).removeprefix("torch.") for t in (tokens, weight))
        raise InputError(
            f"{name} is {actual}, the layer {expected}.", f"{name}.to({weight.dtype})."
        )
    return tokens


def _whole(name: str, value: int, low: int) -> int:
    """Returns an integer; raises an InputError with the message of masks."""
    try:
        return whole(name, value, low)
    except MaskError as error:
        raise InputError(error.problem, error.fix) from None


def _kv_heads(heads: int, argument: int | None) -> int:
    kv_heads = heads if argument is None else _whole("kv_heads", argument, 1)
    if heads % kv_heads:
        raise InputError(
            f"num_heads={heads} is no multiple of kv_heads={kv_heads}.",
            f"a kv_heads that divides {heads}; query head h uses key head h // (H // Hk).",
        )
    return kv_heads


def _head_dim(dim: int, heads: int, argument: int | None) -> int:
    if argument is not None:
        return _whole("head_dim", argument, 1)
    if dim % heads:
        raise InputError(
            f"dim={dim} is no multiple of num_heads={heads}.",
            f"head_dim={max(1, dim // heads)}, or a num_heads that divides {dim}.",
        )
    return dim // heads


def _check_probability(name: str, value: float) -> None:
    legal = f"0 <= {name} <= 1."
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputError(f"{name}={value!r} is {kind(value)}, not a number.", legal)
    if not 0 <= value <= 1:
        raise InputError(f"{name}={value} is not a probability.", legal)


def _same_batch(x: Sequence[int], name: str, shape: Sequence[int], first: str = "x") -> None:
    if not holds(x[0] == shape[0]):
        raise InputError(
            f"batch differs: {x[0]} in {first}, {shape[0]} in {name}.",
            "the same batch in both.",
            f"{first} {list(x)} {name} {list(shape)}",
        )


def _like(name: str, result: object, before: Tensor) -> Tensor:
    """Returns a transform's result in the dtype and layout of its input; checks its shape."""
    if not isinstance(result, Tensor) or result.shape != before.shape:
        actual = list(result.shape) if isinstance(result, Tensor) else kind(result)
        raise InputError(
            f"qk_transform made the {name} {list(before.shape)} into {actual}.",
            "a result of the same shape.",
        )
    return result.to(before.dtype).contiguous()
