"""The public functions attention() and plan(), and how a given plan runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, overload

import torch
from torch import Tensor

from nbattn import (
    arguments,
    autograd,
    execute,
    export,
    key_ranges,
    known_calls,
    mistaken_places,
    mistaken_words,
    ops,
    packing,
    shapes,
)
from nbattn.backends import families
from nbattn.backends.dense import reference
from nbattn.backends.inputs import TENSORS, Inputs
from nbattn.fixes import signatures
from nbattn.grids import PackedGrids
from nbattn.joining import merge as merge
from nbattn.mask import Mask
from nbattn.planner import joint_plan, planner
from nbattn.planner.plan import Plan
from nbattn.planner.planner import Signature
from nbattn.program.device import DeviceInfo

_LOCAL = (Tensor, torch.nn.Parameter, type(None))  # types that no distributed tensor has


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
    key_range: Tensor | Sequence[Any] | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    extra_range: Tensor | Sequence[Any] | None = None,
    relative_bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    grids: Any = None,
    key_grids: Any = None,
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
    key_range: Tensor | Sequence[Any] | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    extra_range: Tensor | Sequence[Any] | None = None,
    relative_bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    grids: Any = None,
    key_grids: Any = None,
    backend: str = "auto",
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def attention(
    query: Any = None,
    key: Any = None,
    value: Any = None,
    mask: Any = None,
    *more: Any,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    key_range: Tensor | Sequence[Any] | None = None,
    extra_key: Tensor | None = None,
    extra_value: Tensor | None = None,
    extra_range: Tensor | Sequence[Any] | None = None,
    relative_bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    grids: Any = None,
    key_grids: Any = None,
    backend: str = "auto",
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    return_lse: bool = False,
    **unknown: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Computes attention of every query over the keys that the mask allows.

    Heads come after the space. Tensors in the layout of torch's `scaled_dot_product_attention`,
    `[B, H, N, D]`, also fit a mask of one axis, but attention would then run over heads. Shapes
    alone cannot prove this; a warning is given if it is likely. Pass `query.transpose(1, 2)`.

    DTensors of one mesh share the batch, the heads or the space, as their placements say; queries
    may be on all ranks while keys are cut (decoding). The result has the query's placements. Other
    tensors are whole on every rank, and their gradients this rank's share: see
    docs/recipes/distributed.md.

    Args:
        query: `[B, *space, H, D]`, any strides.
        key: `[B, *key_space, Hk, D]`; query head h uses key head `h // (H // Hk)`.
        value: `[B, *key_space, Hk, Dv]`.
        mask: the keys that each query attends to; one `Axis` per axis of the space. It must be
            given: `Mask.full(rank=1)` is the one without limits.
        scale: factor of the scores; default `D ** -0.5`; 0.0 means 0.
        softcap: c, for `c * tanh(scores / c)` after the scale.
        sink: `[H]` logits that are added to every softmax and to the logsumexp, without a value.
        key_range: whole numbers `[B, rank, 2]`, or `[B, 2]` for one axis, as a tensor or lists: no
            query attends to keys outside [start, stop), which may hold anything (padding). It never
            moves a window. `key_range_from` makes it from a padding mask.
        extra_key, extra_value: `[B, E, Hk, D]`, `[B, E, Hk, Dv]`: keys that every query attends to,
            without a position.
        extra_range: whole numbers `[B, 2]`, as a tensor or lists: no query attends to extra keys
            outside [start, stop), which may hold anything (padded text).
        relative_bias: `[H, 2 K - 1, …]`, one side per axis with K = left + right + 1: the number
            `[h, t - u + K - 1, …]` is added to the score of a query and a key, whose class
            coordinates on an axis are u and t (NATTEN's rpb; positions, without dilation). It is
            trained, and in any floating dtype. Masks need finite sides and no prefix.
        alibi_slopes: float32 `[H]` or `[B, H]`: `slope * |p - j|` is subtracted from the score of a
            query at position p on the key axis and key j (ALiBi). Masks of one axis have it, but
            circular ones; it has no gradient.
        grids: sizes `[(14, 14), (20, 33), …]` of grids that are packed one after another: the query
            is `[T, H, D]`, key and value `[Tk, Hk, …]`, rows of a grid are row-major, results are
            alike, and each grid is on its own. B is then the number of grids. A list, or `Grids`.
        key_grids: the sizes of the keys' grids, if they are others.
        backend: "auto", or the name of a backend, which runs or raises; "reference" supports double
            backward.
        require, forbid: strategies or backends that must or must not be used.
        return_lse: whether to return the logsumexp as well.

    Returns:
        `[B, *space, H, Dv]` in the query's dtype; with `return_lse` also `[B, *space, H]`, natural
        logarithm, float32 (float64 for float64), differentiable. A query without keys has output 0,
        logsumexp -inf, zero gradients.

    Raises:
        InputError: an argument does not fit, with both numbers and the fix.
        MaskError: the mask does not fit the shape.
        BackendError: no backend supports the call; the message has every reason.

    >>> query = torch.randn(1, 56, 56, 2, 32)
    >>> attention(query, query, query, Mask.neighborhood((7, 7))).shape
    torch.Size([1, 56, 56, 2, 32])
    """
    if unknown or more:
        shape = getattr(query, "shape", None)
        options = {
            **{"scale": scale, "softcap": softcap, "sink": sink, "key_range": key_range},
            **{"extra_key": extra_key, "extra_value": extra_value, "extra_range": extra_range},
            **{"relative_bias": relative_bias, "alibi_slopes": alibi_slopes},
            **{"grids": grids, "key_grids": key_grids},
            "backend": None if backend == families.AUTO else backend,
            **{"require": require or None, "forbid": forbid or None},
            "return_lse": return_lse or None,
        }
        raise (
            mistaken_words.refusal("attention", unknown, _ARGUMENTS, mask, shape, options)
            if unknown
            else mistaken_places.surplus(more, mask, rank=len(shape) - 3 if shape else 1)
        )
    packed: Any = None
    if grids is not None or key_grids is not None:
        apart = packing.runs_apart(query, grids, key_grids)
        packed = None if apart else packing.packed_of(mask, grids, key_grids)
    if key_range is not None and isinstance(query, Tensor):
        key_range = key_ranges.standard(key_range, query, packed)
    if extra_range is not None and isinstance(query, Tensor):
        extra_range = key_ranges.of_extra(extra_range, query)
    tensors = (query, key, value, sink, key_range, extra_key, extra_value)
    tensors = (*tensors, extra_range, relative_bias, alibi_slopes)
    call = None
    if not torch.compiler.is_dynamo_compiling():
        call = known_calls.key(tensors, mask, softcap, backend, require, forbid, return_lse, packed)
        known = known_calls.look_up(call)
        if known is not None:
            return known_calls.run(known, tensors, scale, softcap)
    if packing.runs_apart(query, grids, key_grids):
        options = {
            **{"scale": scale, "softcap": softcap, "sink": sink, "key_range": key_range},
            **{"extra_key": extra_key, "extra_value": extra_value, "extra_range": extra_range},
            **{"relative_bias": relative_bias, "alibi_slopes": alibi_slopes, "mask": mask},
            **{"grids": grids, "key_grids": key_grids, "backend": backend},
            **{"require": require, "forbid": forbid, "return_lse": return_lse},
        }
        return packing.apart(attention, (query, key, value), options)
    inputs = checked(tensors, mask, scale, softcap, packed)
    arguments.check_flags({"return_lse": return_lse})
    arguments.check_backend(backend, require, forbid)
    if any(type(given) not in _LOCAL and hasattr(given, "device_mesh") for given in tensors):
        from nbattn.distributed import tensors as distributed

        found = {"backend": backend, "require": require, "forbid": forbid, "return_lse": return_lse}
        return distributed.attend(inputs, mask, found)
    out, lse = _computed(call, inputs, mask, backend, tuple(require), tuple(forbid), return_lse)
    return (out, lse) if return_lse else out  # pyright: ignore


