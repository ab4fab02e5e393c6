"""Plans for the project's CUDA kernels, and the arguments of their one call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nbattn
from nbattn import Mask
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.planner.plan import Plan
from nbattn.program.device import DEVICES, DeviceInfo


def device(name: str, providers: tuple[str, ...] = ("cupy",)) -> DeviceInfo:
    """A named device with these packages."""
    return replace(DEVICES[name], providers=providers)


def planned(mask: Mask, shape: tuple[int, ...], **named: Any) -> Plan:
    return nbattn.plan(mask, shape, **{"device": device("sm_90"), "backend": "cuda"} | named)


def arguments(plan: Plan) -> CudaArguments:
    assert plan.chosen.program is not None
    (call,) = plan.chosen.program.calls
    assert isinstance(call.arguments, CudaArguments)
    return call.arguments
