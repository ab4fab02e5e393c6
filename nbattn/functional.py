"""The public functions: attention(), plan() and merge()."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, overload

import torch
from torch import Tensor

from nbattn import arguments, ops
from nbattn.backends import reference
from nbattn.backends.contract import Inputs
from nbattn.dialects.device import DeviceInfo
from nbattn.errors import InputError
from nbattn.mask import Mask
from nbattn.planner import dispatch, measured, planner
from nbattn.planner.plan import Plan
from nbattn.planner.request import Request


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    key_range: Tensor | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    backend: str = "auto",
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    return_lse: Literal[False] = False,
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    key_range: Tensor | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    backend: str = "auto",
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    key_range: Tensor | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    backend: str = "auto",
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every query over the keys that the mask lets it read.

    Heads come after the space. Tensors in the layout of torch's `scaled_dot_product_attention`,
    `[B, H, N, D]`, fit a mask of one axis as well, and are then attended over heads: no shape can
    tell, so a warning does where heads look like tokens. Give `query.transpose(1, 2)`.

    Args:
        query: `[B, *space, H, D]`, any strides.
        key: `[B, *key_space, Hk, D]`; query head h reads key head `h // (H // Hk)`.
        value: `[B, *key_space, Hk, Dv]`.
        mask: what is read, one axis per axis of the space.
        scale: of the scores; default `D ** -0.5`; 0.0 is honoured.
        softcap: c, for `c * tanh(scores / c)` after the scale.
        sink: `[H]` logits that take part in every softmax and in the logsumexp, without a value.
        key_range: int32 `[B, rank, 2]`: keys outside [start, stop) are not read (padding), whatever
            they hold. It never moves a window.
        extra_key, extra_value: `[B, E, Hk, D]`, `[B, E, Hk, Dv]`: keys that every query reads.
        backend: "auto", or a name, which then runs or raises; "reference" can be differentiated
            twice.
        require, forbid: strategies or backends that must or must not be used.
        return_lse: also return the logsumexp.

    Returns:
        `[B, *space, H, Dv]` in the query's dtype; with `return_lse` also `[B, *space, H]`, natural
        logarithm, float32 (float64 for float64), differentiable. A query without keys has output 0,
        logsumexp -inf, zero gradients.

    Raises:
        InputError: an argument does not fit, with both numbers and the fix.
        MaskError: the mask does not fit the shape.
        BackendError: no backend can, with every reason.

    >>> query = torch.randn(1, 56, 56, 2, 32)
    >>> attention(query, query, query, Mask.neighborhood((7, 7))).shape
    torch.Size([1, 56, 56, 2, 32])
    """
    arguments.check_mask(mask)
    named = {
        "key": key,
        "value": value,
        "sink": sink,
        "key_range": key_range,
        "extra_key": extra_key,
        "extra_value": extra_value,
    }
    query, named = _autocast(query, named)
    arguments.check_tensors(query, named)
    key, value, extra_key, extra_value = (
        named["key"],
        named["value"],
        named["extra_key"],
        named["extra_value"],
    )  # pyright: ignore
    arguments.check_shapes(mask, query.shape, key.shape, value.shape)
    arguments.warn_of_heads_first(query.shape, key.shape)
    arguments.check_numbers(scale, softcap)
    arguments.check_flags({"return_lse": return_lse})
    arguments.check_extras(query, key, value, sink, key_range, extra_key, extra_value)
    arguments.check_backend(backend, require, forbid)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    cap = None if softcap is None else float(softcap)
    tensors = _distinct((query, key, value, sink, key_range, extra_key, extra_value))
    if backend == "reference":
        out, lse = _reference(tensors, factor, cap, mask, require, forbid)
    else:
        differentiable = [
            t for t in (query, key, value, sink, extra_key, extra_value) if t is not None
        ]
        training = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
        transformed = torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage]
        options = ops.Options(
            mask.code(),
            factor,
            cap,
            backend,
            list(require),
            list(forbid),
            training or transformed,
            torch.are_deterministic_algorithms_enabled(),
            return_lse,
        )
        run = (
            ops.TransformableAttention.apply
            if transformed
            else ops.Attention.apply
            if training
            else ops.FORWARD
        )
        out, lse = run(*tensors, *options)  # pyright: ignore
    return (out, lse) if return_lse else out


