"""Attention across ranks: every rank has a part of the space, and receives only the keys that its
queries attend to.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nbattn import lazy

if TYPE_CHECKING:
    from nbattn.distributed.halos import Halo as Halo
    from nbattn.distributed.halos import halo as halo
    from nbattn.distributed.sharded import attention as attention

__all__ = ["Halo", "attention", "halo"]

_LAZY = {  # `halo` needs no torch
    "Halo": "nbattn.distributed.halos",
    "attention": "nbattn.distributed.sharded",
    "halo": "nbattn.distributed.halos",
}


def __getattr__(name: str) -> Any:
    """Loads what is public when it is first used: only calls with tensors need torch."""
    if name in _LAZY:
        found = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
        return found
    return lazy.submodule(__name__, name, {known: f"{__name__}.{known}" for known in __all__})


def __dir__() -> list[str]:
    """Returns the public names."""
    return __all__
