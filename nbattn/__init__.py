"""Neighborhood attention on PyTorch: one masking spec, a planner that compiles it exactly, and
engines that run it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbattn.axis import Axis
from nbattn.errors import BackendError, InputError, MaskError, NbattnError
from nbattn.mask import Mask

if TYPE_CHECKING:
    from nbattn.dialects.device import DeviceInfo as DeviceInfo
    from nbattn.functional import attention as attention
    from nbattn.functional import merge as merge
    from nbattn.functional import plan as plan
    from nbattn.planner.plan import Plan as Plan

__version__ = "0.1.0"
__all__ = [
    "Axis",
    "BackendError",
    "DeviceInfo",
    "InputError",
    "Mask",
    "MaskError",
    "NbattnError",
    "Plan",
    "attention",
    "merge",
    "plan",
]

_LAZY = {
    "attention": "nbattn.functional",
    "plan": "nbattn.functional",
    "merge": "nbattn.functional",
    "Plan": "nbattn.planner.plan",
    "DeviceInfo": "nbattn.dialects.device",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'nbattn' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