def _distinct(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """For compilers, which refuse one tensor given twice to an autograd function."""
    if not torch.compiler.is_compiling():
        return tensors
    found: list[Tensor | None] = []
    for tensor in tensors:
        again = tensor is not None and any(tensor is other for other in found)
        found.append(tensor.view_as(tensor) if again and tensor is not None else tensor)
    return tuple(found)


def _reference(
    tensors: tuple[Any, ...],
    scale: float,
    softcap: float | None,
    mask: Mask,
    require: Sequence[str],
    forbid: Sequence[str],
) -> tuple[Tensor, Tensor]:
    """The reference outside the operator, so that torch differentiates it."""
    if require or forbid:
        query, key, value = tensors[:3]
        plan(
            mask,
            query.shape,
            key.shape,
            value_dim=value.shape[-1],
            dtype=query.dtype,
            device=query.device,
            backend="reference",
            require=require,
            forbid=forbid,
        )
    return reference.attend(Inputs(*tensors, scale=scale, softcap=softcap), mask)


def _autocast(query: Tensor, named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Under autocast, float32 and half tensors in the autocast dtype; float64 stays, as in
    torch.
    """
    if (
        not isinstance(query, Tensor)
        or query.device.type == "meta"
        or not torch.is_autocast_enabled(query.device.type)
    ):
        return query, named
    dtype = torch.get_autocast_dtype(query.device.type)

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(dtype)

    kept = {name: named[name] for name in ("sink", "key_range")}
    return cast(query), {name: cast(t) for name, t in named.items()} | kept  # pyright: ignore


def plan(
    mask: Mask,
    query_shape: Sequence[int],
    key_shape: Sequence[int] | None = None,
    *,
    value_dim: int | None = None,
    dtype: torch.dtype | str = torch.bfloat16,
    device: torch.device | str | DeviceInfo | None = None,
    training: bool = False,
    backend: str = "auto",
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    return_lse: bool = False,
    extra_keys: int = 0,
    softcap: float | None = None,
    sink: bool = False,
    key_range: bool = False,
    deterministic: bool | None = None,
    packed: bool = False,
) -> Plan:
    """What `attention` would run for these shapes, what else it could, at what cost, and why not.
    Needs no device.

    Args:
        mask: the mask.
        query_shape: `[B, *space, H, D]`.
        key_shape: `[B, *key_space, Hk, D]`; default: as the query.
        value_dim: Dv; default D.
        dtype: a torch dtype or its name.
        device: None is this machine's; a torch device; "cpu", "sm_80", "sm_90" …; or a
            `DeviceInfo`.
        training: a backward pass follows.
        backend, require, forbid, return_lse: as in `attention`.
        extra_keys: E.
        softcap: as in `attention`; sink, key_range: whether there is one.
        deterministic: None is torch's switch.
        packed: q, k and v are views of one tensor.

    Raises:
        InputError, MaskError, BackendError: as `attention`.

    >>> shapes = (1, 2048, 8, 64), (1, 512, 8, 64)
    >>> plan(Mask.causal(), *shapes, dtype="float32", device="cpu").chosen.name
    'sdpa/causal'
    """
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    flags = {
        "training": training,
        "return_lse": return_lse,
        "sink": sink,
        "key_range": key_range,
        "packed": packed,
        "deterministic": deterministic,
    }
    arguments.check_mask(mask)
    arguments.check_plan(query_shape, key_shape, value_dim, extra_keys, flags)
    arguments.check_numbers(None, softcap)
    arguments.check_traits_given(require, forbid)
    arguments.check_names(backend, dtype, device)
    return _plan(
        mask,
        tuple(query_shape),
        None if key_shape is None else tuple(key_shape),
        value_dim,
        dtype,
        device,
        backend,
        tuple(require),
        tuple(forbid),
        extra_keys,
        softcap,
        tuple(flags.values()),
    )


@lru_cache(planner.CACHE_SIZE)
def _plan(
    mask: Mask,
    query_shape: tuple[int, ...],
    key_shape: tuple[int, ...] | None,
    value_dim: int | None,
    dtype: torch.dtype | str,
    device: torch.device | str | DeviceInfo | None,
    backend: str,
    require: Any,
    forbid: Any,
    extra_keys: int,
    softcap: float | None,
    flags: tuple[bool, ...],
) -> Plan:
    training, return_lse, sink, key_range, packed, deterministic = flags
    arguments.check_mask(mask)
    key_shape = query_shape if key_shape is None else key_shape
    dim = query_shape[-1] if value_dim is None and query_shape else value_dim or 0
    arguments.check_shapes(mask, query_shape, key_shape, (*key_shape[:-1], dim))
    arguments.check_numbers(None, softcap)
    arguments.check_backend(backend, require, forbid)
    return planner.make(
        Request(
            **dispatch.shapes(mask, query_shape, key_shape),
            value_dim=dim,
            dtype=dispatch.dtype_name(dtype),
            device=dispatch.device_info(device),
            layout="packed" if packed else "contiguous",
            training=training,
            deterministic=deterministic,
            return_lse=return_lse,
            extra_keys=extra_keys,
            softcap=softcap is not None,
            sink=sink,
            key_range=key_range,
            backend=backend,
            require=require,
            forbid=forbid,
        )  # pyright: ignore
    )


def run(
    plan: Plan, query: Tensor, key: Tensor, value: Tensor, **tensors: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """`Plan.run`: attention by a plan made before, on the tensors it was made for."""
    request = plan.request
    arguments.check_run(request, query, {"key": key, "value": value, **tensors})
    place = dispatch.device_info(query.device)
    if (place.kind, place.name) != (request.device.kind, request.device.name):
        raise InputError(
            f"the plan is for {request.device.name}, the tensors are on {query.device}.",
            where=request.summary(),
            fix=f"nbattn.plan(..., device={str(query.device)!r}).",
        )
    wanted = dispatch.shapes(request.mask, query.shape, key.shape)
    wanted |= {"dtype": dispatch.dtype_name(query.dtype), "value_dim": value.shape[-1]}
    wanted |= {name: tensors.get(name) is not None for name in ("softcap", "sink", "key_range")}
    extra = tensors.get("extra_key")
    wanted["extra_keys"] = 0 if extra is None else extra.shape[1]
    given = (query, key, value, *tensors.values())
    grads = (isinstance(t, Tensor) and t.requires_grad for t in given)
    wanted["training"] = request.training or (torch.is_grad_enabled() and any(grads))
    for name, size in wanted.items():
        if getattr(request, name) != size:
            raise InputError(
                f"the plan is for {name}={getattr(request, name)}, the tensors have {size}.",
                where=request.summary(),
                fix="plan again for these shapes, or nbattn.attention(query, key, value, mask).",
            )
    chosen = plan.chosen
    return attention(
        query,
        key,
        value,
        request.mask,
        backend=chosen.backend,
        require=(chosen.strategy, *chosen.traits),
        return_lse=request.return_lse,
        **tensors,
    )


def warmup(plan: Plan) -> None:
    """`Plan.warmup`: what the first run would prepare."""
    backend: Any = ops.backend_module(plan.chosen.family)
    if hasattr(backend, "warmup"):
        backend.warmup(plan.chosen.program)


def forget() -> None:
    """Plan anew from here on, with the cost table as it is now."""
    measured.forget()
    for kept in (_plan, dispatch.planned, planner.make):
        kept.cache_clear()


def merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Join attentions of the same queries over disjoint sets of keys, as if it were one.

    Args:
        outputs: each `[B, *space, H, Dv]`.
        lses: each `[B, *space, H]`, natural logarithm; -inf where nothing was read: what the output
            holds there does not matter.

    Returns:
        The joint output in the outputs' dtype, and the logsumexp in float32 or wider;
        differentiable in all of them, as often as you like.

    Raises:
        InputError: nothing to merge, or shapes, dtypes or devices that differ.

    >>> q, k = torch.randn(1, 8, 2, 16), torch.randn(1, 8, 2, 16)
    >>> halves = (k[:, :4], k[:, 4:])
    >>> parts = [attention(q, half, half, Mask.full(), return_lse=True) for half in halves]
    >>> out, lse = merge(*zip(*parts))
    >>> torch.allclose(out, attention(q, k, k, Mask.full()), atol=1e-6)
    True
    """
    outputs, lses = arguments.check_parts(outputs, lses)
    exact = torch.promote_types(outputs[0].dtype, lses[0].dtype)
    stacked = torch.stack(lses).to(torch.promote_types(exact, torch.float32))
    empty = (stacked == float("-inf")).all(dim=0)
    safe = torch.where(empty, 0.0, stacked)
    lse = safe.logsumexp(dim=0)
    weights = torch.where(empty, 0.0, (safe - lse).exp())
    # what a part without keys holds is nobody's: kernels leave 0 there, or NaN
    out = sum(
        weight[..., None] * part.to(weight.dtype).masked_fill(nothing[..., None], 0)
        for weight, part, nothing in zip(weights, outputs, stacked == float("-inf"), strict=True)
    )
    assert isinstance(out, Tensor)
    return out.to(outputs[0].dtype), lse.masked_fill(empty, float("-inf"))
