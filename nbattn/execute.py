"""Plans a call's tensors, and runs a given plan, for the operators, autograd, `Plan.run`, `bench`.

The logsumexp that is saved for a backward is the true one, or NaN if the forward's backend returns
none. Every backward supports a true one from any backend; on NaN only a backend runs that computes
it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from nbattn.backends import families
from nbattn.backends.inputs import Gradients, Inputs, accumulate_dtype, layout_of
from nbattn.errors import BackendError
from nbattn.mask import Mask
from nbattn.planner import notices, planner
from nbattn.planner.plan import Plan
from nbattn.planner.planner import Signature
from nbattn.program.candidate import Candidate

# Whether a profiler of torch records what runs: a function of C, which each call asks.
is_profiled = torch._C._autograd._profiler_enabled  # pyright: ignore


def planned(
    mask: Mask,
    inputs: Inputs,
    *,
    backend: str,
    require: tuple[str, ...],
    forbid: tuple[str, ...],
    training: bool,
    deterministic: bool,
    return_lse: bool,
) -> Plan:
    """Returns the plan for a call's tensors, cached for the next call like it."""
    query, key, value = inputs.query, inputs.key, inputs.value
    return planner.planned_to_run(
        Signature(
            mask,
            query.shape,
            key.shape,
            value.shape[-1],
            query.dtype,
            query.device,
            layout=layout_of(query, key, value),
            extra_keys=0 if inputs.extra_key is None else inputs.extra_key.shape[1],
            softcap=inputs.softcap is not None,
            sink=inputs.sink is not None,
            key_range=inputs.key_range is not None,
            extra_range=inputs.extra_range is not None,
            relative_bias=inputs.relative_bias is not None,
            alibi_slopes=inputs.alibi_slopes is not None,
            training=training,
            deterministic=deterministic,
            return_lse=return_lse,
            backend=backend,
            require=require,
            forbid=forbid,
            threads=torch.get_num_threads(),
            grids=inputs.grids,
        )
    )


def forward(
    plan: Plan, inputs: Inputs, *, return_lse: bool, keep_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Returns the output, and the logsumexp if the backend returns one.

    Args:
        plan: for tensors of these shapes, of any strides.
        return_lse: whether the logsumexp is a result.
        keep_lse: whether a backward with its own plan follows: then the cheapest accepted backend
            runs that returns the logsumexp.
    """
    kind = inputs.query.device.type
    candidate = plan.chosen
    if keep_lse and not _gives_lse(candidate, kind):
        candidate = next((c for c in _accepted(plan) if _gives_lse(c, kind)), candidate)
        notices.tell_of_another(plan, candidate, "the backward needs its logsumexp")

    def run(candidate: Candidate) -> tuple[Tensor, Tensor | None]:
        backend = families.runner_of(candidate)
        with _without_autocast(kind), _recorded(candidate.name):
            return backend.forward(candidate.program, inputs, return_lse=return_lse or keep_lse)

    try:
        return run(candidate)
    except BackendError as error:
        return run(_instead(plan, candidate, error))


def backward(
    plan: Plan,
    inputs: Inputs,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None,
) -> Gradients:
    """Computes the gradients of every input, from the output and a true logsumexp or NaN."""
    kind = inputs.query.device.type
    candidate = plan.chosen
    if not recomputes_lse(candidate, inputs) and _is_unknown(lse):
        candidate = next((c for c in _accepted(plan) if recomputes_lse(c, inputs)), candidate)
        notices.tell_of_another(plan, candidate, "it computes the logsumexp again for a backward")

    def run(candidate: Candidate) -> Gradients:
        backend = families.runner_of(candidate)
        with _without_autocast(kind), _recorded(f"{candidate.name} backward"):
            return backend.backward(candidate.program, inputs, out, lse, grad_out, grad_lse)

    try:
        return run(candidate)
    except BackendError as error:
        return run(_instead(plan, candidate, error))


def _instead(plan: Plan, candidate: Candidate, error: BackendError) -> Candidate:
    """Returns the cheapest other candidate where kernels that "auto" chose turn out not to compile
    on this machine, with a warning. Any other error, and that of an explicit choice, is raised.
    """
    if plan.request.backend != families.AUTO or not families.is_missing(candidate.runner):
        raise error
    other = next((c for c in _accepted(plan) if c.runner != candidate.runner), None)
    if other is None:
        raise error
    text = f"{candidate.name} does not work here, {other.name} runs instead: {error}"
    notices.warn_once(f"{candidate.runner} does not work", text, RuntimeWarning)
    return other


def unknown_lse(query: Tensor) -> Tensor:
    """Returns NaN in the shape of the logsumexp, `[B, *space, H]`: one number, expanded."""
    dtype = accumulate_dtype(query.dtype)
    return query.new_full((), math.nan, dtype=dtype).expand(query.shape[:-1])


def _is_unknown(lse: Tensor) -> bool:
    """Whether a logsumexp is the NaN of a forward that returned none.

    Only the CPU's is compared, since other devices would have to synchronize: there the result of
    `unknown_lse` is recognized by its strides. Any other NaN makes the gradients NaN, never wrong.
    """
    if not lse.numel():
        return False
    if lse.device.type != "cpu":
        return not any(
            stride for size, stride in zip(lse.shape, lse.stride(), strict=True) if size > 1
        )
    first = lse[(0,) * lse.dim()]
    # All are looked at only if one is NaN: the threads of a parallel operation wait in a loop for
    # more work, on cores that the gradients need.
    return bool(first.isnan()) and bool(lse.isnan().all())


def _accepted(plan: Plan) -> Iterator[Candidate]:
    """Yields the accepted candidates by cost, the chosen one first."""
    return (candidate for candidate in plan.candidates if not candidate.reasons)


def _gives_lse(candidate: Candidate, kind: str) -> bool:
    """Whether a forward on this device type returns the logsumexp."""
    kinds = families.backend(candidate.runner).gives_lse_on
    return kinds is None or kind in kinds


def recomputes_lse(candidate: Candidate, inputs: Inputs) -> bool:
    """Whether a backward does not need the logsumexp."""
    kinds = families.backend(candidate.runner).needs_lse_on
    return kinds is not None and inputs.query.device.type not in kinds


def _recorded(name: str) -> AbstractContextManager[Any]:
    """Returns a context whose time torch's profilers show as "nbattn: native/window"."""
    return torch.profiler.record_function(f"nbattn: {name}") if is_profiled() else nullcontext()


def _without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Returns a context without autocast, since backends choose the dtypes of their products."""
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