def checked(
    tensors: tuple[Any, ...],
    mask: Mask,
    scale: float | None,
    softcap: float | None,
    packed: Any,  # `PackedGrids`, or `TracedGrids` for compilers
) -> Inputs:
    """Checks tensors, mask and numbers; returns them, cast for autocast, with their defaults."""
    if any(given is None or isinstance(given, Mask) for given in tensors[:3]):
        raise mistaken_places.missing(*tensors[:3])
    arguments.check_mask(mask, getattr(tensors[0], "ndim", 4) - 3)
    names = TENSORS[1:]
    query, named = autocast(tensors[0], dict(zip(names, tensors[1:], strict=True)))
    arguments.check_tensors(query, named)
    tensors = (query, *(named[name] for name in names))
    _, key, value, *optional = tensors
    if packed is None:
        shapes.check_shapes(mask, query.shape, key.shape, value.shape)
        shapes.warn_of_heads_first(query.shape, key.shape)
    else:
        packing.check_shapes(mask, packed, query.shape, key.shape, value.shape)
    arguments.check_numbers(scale, softcap)
    arguments.check_optional(mask, query, key, value, *optional, packed=packed)
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    cap = None if softcap is None else float(softcap)
    return Inputs(*tensors, scale=factor, softcap=cap, grids=packed)


