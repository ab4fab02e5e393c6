"""The cache of calls that were checked and planned before: a call like one of them is neither
checked nor planned again.

The key has everything that decides whether a call's arguments are valid and which plan runs it. The
numbers (scale, softcap) are checked in every call. `planner.forget` empties the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbattn import arguments, autograd, execute
from nbattn.autograd import PlannedAttention
from nbattn.backends import families
from nbattn.backends.inputs import Inputs, layout_of
from nbattn.grids import PackedGrids
from nbattn.mask import Mask
from nbattn.planner.plan import Plan
from nbattn.planner.planner import CACHE_SIZE, KNOWN_CALLS

Key = tuple[object, ...]
_ABSENT = frozenset({type(None)})  # comparing a tensor with None takes torch 20 us
_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None)})


class KnownCall(NamedTuple):
    """The cached data of a call.

    Args:
        mask: the mask. The key has only its identity, which no other object can get while it lives.
        plan: the call's plan.
        forward: the function that runs the plan's program.
    """

    mask: Mask
    plan: Plan
    forward: Callable[..., Any]


def key(
    tensors: tuple[Any, ...],
    mask: object,
    softcap: object,
    backend: object,
    require: object,
    forbid: object,
    return_lse: object,
    grids: object = None,
) -> Key | None:
    """Returns everything that decides whether a call's arguments are valid and which plan runs it,
    except its numbers; None for a call that needs the operators, or has arguments of other types.
    """
    query, key, value, *optional = tensors
    if (
        not _PLAIN.issuperset(map(type, tensors))
        or query is None
        or key is None
        or value is None
        or type(backend) is not str
        or type(require) is not tuple
        or type(forbid) is not tuple
        or ((require or forbid) and not all(type(name) is str for name in require + forbid))
        or type(return_lse) is not bool
        or (grids is not None and type(grids) is not PackedGrids)  # of a function compiled alone
        or autograd.is_watched()
        or autograd.may_have_tangents()
    ):
        return None
    device = query.device
    if device.type == "meta" or torch.is_autocast_enabled(device.type):
        return None
    has_optional = not _ABSENT.issuperset(map(type, optional))
    given = [t for t in tensors if t is not None] if has_optional else (query, key, value)
    if not all(map(_is_readable, given)):
        return None
    plain = query.is_contiguous() and key.is_contiguous() and value.is_contiguous()
    return (
        id(mask),
        query.shape,
        key.shape,
        value.shape,
        query.dtype,
        key.dtype,
        value.dtype,
        device,
        key.device,
        value.device,
        None if plain else layout_of(query, key, value),
        _forms(optional) if has_optional else None,
        softcap is None,
        torch.is_grad_enabled()
        and (
            query.requires_grad
            or key.requires_grad
            or value.requires_grad
            or (has_optional and any(t.requires_grad for t in given))
        ),
        torch._C._get_deterministic_algorithms(),  # pyright: ignore
        torch.get_num_threads(),  # measured times are for one number
        backend,
        require,
        forbid,
        return_lse,
        grids,
    )


def _is_readable(tensor: Tensor) -> bool:
    """Whether kernels can read the tensor's memory as it is."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_neg()


def _forms(optional: list[Tensor | None]) -> Key:
    """Returns what is checked of optional tensors."""
    return tuple(
        [None if t is None else (t.shape, t.dtype, t.device, t.requires_grad) for t in optional]
    )


def look_up(key: Key | None) -> KnownCall | None:
    """Returns the cached data of a call with the same key, or None."""
    return None if key is None else KNOWN_CALLS.get(key)


def keep(key: Key, mask: Mask, plan: Plan) -> None:
    """Caches a call for the next one like it."""
    if len(KNOWN_CALLS) >= CACHE_SIZE:
        KNOWN_CALLS.clear()
    KNOWN_CALLS[key] = KnownCall(mask, plan, families.runner_of(plan.chosen).forward)


def run(
    known: KnownCall,
    tensors: tuple[Any, ...],
    scale: float | None,
    softcap: float | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs a known call with the numbers of this call."""
    if scale is not None or softcap is not None:
        arguments.check_numbers(scale, softcap)
    factor = tensors[0].shape[-1] ** -0.5 if scale is None else float(scale)
    cap = None if softcap is None else float(softcap)
    plan = known.plan
    return_lse = plan.request.return_lse
    if plan.request.training:
        return PlannedAttention.apply(plan, return_lse, factor, cap, *tensors)  # pyright: ignore
    inputs = Inputs(*tensors, factor, cap, plan.request.grids)  # pyright: ignore[reportCallIssue]
    if execute.is_profiled():
        out, lse = execute.forward(plan, inputs, return_lse=return_lse)
    else:
        out, lse = known.forward(plan.chosen.program, inputs, return_lse=return_lse)
    return (out, lse) if return_lse else out  # pyright: ignore[reportReturnType]
