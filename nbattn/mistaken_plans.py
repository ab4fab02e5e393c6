"""Code of the plan, and of the call without one, for tensors that a given plan is not for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbattn import autograd
from nbattn.backends import families
from nbattn.backends.inputs import SWITCHES, TENSORS
from nbattn.program.request import Request, dtype_name


def plan_for(
    tensors: Sequence[Any], request: Request, softcap: object, extra_query: Any = None
) -> str:
    """The code of the plan for these tensors, of a joint attention with an `extra_query`."""
    query, key, value, *_ = tensors
    named = dict(zip(TENSORS, tensors, strict=True))
    extra = named["extra_key"]
    options = {
        "value_dim": None if value.shape[-1] == query.shape[-1] else value.shape[-1],
        "extra_keys": None if extra is None else extra.shape[1],
        "extra_queries": extra_query is not None or None,
        "softcap": softcap,
        **{name: named[name] is not None or None for name in SWITCHES},
        "training": request.training or autograd.trains((*tensors, extra_query)) or None,
        "return_lse": request.return_lse or None,
        "dtype": dtype_name(query.dtype),
        "device": str(query.device),
        "deterministic": request.deterministic or None,
        **_grids(request),
    }
    if query.device.type == request.device.kind:  # where the same backends run
        asked = (("backend", families.AUTO), ("require", ()), ("forbid", ()))
        options |= {n: getattr(request, n) for n, free in asked if getattr(request, n) != free}
    shown = "".join(f", {name}={given!r}" for name, given in options.items() if given is not None)
    return f"nbattn.plan(mask, {list(query.shape)}, {list(key.shape)}{shown})"


def _grids(request: Request) -> dict[str, Any]:
    """The grids of a plan, of the keys where they are others."""
    if request.grids is None:
        return {}
    sides = (request.grids.query, request.grids.key)
    sizes = [[tuple(size) for size in side.array.tolist()] for side in sides]
    return {"grids": sizes[0], **({} if request.grids.is_self else {"key_grids": sizes[1]})}


def call_for(
    tensors: Sequence[Any], request: Request, numbers: dict[str, Any], extra_query: Any = None
) -> str:
    """The code of the call that needs no plan, with all that was given: of attention, or with an
    `extra_query` of joint attention.
    """
    given = dict(zip(TENSORS[3:], tensors[3:], strict=True))
    shown = [f"{name}={name}" for name, tensor in given.items() if tensor is not None]
    shown += [f"{name}={sizes!r}" for name, sizes in _grids(request).items()]
    shown += [f"{name}={number!r}" for name, number in numbers.items() if number is not None]
    shown += ["return_lse=True"] * request.return_lse
    if extra_query is None:
        return f"nbattn.attention({', '.join(['query, key, value, mask', *shown])})"
    shown = [code for code in shown if not code.startswith(("extra_key=", "extra_value="))]
    extras = "extra_query, extra_key, extra_value"
    return f"nbattn.joint_attention({', '.join([f'query, key, value, mask, {extras}', *shown])})"
