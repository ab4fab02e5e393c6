"""Runs a given plan: `Plan.run`, and what prepares it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nbattn import arguments, autograd, key_ranges, mistaken_plans
from nbattn.backends import families
from nbattn.backends.inputs import SWITCHES, TENSORS, Inputs
from nbattn.errors import BackendError, InputError, NbattnError
from nbattn.functional import attend_by_plan, autocast
from nbattn.joint import placed
from nbattn.planner import devices, gpus
from nbattn.planner.joint_plan import JointPlan
from nbattn.planner.plan import Plan
from nbattn.program.device import DEVICES
from nbattn.program.request import Request, dtype_name


def run(
    plan: Plan, query: Tensor, key: Tensor, value: Tensor, **tensors: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """`Plan.run`: computes attention by a given plan, on tensors of its shapes."""
    if torch.compiler.is_compiling():  # runs outside of the graph
        why = "a plan runs its own program, outside of compiled graphs"
        torch._dynamo.graph_break(msg=why)  # pyright: ignore[reportPrivateUsage]
        return torch.compiler.disable(_run)(plan, query, key, value, **tensors)  # pyright: ignore
    return _run(plan, query, key, value, **tensors)


def run_joint(
    plan: JointPlan, query: Tensor, key: Tensor, value: Tensor, **tensors: Any
) -> tuple[Tensor, ...]:
    """`JointPlan.run`: computes joint attention by given plans, on tensors of their shapes."""
    names = ("extra_query", "extra_key", "extra_value")
    extras = {name: tensors.get(name) for name in names}
    if not all(isinstance(given, Tensor) for given in extras.values()):
        raise InputError(
            f"the plan is for a joint attention, which needs {', '.join(names)}.",
            f"plan.run(query, key, value, {', '.join(f'{name}={name}' for name in names)}).",
            plan.request.summary(),
        )
    extra_query = tensors.pop("extra_query")
    grid, of_extras = plan.parts()
    found: Any = run(grid, query, key, value, **tensors, beside=extra_query)
    arguments.check_extra_query(query, extra_query, tensors["extra_key"], plan.request.mask.rank)
    is_packed = plan.request.grids is not None
    placed_query = placed(extra_query, plan.request.mask.rank, is_packed=is_packed)
    shared = {n: t for n, t in tensors.items() if n not in ("relative_bias", "alibi_slopes")}
    extra: Any = run(of_extras, placed_query, key, value, **shared)
    shape = extra_query.shape[:-1]
    if not plan.request.return_lse:
        return found, extra.reshape(*shape, value.shape[-1])
    return found[0], extra[0].reshape(*shape, value.shape[-1]), found[1], extra[1].reshape(shape)


def _run(
    plan: Plan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    beside: Tensor | None = None,
    **tensors: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Runs a plan; `beside` are the queries of extra tokens, which have a plan of their own."""
    request = plan.request
    numbers = {name: tensors.pop(name, None) for name in ("scale", "softcap")}
    if tensors.get("key_range") is not None:
        tensors["key_range"] = key_ranges.standard(tensors["key_range"], query, request.grids)
    if tensors.get("extra_range") is not None:
        tensors["extra_range"] = key_ranges.of_extra(tensors["extra_range"], query)
    query, named = autocast(query, {"key": key, "value": value, **tensors})
    arguments.check_run(request, query, {**named, **numbers}, joint=beside is not None)
    given = (query, *(named.get(name) for name in TENSORS[1:]))
    operands = tuple(None if t is None else t.resolve_neg() for t in given)
    training = autograd.trains(operands)
    _check_plan_is_for(request, operands, numbers, beside)
    if not autograd.is_plain(operands):
        raise BackendError(
            "a plan runs its own program, which compilers, transforms and modes cannot trace.",
            "nbattn.attention(query, key, value, mask), which supports them.",
            request.summary(),
        )
    scale, softcap = numbers["scale"], numbers["softcap"]
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    cap = None if softcap is None else float(softcap)
    inputs = Inputs(*operands, scale=factor, softcap=cap, grids=request.grids)  # pyright: ignore
    out, lse = attend_by_plan(plan, inputs, training=training)
    return (out, lse) if request.return_lse else out  # pyright: ignore


def _check_plan_is_for(
    request: Request,
    tensors: Sequence[Tensor | None],
    numbers: dict[str, Any],
    beside: Tensor | None,
) -> None:
    """Checks that a plan was made for these tensors; their strides may differ."""
    query, key, value, *_ = tensors
    named = dict(zip(TENSORS, tensors, strict=True))
    extra = named["extra_key"]
    assert query is not None
    assert key is not None
    assert value is not None
    softcap = numbers["softcap"]
    device = devices.device_info(query.device)
    is_model = request.device.name in DEVICES
    if device.kind != request.device.kind or (is_model and device.name != request.device.name):
        raise InputError(
            f"the plan is for {request.device.name}, the tensors are on {query.device}.",
            f"{mistaken_plans.plan_for(tensors, request, softcap, beside)}.",
            request.summary(),
        )
    sizes: dict[str, object] = {}
    if request.grids is None:  # else `check_run` compared them with the grids
        sizes = {
            "batch": query.shape[0],
            "query_space": tuple(query.shape[1:-2]),
            "key_space": tuple(key.shape[1:-2]),
        }
    sizes |= {
        "heads": query.shape[-2],
        "kv_heads": key.shape[-2],
        "head_dim": query.shape[-1],
        "value_dim": value.shape[-1],
        "dtype": dtype_name(query.dtype),
        "extra_keys": 0 if extra is None else extra.shape[1],
        "softcap": softcap is not None,
        **{name: named[name] is not None for name in SWITCHES},
        "training": request.training or autograd.trains((*tensors, beside)),
    }
    for name, size in sizes.items():
        if getattr(request, name) != size:
            raise InputError(
                f"the plan is for {name}={getattr(request, name)}, the tensors have {size}.",
                f"{mistaken_plans.plan_for(tensors, request, softcap, beside)}, "
                f"or {mistaken_plans.call_for(tensors, request, numbers, beside)}.",
                request.summary(),
            )


def warmup(plan: Plan) -> None:
    """`Plan.warmup`: prepares what the first run would prepare.

    Raises:
        InputError: kernels are compiled for a GPU, and this machine has none.
    """
    backend, device = families.runner_of(plan.chosen), plan.request.device
    if not hasattr(backend, "warmup"):
        return
    try:
        backend.warmup(plan.chosen.program)
    except (AssertionError, RuntimeError) as error:  # torch's and Triton's, without a GPU
        if isinstance(error, NbattnError) or gpus.is_available(device.kind):
            raise
        raise InputError(
            f"the plan is for {device.name}, and torch sees no such GPU here to compile for.",
            "nbattn.plan(mask, shape, device=None), which is for this machine",
            plan.request.summary(),
        ) from error
