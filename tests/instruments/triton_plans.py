"""Plans for the project's Triton kernels, made without the planner, and the arguments of their one
call.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nbattn import Mask
from nbattn.backends.triton.candidates import candidates
from nbattn.backends.triton.meaning import TritonArguments
from nbattn.planner.plan import Plan
from nbattn.program.candidate import Candidate
from nbattn.program.device import DEVICES, DeviceInfo
from nbattn.program.parts import PackedCall
from nbattn.program.request import Request, request_of


def device(name: str = "gfx942", providers: tuple[str, ...] = ("triton",)) -> DeviceInfo:
    """A named device with these packages."""
    return replace(DEVICES[name], providers=providers)


def requested(
    mask: Mask, shape: tuple[int, ...], key_shape: tuple[int, ...] = (), **named: Any
) -> Request:
    """The request of a query's shape and, if it differs, a key's."""
    value_dim = named.pop("value_dim", shape[-1])
    options = {"device": device(), "dtype": "bfloat16", "backend": "triton"} | named
    return request_of(mask, shape, key_shape or shape, value_dim=value_dim, **options)


def candidate(request: Request) -> Candidate:
    """The family's only candidate."""
    (one,) = candidates(request, request.axes())
    return one


def planned(mask: Mask, shape: tuple[int, ...], **named: Any) -> Plan:
    """The plan of an accepted candidate."""
    request = requested(mask, shape, **named)
    chosen = candidate(request)
    assert chosen.program is not None, chosen
    return Plan(request, chosen, (chosen,))


def arguments(plan: Plan) -> TritonArguments:
    assert plan.chosen.program is not None
    (call,) = plan.chosen.program.calls
    known: Any = call.arguments
    known = known.kernels if isinstance(known, PackedCall) else known
    assert isinstance(known, TritonArguments)
    return known
