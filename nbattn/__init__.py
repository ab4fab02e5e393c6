"""Neighborhood attention on PyTorch: one masking spec, a planner that compiles it exactly, and
engines that run it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbattn.axis import Axis
from nbattn.errors import BackendError, ConfigError, InputError, MaskError, NbattnError
from nbattn.mask import Mask
from nbattn.version import __version__

if TYPE_CHECKING:
    from nbattn.config import load as load
    from nbattn.functional import attention as attention
    from nbattn.functional import plan as plan
    from nbattn.joining import merge as merge
    from nbattn.key_ranges import key_range_from as key_range_from
    from nbattn.nn import NeighborhoodAttention as NeighborhoodAttention
    from nbattn.planner.plan import Plan as Plan
    from nbattn.program.device import DeviceInfo as DeviceInfo

__all__ = [
    "Axis",
    "BackendError",
    "ConfigError",
    "DeviceInfo",
    "InputError",
    "Mask",
    "MaskError",
    "NbattnError",
    "NeighborhoodAttention",
    "Plan",
    "__version__",
    "attention",
    "key_range_from",
    "load",
    "merge",
    "plan",
]

_LAZY = {
    "attention": "nbattn.functional",
    "plan": "nbattn.functional",
    "merge": "nbattn.joining",
    "key_range_from": "nbattn.key_ranges",
    "load": "nbattn.config",
    "NeighborhoodAttention": "nbattn.nn",
    "Plan": "nbattn.planner.plan",
    "DeviceInfo": "nbattn.program.device",
}


def __getattr__(name: str) -> Any:
    """Load what needs torch when it is first used."""
    if name not in _LAZY:
        raise AttributeError(f"module 'nbattn' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return found