def _computed(
    call: tuple[object, ...] | None,
    inputs: Inputs,
    mask: Mask,
    backend: str,
    require: tuple[str, ...],
    forbid: tuple[str, ...],
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Computes attention by the reference, by a plan, or by the operators; stores the plan of a
    plain call for later ones like it.
    """
    if export.is_wanted_at_once():
        return export.attend(inputs, mask)
    if backend == "reference" and not (require or forbid):
        return reference.attend(inputs, mask)  # nothing to plan; torch differentiates it
    deterministic = torch.are_deterministic_algorithms_enabled()
    tensors = tuple(getattr(inputs, name) for name in TENSORS)  # which torch 2.8 can trace
    if backend != "reference" and not autograd.is_plain(tensors):
        options = ops.Options(
            mask.code(),
            *ops.flat_grids(inputs.grids),
            inputs.scale,
            inputs.softcap,
            backend,
            ops.joined_names(require, forbid),
            False,  # training: the operator finds out when it runs, as a trace is used for both
            deterministic,
            return_lse,
        )
        return _operator(_distinct(tensors), options)
    training = autograd.trains(tensors)
    plan = execute.planned(
        mask,
        inputs,
        backend=backend,
        require=require,
        forbid=forbid,
        training=training,
        deterministic=deterministic,
        return_lse=return_lse,
    )
    results = attend_by_plan(plan, inputs, training=training)
    if call is not None and backend != "reference":
        known_calls.keep(call, mask, plan)
    return results


def attend_by_plan(plan: Plan, inputs: Inputs, *, training: bool) -> tuple[Tensor, Tensor | None]:
    """Runs a plan; returns the output, and the logsumexp if the plan computes it."""
    request = plan.request
    if plan.chosen.runner == "reference":
        return reference.attend(inputs, request.mask)
    return autograd.attend(plan, inputs, return_lse=request.return_lse, training=training)


def _operator(tensors: tuple[Tensor | None, ...], options: ops.Options) -> tuple[Tensor, Tensor]:
    """Calls the operator, for compilers, transforms and modes; returns output and logsumexp."""
    operands = (*tensors, *(None,) * (len(TENSORS) - len(tensors)), *options)
    if not autograd.is_transformed():
        return ops.FORWARD(*operands)
    if torch.compiler.is_compiling():  # torch.compile has no autograd functions under transforms
        why = "torch.func's transforms of attention run outside of compiled graphs"
        torch._dynamo.graph_break(msg=why)  # pyright: ignore[reportPrivateUsage]
        return torch.compiler.disable(autograd.transformed)(*operands)  # pyright: ignore
    return autograd.transformed(*operands)


def _distinct(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Makes repeated tensors distinct for compilers: their autograd functions refuse repeats."""
    if not torch.compiler.is_compiling():
        return tensors
    distinct: list[Tensor | None] = []
    for tensor in tensors:
        is_repeat = tensor is not None and any(tensor is earlier for earlier in distinct)
        distinct.append(tensor.view_as(tensor) if is_repeat and tensor is not None else tensor)
    return tuple(distinct)


def autocast(query: Tensor, named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Casts float32 and half tensors to the autocast dtype, if autocast is on; float64 stays, as
    in torch.
    """
    if (
        not isinstance(query, Tensor)
        or query.device.type == "meta"
        or not torch.is_autocast_enabled(query.device.type)
    ):
        return query, named
    dtype = torch.get_autocast_dtype(query.device.type)

    def cast(given: Any) -> Any:
        if not isinstance(given, Tensor) or not given.is_floating_point():
            return given  # what is no tensor is refused by a later check
        return given if given.dtype == torch.float64 else given.to(dtype)

    uncast = arguments.OF_ANY_DTYPE
    return cast(query), {n: t if n in uncast else cast(t) for n, t in named.items()}  # pyright: ignore


@signatures.answering(mistaken_places.refusal)
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
    extra_queries: bool = False,
    softcap: float | None = None,
    sink: bool = False,
    key_range: bool = False,
    extra_range: bool = False,
    relative_bias: bool = False,
    alibi_slopes: bool = False,
    grids: Any = None,
    key_grids: Any = None,
    deterministic: bool | None = None,
    packed: bool = False,
    **unknown: Any,
) -> Plan:
    """Plans `attention` for these shapes: the chosen program, all others, their costs, and the
    reasons against them. Needs no device.

    Args:
        mask: the mask.
        query_shape: `[B, *space, H, D]`.
        key_shape: `[B, *key_space, Hk, D]`; default: that of the query.
        value_dim: Dv; default D.
        dtype: a torch dtype or its name.
        device: None is the device of this machine; or a torch device; "cpu", "sm_90", "gfx942" …;
            or a `DeviceInfo`.
        training: whether a backward pass follows.
        backend, require, forbid, return_lse: as in `attention`.
        extra_keys: E, the number of extra keys.
        extra_queries: whether the extra tokens are queries, too, as in `joint_attention`: the
            result is then a `JointPlan`, which has the plans of both parts.
        softcap: as in `attention`; sink, key_range, extra_range, relative_bias, alibi_slopes:
            whether there is one.
        grids, key_grids: as in `attention`; the query_shape is then `[T, H, D]`.
        deterministic: None is the setting of torch.
        packed: whether q, k and v are views of one tensor.

    Raises:
        InputError, MaskError, BackendError: as `attention`.

    >>> shapes = (1, 2048, 8, 64), (1, 512, 8, 64)
    >>> plan(Mask.causal("top-left"), *shapes, dtype="bfloat16", device="sm_90").chosen.name
    'sdpa/causal'
    """
    if unknown:
        raise mistaken_words.refusal("plan", unknown, _PLAN_ARGUMENTS, mask, query_shape)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    flags = {
        "training": training,
        "return_lse": return_lse,
        "sink": sink,
        "key_range": key_range,
        "extra_range": extra_range,
        "relative_bias": relative_bias,
        "alibi_slopes": alibi_slopes,
        "packed": packed,
        "extra_queries": extra_queries,
        "deterministic": deterministic,
    }
    arguments.check_mask(mask)
    arguments.check_plan(query_shape, key_shape, value_dim, extra_keys, flags)
    arguments.check_numbers(None, softcap)
    arguments.check_names_given(require, forbid)
    arguments.check_names(backend, dtype, device)
    dim = query_shape[-1] if value_dim is None else value_dim
    key_shape = query_shape if key_shape is None else key_shape
    sizes = tuple(query_shape), tuple(key_shape)
    packed_grids: Any = None
    if grids is not None or key_grids is not None:
        packed_grids = packing.packed_of(mask, grids, key_grids)
    _check_once(mask, *sizes, dim, backend, tuple(require), tuple(forbid), packed_grids)
    return (joint_plan if extra_queries else planner).planned(
        Signature(
            mask,
            *sizes,
            dim,
            dtype,
            device,
            layout="packed" if packed else "contiguous",
            extra_keys=extra_keys,
            softcap=softcap is not None,
            sink=sink,
            key_range=key_range,
            extra_range=extra_range,
            relative_bias=relative_bias,
            alibi_slopes=alibi_slopes,
            training=training,
            deterministic=deterministic,
            return_lse=return_lse,
            backend=backend,
            require=tuple(require),
            forbid=tuple(forbid),
            threads=torch.get_num_threads(),
            grids=packed_grids,
        )
    )


@lru_cache(planner.CACHE_SIZE)
def _check_once(
    mask: Mask,
    query: tuple[int, ...],
    key: tuple[int, ...],
    value_dim: int,
    backend: str,
    require: tuple[str, ...],
    forbid: tuple[str, ...],
    packed: PackedGrids | None,
) -> None:
    """Checks the arguments of a plan; the cache skips those that were checked before."""
    value = (*key[:-1], value_dim)
    if packed is None:
        shapes.check_shapes(mask, query, key, value, in_plan=True)
    else:
        packing.check_shapes(mask, packed, query, key, value, in_plan=True)
    arguments.check_backend(backend, require, forbid)


_ARGUMENTS = signatures.show(attention, query="Tensor", key="Tensor", value="Tensor", mask="Mask")
_PLAN_ARGUMENTS = signatures.show(plan)
