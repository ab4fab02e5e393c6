"""The layer: a Module that projects tokens to heads, computes attention with a mask, and projects
back.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from nbattn import arguments, shapes
from nbattn.errors import BackendError, InputError
from nbattn.fixes import signatures
from nbattn.functional import attention, plan
from nbattn.joint import joint_attention
from nbattn.mask import Mask
from nbattn.nn import inputs, options, packed, projections, words
from nbattn.nn.projections import ALL
from nbattn.planner.plan import Plan
from nbattn.program.device import DeviceInfo
from nbattn.symbolic import holds

_Tokens = Tensor | None


class NeighborhoodAttention(nn.Module):
    """Multi-head attention of tokens on a grid, each over the keys that a mask allows.

    Channels come last: `x` is `[B, *space, dim]`. For images `[B, dim, H, W]` say
    `layout="channels_first"`: without it they fit if W is `dim`, which no shape check can detect.

    `qkv` and `proj` are plain `nn.Linear`s that forward calls, so that tools may replace, wrap,
    hook, quantise or shard them (docs/recipes/layers.md). The state dict has NATTEN's names,
    `qkv.weight`, `qkv.bias`, `proj.weight`, `proj.bias`, `rpb`; the rows of qkv are those of q,
    then k, then v, each head by head. Added are `q_norm.weight`, `k_norm.weight`, and the names
    of `qk_transform`. The mask is not in it. All arguments except mask and qk_transform
    are plain data, as in a file.

    Args:
        dim: channels of input and output.
        num_heads: query heads H.
        mask: the keys that each query attends to; one `Axis` per axis of the space.
        kv_heads: key and value heads Hk, a divisor of `num_heads`, which is the default.
        head_dim: D, the channels of every head; default `dim // num_heads`.
        qkv_bias: whether q, k and v have a bias; the output projection always has one.
        proj_drop: probability of dropout after the output projection.
        qk_transform: a Module between projection and attention, such as a rotary embedding:
            `(query, key) -> (query, key)`, `[B, *space, H, D]` and `[B, *key_space, Hk, D]`, of the
            same shapes; the results are cast to the dtype of the projection. It does not get extra
            tokens, which have no position on the grid. To support them it needs a method
            `extra_key(key) -> key` for their keys `[B, E, Hk, D]`: a norm normalises them, a
            rotation returns them unchanged. With `update_extra` it needs `extra_query`, too, for
            their queries `[B, E, H, D]`.
        scale: as in `attention`: factor of the scores, default `D ** -0.5`.
        qk_norm: whether queries and keys, those of extra tokens too, are normalised before
            `qk_transform`: the modules `q_norm` and `k_norm` are `nn.RMSNorm(D, eps=1e-6)`, each
            with a learned gain per channel that all heads share.
        context_dim: channels of the context and of extra tokens, if they have their own, as text
            has. Queries and keys then come from two layers, `q` and `kv`, in the place of `qkv`;
            the rows of kv are those of k, then v. Every call then needs a context.
        relative_bias: whether the parameter `rpb`, NATTEN's table `[H, 2 K - 1, …]`, is added to
            scores, as in `attention`; K = left + right + 1 are the keys of a window on an axis. It
            begins as NATTEN's, normal with a deviation of 0.02.
        layout: "channels_last", or "channels_first": x, context and result are then
            `[B, channels, *space]`, without copies: the result's memory has channels last.
        backend: as in `attention`; a named backend has no fallback.
        device, dtype: of the parameters, as in torch's modules; a dtype may be a name.

    Raises:
        InputError: a number or name is not legal, or mask is not a Mask.

    >>> layer = NeighborhoodAttention(64, 4, Mask.neighborhood((7, 7)))
    >>> layer(torch.randn(2, 14, 14, 64)).shape
    torch.Size([2, 14, 14, 64])
    >>> layer.plan_for((2, 14, 14, 64), device="sm_90").chosen.backend
    'sdpa'
    """

    @words.refuse_unknown
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
        scale: float | None = None,
        qk_norm: bool = False,
        context_dim: int | None = None,
        relative_bias: bool = False,
        layout: str = "channels_last",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        super().__init__()
        words.check_mask(mask)
        arguments.check_mask(mask)
        arguments.check_backend(backend, (), ())
        flags = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "relative_bias": relative_bias}
        arguments.check_flags(flags)
        arguments.check_numbers(scale, None)
        options.probability("proj_drop", proj_drop)
        options.transform(qk_transform)
        self.dim = options.number("dim", dim, 1)
        self.num_heads = options.number("num_heads", num_heads, 1)
        self.kv_heads = options.kv_heads(self.num_heads, kv_heads)
        self.head_dim = options.head_dim(self.dim, self.num_heads, head_dim)
        own = None if context_dim is None else options.number("context_dim", context_dim, 1)
        self.context_dim = own
        self.mask, self.backend, self.scale = mask, backend, scale
        self.layout = options.layout(layout)
        made = options.factory(device, dtype)
        queries, keys = self.num_heads * self.head_dim, 2 * self.kv_heads * self.head_dim
        if own is None:
            self.qkv = nn.Linear(self.dim, queries + keys, bias=qkv_bias, **made)
        else:
            self.q = nn.Linear(self.dim, queries, bias=qkv_bias, **made)
            self.kv = nn.Linear(own, keys, bias=qkv_bias, **made)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.head_dim, eps=1e-6, **made) if qk_norm else None for _ in range(2)
        )
        self.qk_transform = qk_transform
        self.rpb = options.table(self.num_heads, mask, made) if relative_bias else None
        self.proj = nn.Linear(queries, self.dim, **made)
        self.proj_drop = nn.Dropout(proj_drop)
        self.is_head_parallel = False  # set by HeadParallel; the numbers of heads are then a rank's
        self.space_parallel: Any = None  # set by SpaceParallel: what ranks share

    def forward(
        self,
        x: Any = None,
        context: Tensor | None = None,
        *more: Any,
        extra_tokens: Tensor | None = None,
        update_extra: bool = False,
        key_range: Any = None,
        extra_range: Any = None,
        alibi_slopes: Any = None,
        grids: Any = None,
        key_grids: Any = None,
        **others: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Computes attention of x over itself, or over a context.

        Args:
            x: `[B, *space, dim]`. A DTensor, or this rank's part, with `nn.SpaceParallel`.
            context: `[B, *key_space, dim]`, the source of keys and values; default x. With
                `context_dim` it is needed, and has that many channels.
            extra_tokens: `[B, E, dim]` that every query attends to, through the same key and value
                projections (registers, text), or `[1, E, dim]` for all of the batch. Their channels
                come last in every layout.
            update_extra: whether they are queries, too, through the same projections: they attend
                to the whole grid of keys and to one another, as in `joint_attention`.
            key_range: as in `attention`: no query attends to keys outside [start, stop).
            extra_range: as in `attention`: nor to extra tokens outside of it (padded text).
            alibi_slopes: as in `attention`, of the layer's heads; no parameter, since slopes have
                no gradient. Layers whose heads are sharded take those of their own heads.
            grids, key_grids: as in `attention`: x is then `[T, dim]`, the tokens of grids of these
                sizes, the context `[Tk, …]`, and extra tokens (or one for all) and ranges have an
                entry per grid.
            more, others: arguments of other libraries' layers, which are refused in words.

        Returns:
            `[B, *space, dim]`; with `update_extra` a pair, `[B, E, dim]` of the extra tokens as
            well. A query without keys gives `proj.bias`.

        Raises:
            InputError, MaskError, BackendError: as `attention`.
        """
        is_traced = isinstance(x, fx.Proxy)
        placed = {"key_range": key_range, "extra_range": extra_range, "alibi_slopes": alibi_slopes}
        sizes = {"grids": grids, "key_grids": key_grids}
        if is_traced or more or others:
            given: dict[str, Any] = {"x": x, "context": context, "extra_tokens": extra_tokens}
            given |= {**placed, **sizes}
            given |= {"update_extra": None if update_extra is False else update_extra}
            given = {name: value for name, value in given.items() if value is not None}
            if is_traced:
                return self._as_leaf(**given)
            raise words.refused_call(self, given, more, others)
        if grids is not None or key_grids is not None:
            named = {"extra_tokens": extra_tokens, "update_extra": update_extra}
            return packed.attend(self, x, context, **named, **placed, **sizes)
        if self.space_parallel is not None or (
            hasattr(x, "device_mesh") and not self.is_head_parallel
        ):
            from nbattn.nn import sharded

            named = {"extra_tokens": extra_tokens, "update_extra": update_extra}
            return sharded.attend(self, x, context, **named, **placed)
        self._check(x, context, extra_tokens, update_extra)
        channels_first = self.layout == "channels_first"
        if channels_first:
            x, context = x.movedim(1, -1), None if context is None else context.movedim(1, -1)
        query, key, value, *extra = self._projected(x, context, extra_tokens, update_extra)
        extras: Sequence[_Tokens] = (*(None,) * (3 - len(extra)), *extra)
        if not self._is_packed(context is None):
            query, key = self._transformed(query, key)
            extras = (*self._transformed_extras(*extras[:2]), extras[2])
            value = value.contiguous()
        results = self._attended((query, key, value), extras, **placed)
        out = results[0].movedim(-1, 1) if channels_first else results[0]
        return (out, results[1]) if len(results) > 1 else out

    @signatures.answering(words.refused_plan, own=1)
    def plan_for(
        self,
        shape: Sequence[int],
        context_shape: Sequence[int] | None = None,
        *,
        extra_tokens: int = 0,
        update_extra: bool = False,
        key_range: bool = False,
        extra_range: bool = False,
        alibi_slopes: bool = False,
        grids: Any = None,
        key_grids: Any = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | DeviceInfo | None = None,
        training: bool | None = None,
    ) -> Plan:
        """Plans what forward would run for these shapes, with the current settings.

        Args:
            shape: of x, `[B, *space, dim]`, or with channels first, as the layer has them.
            context_shape: of the context, `[B, *key_space, dim]`, likewise.
            extra_tokens: their number E.
            update_extra: whether they are queries, too; the plan is then a `JointPlan`.
            key_range, extra_range, alibi_slopes: whether there are some.
            grids, key_grids: as in forward; shapes are then `[T, dim]`.
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
        is_packed = grids is not None or key_grids is not None
        space_of = packed.tokens_of if is_packed else self._grid
        queries = space_of("shape", shape, self.dim)
        keys = queries
        if context_shape is not None:
            keys = space_of("context_shape", context_shape, self.context_dim or self.dim)
            if not is_packed:
                inputs.same_batch(shape, "context_shape", context_shape, first="shape")
        elif self.context_dim is not None:
            raise inputs.no_context(self.context_dim, "plan_for(shape, context_shape)")
        if options.number("extra_tokens", extra_tokens, 0):
            inputs.extra_key(self.qk_transform)
        if update_extra:
            self._check_update(update_extra)
        weight = self._weight()
        return plan(
            self.mask,
            (*queries, self.num_heads, self.head_dim),
            (*keys, self.kv_heads, self.head_dim),
            dtype=(projections.autocast_dtype(weight) or weight.dtype) if dtype is None else dtype,
            device=weight.device if device is None else device,
            training=self._trains() if training is None else training,
            backend=self.backend,
            extra_keys=int(extra_tokens),
            extra_queries=update_extra,
            key_range=key_range,
            extra_range=extra_range,
            alibi_slopes=alibi_slopes,
            relative_bias=self.rpb is not None,
            grids=grids,
            key_grids=key_grids,
            packed=self._is_packed(context_shape is None) and prod(queries) > 1,
        )

    def extra_repr(self) -> str:
        """The constructor's arguments; optional ones if they differ from their defaults."""
        defaults = {
            "kv_heads": self.num_heads,
            "head_dim": self.dim / self.num_heads,
            "qkv_bias": True,
            "proj_drop": 0.0,
            "scale": None,
            "qk_norm": False,
            "context_dim": None,
            "relative_bias": False,
            "layout": "channels_last",
            "backend": "auto",
        }
        first: Any = self.projections()[0]
        values = {name: getattr(self, name, None) for name in defaults}
        values |= {
            "qkv_bias": getattr(first, "bias", True) is not None,
            "proj_drop": self.proj_drop.p,
        }
        values |= {"qk_norm": self.q_norm is not None, "relative_bias": self.rpb is not None}
        changed = [f"{n}={values[n]!r}" for n, default in defaults.items() if values[n] != default]
        return ", ".join([f"{self.dim}, {self.num_heads}, {self.mask!r}", *changed])

    def __prepare_scriptable__(self) -> None:
        """Refuses torch.jit.script, which cannot read forward."""
        raise BackendError(
            "torch.jit.script cannot compile the layer; a trace of one call works.",
            "torch.jit.trace(layer, x).",
        )

    def projections(self) -> list[nn.Module]:
        """The layers that make q, k and v."""
        return [self.qkv] if self.context_dim is None else [self.q, self.kv]

    def _projected(self, x: Tensor, context: _Tokens, extra: _Tokens, update: bool) -> list[Tensor]:
        """Returns query of x, key and value of the context, key and value of extra tokens if there
        are some, with `update` their query in front; all in heads.
        """
        heads, dim = (self.num_heads, self.kv_heads, self.kv_heads), self.head_dim
        keys = slice(1, None) if self.context_dim is None else ALL
        sources = [] if context is None else [("context", context, keys)]
        if extra is not None:
            sources.append(("extra_tokens", extra, ALL if update else keys))
        queries = ("x", x, ALL if self.context_dim is not None or context is None else slice(1))
        if self.context_dim is None:
            found = projections.project("qkv", self.qkv, heads, dim, [queries, *sources])
        else:
            of_q = [queries, *(source for source in sources[1:] if update)]
            first, *others = projections.project("q", self.q, heads[:1], dim, of_q)
            of_keys = projections.project("kv", self.kv, heads[1:], dim, sources)
            found = [first, of_keys[0], *others, *of_keys[1:]]
        parts = [part for source in found for part in source]
        for n, part in enumerate(parts[3:], 3):  # where q and kv differ, so may their batches
            if not holds(part.shape[0] == x.shape[0]):
                parts[n] = part.expand(x.shape[0], -1, -1, -1)
        if update:  # views of one result that the grid's keys are not part of
            parts[3:] = (part.contiguous() for part in parts[3:])
        return parts

    def _is_packed(self, is_self_attention: bool) -> bool:
        """Whether q, k and v go to attention as views of one result. Elsewhere all are contiguous:
        q and k are new tensors there anyway.
        """
        return is_self_attention and self.q_norm is None and self.qk_transform is None

    def _transformed(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises and transforms queries and keys; the results are contiguous."""
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self._normed(self.q_norm, query), self._normed(self.k_norm, key)
        transform: Any = self.qk_transform
        if transform is None:
            return query.contiguous(), key.contiguous()
        results = inputs.pair(transform, self._called(transform, "__call__", query, key))
        return inputs.like("query", results[0], query), inputs.like("key", results[1], key)

    def _transformed_extras(self, query: _Tokens, key: _Tokens) -> tuple[_Tokens, _Tokens]:
        """Normalises and transforms queries and keys of extra tokens, where there are some."""
        found: list[_Tokens] = []
        for name, norm, part in (("query", self.q_norm, query), ("key", self.k_norm, key)):
            if part is not None and norm is not None:
                part = self._normed(norm, part)
            if part is not None and self.qk_transform is not None:
                result = self._called(self.qk_transform, f"extra_{name}", part)
                part = inputs.like(f"extra {name}", result, part)
            found.append(part)
        return found[0], found[1]

    def _attended(
        self,
        grid: tuple[Tensor, Tensor, Tensor],
        extras: Sequence[_Tokens],
        **named: Any,
    ) -> list[Tensor]:
        """Computes attention of query, key and value in heads, and the output projection: of the
        grid's tokens, and of extra tokens that are queries.
        """
        if self.is_head_parallel and not projections.is_sharded(self.proj.weight):
            raise inputs.proj_not_sharded()
        extra_query, extra_key, extra_value = extras
        named |= {"extra_key": extra_key, "extra_value": extra_value, "scale": self.scale}
        named |= {"relative_bias": self._table(), "backend": self.backend}
        found: Sequence[Any]
        if extra_query is None:
            only: Any = attention(*grid, self.mask, **named)
            found = (only,)
        else:
            found = joint_attention(*grid, self.mask, extra_query, **named)
        results = projections.called(self.proj, [part.flatten(-2) for part in found])
        return [self.proj_drop(part) for part in results]

    def _table(self) -> _Tokens:
        """The table of relative positions, where there is one: of this rank's heads."""
        table: Any = self.rpb
        return table.to_local() if self.is_head_parallel and table is not None else table

    def _normed(self, norm: nn.Module, tokens: Tensor) -> Tensor:
        """Applies a norm in the dtype of its gain; under autocast tokens have a shorter one."""
        gain = getattr(norm, "weight", tokens)
        return self._called(norm, "__call__", tokens.to(gain.dtype)).to(tokens.dtype)

    def _called(self, module: nn.Module, method: str, *tensors: Tensor) -> Any:
        """Calls a module whose parameters all heads share; where each rank has some of the heads,
        their gradients are the sum over all ranks.
        """
        if not self.is_head_parallel:
            return getattr(module, method)(*tensors)
        from nbattn.nn import parallel

        first: Any = self.projections()[0]
        mesh = first.weight.device_mesh
        return parallel.called_with_summed_gradients(mesh, module, method, *tensors)

    def _as_leaf(self, x: Any, **named: Any) -> Any:
        """What forward returns to torch.fx: a call of this module, as one step of the graph."""
        given = (x, named.pop("context")) if "context" in named else (x,)
        path = x.tracer.path_of_module(self)
        if not path:
            raise InputError(
                "torch.fx traces modules that have a layer; the layer alone is one step.",
                "torch.fx.symbolic_trace(torch.nn.Sequential(layer)).",
            )
        return x.tracer.create_proxy("call_module", path, given, named)

    def _check(
        self, x: Tensor, context: _Tokens, extra_tokens: _Tokens, update_extra: bool
    ) -> None:
        """Checks that the inputs fit the layer and one another."""
        self._check_input("x", x, self.dim)
        keys = self.dim if self.context_dim is None else self.context_dim
        if context is not None:
            self._check_input("context", context, keys)
            inputs.same_batch(x.shape, "context", context.shape)
        elif self.context_dim is not None:
            raise inputs.no_context(keys, "layer(x, context)")
        if extra_tokens is not None:
            self._check_input("extra_tokens", extra_tokens, keys)
            inputs.same_batch(x.shape, "extra_tokens", extra_tokens.shape)
            inputs.extra_key(self.qk_transform)
        if update_extra:
            self._check_update(update_extra)
            if extra_tokens is None:
                raise inputs.nothing_to_update()
        if self.layout == "channels_last":
            shapes.warn_of_channels_first(x.shape, self.dim)

    def _check_update(self, update_extra: object) -> None:
        """Checks that extra tokens can be queries."""
        arguments.check_flags({"update_extra": update_extra})
        inputs.extra_key(self.qk_transform, "extra_query")
        if self.context_dim not in (None, self.dim):
            raise inputs.no_queries(self.dim, self.context_dim or 0)

    def _check_input(self, name: str, tokens: Tensor, channels: int) -> None:
        """Checks that an input is a dense tensor of the layer's shape."""
        is_extra = name == "extra_tokens"
        first = self.layout == "channels_first" and not is_extra
        dimensions = 3 if is_extra else self.mask.rank + 2
        if not inputs.fits(tokens, dimensions, 1 if first else -1, channels):
            code = f"NeighborhoodAttention({self.extra_repr()})"
            inputs.tokens(name, tokens, self.mask, channels, first, code)

    def _grid(self, name: str, shape: Sequence[int], channels: int) -> tuple[int, ...]:
        """Returns batch and space of a shape that `plan_for` gets, as plain integers."""
        sizes = inputs.sizes_of(name, shape)
        first = self.layout == "channels_first"
        code = f"NeighborhoodAttention({self.extra_repr()})"
        inputs.shape(name, sizes, self.mask, channels, first, code, is_tensor=False)
        return (sizes[0], *sizes[2:]) if first else sizes[:-1]

    def _weight(self) -> Tensor:
        """A tensor with dtype and device of the projections, whatever replaced them."""
        for module in self.projections():
            weight = getattr(module, "weight", None)
            found = [weight] if isinstance(weight, Tensor) else [*module.parameters()]
            found = [tensor for tensor in found if tensor.is_floating_point()]
            if found:
                return found[0]
        return next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))

    def _trains(self) -> bool:
        """Whether q, k or v would need a gradient because of a parameter."""
        others = (self.q_norm, self.k_norm, self.qk_transform)
        modules = [*self.projections(), *(module for module in others if module is not None)]
        trained = [p for module in modules for p in module.parameters()]
        trained += [] if self.rpb is None else [self.rpb]
        return torch.is_grad_enabled() and any(p.requires_grad for p in trained)


signatures.show(NeighborhoodAttention.forward, x="Tensor")
