"""Neighborhood attention on PyTorch: one masking spec, a planner that compiles it exactly, and
engines that run it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbattn import lazy
from nbattn.axis import Axis
from nbattn.errors import (
    BackendError,
    ConfigError,
    DistributedError,
    InputError,
    MaskError,
    NbattnError,
)
from nbattn.mask import Mask
from nbattn.version import __version__

if TYPE_CHECKING:
    from nbattn import config as config
    from nbattn import distributed as distributed
    from nbattn import errors as errors
    from nbattn import export as export
    from nbattn import integrations as integrations
    from nbattn import nn as nn
    from nbattn import program as program
    from nbattn import published as published
    from nbattn import recipes as recipes
    from nbattn.config import load as load
    from nbattn.functional import attention as attention
    from nbattn.functional import plan as plan
    from nbattn.grids import Grids as Grids
    from nbattn.grids import grids_from as grids_from
    from nbattn.joining import merge as merge
    from nbattn.joint import joint_attention as joint_attention
    from nbattn.key_ranges import key_range_from as key_range_from
    from nbattn.nn import NeighborhoodAttention as NeighborhoodAttention
    from nbattn.planner.plan import Plan as Plan
    from nbattn.program.device import DeviceInfo as DeviceInfo
    from nbattn.weights import attention_weights as attention_weights

__all__ = [
    "Axis",
    "BackendError",
    "ConfigError",
    "DeviceInfo",
    "DistributedError",
    "Grids",
    "InputError",
    "Mask",
    "MaskError",
    "NbattnError",
    "NeighborhoodAttention",
    "Plan",
    "__version__",
    "attention",
    "attention_weights",
    "grids_from",
    "joint_attention",
    "key_range_from",
    "load",
    "merge",
    "plan",
]

_LAZY = {
    "attention": "nbattn.functional",
    "plan": "nbattn.functional",
    "attention_weights": "nbattn.weights",
    "joint_attention": "nbattn.joint",
    "merge": "nbattn.joining",
    "Grids": "nbattn.grids",
    "grids_from": "nbattn.grids",
    "key_range_from": "nbattn.key_ranges",
    "load": "nbattn.config",
    "NeighborhoodAttention": "nbattn.nn",
    "Plan": "nbattn.planner.plan",
    "DeviceInfo": "nbattn.program.device",
}
_SUBMODULES = (
    "config",
    "distributed",
    "errors",
    "export",
    "integrations",
    "nn",
    "program",
    "published",
    "recipes",
)
_API = (*__all__, *_SUBMODULES)
# Names that are looked for here, and what they are called.
_ELSEWHERE = {
    "HeadParallel": "nbattn.nn.HeadParallel",
    **dict.fromkeys(
        ("context_parallel", "ring_attention", "sequence_parallel", "ulysses", "halo_exchange"),
        "nbattn.distributed.attention",
    ),
    "diffusers": "nbattn.integrations.diffusers",
    "natten": "nbattn.integrations.natten",
    "transformers": "nbattn.integrations.transformers",
    "register": "nbattn.integrations.transformers.register",
    "install": "nbattn.integrations.natten.install",
    **{name: f"nbattn.integrations.natten.{name}" for name in ("na1d", "na2d", "na3d")},
    **dict.fromkeys(("flash_attention", "scaled_dot_product_attention"), "nbattn.attention"),
    "named": "nbattn.program.device.named",
    "schema": "nbattn.config.schema",
    "sliding_tile": "nbattn.recipes.sliding_tile",
    **{
        name: f"nbattn.Mask.{name}"
        for name in (
            *("full", "causal", "sliding_window", "neighborhood"),
            *("from_flash", "from_cudnn", "from_transformers"),
        )
    },
}


def __getattr__(name: str) -> Any:
    """Loads what needs torch, and submodules, when they are first used."""
    if name in _LAZY:
        found = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
        return found
    return lazy.submodule(__name__, name, _ELSEWHERE | {known: f"nbattn.{known}" for known in _API})


def __dir__() -> list[str]:
    """Returns the public names and submodules."""
    return sorted(_API)
