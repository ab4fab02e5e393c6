"""Attention as modules: the layer, and the style that shards it over the ranks of a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbattn import lazy
from nbattn.nn.layer import NeighborhoodAttention

if TYPE_CHECKING:
    from nbattn.nn.parallel import HeadParallel as HeadParallel

__all__ = ["HeadParallel", "NeighborhoodAttention"]


def __getattr__(name: str) -> Any:
    """Loads `HeadParallel` when it is first used: it needs torch's distributed tensors."""
    if name != "HeadParallel":
        return lazy.submodule(__name__, name, {known: f"{__name__}.{known}" for known in __all__})
    from nbattn.nn.parallel import HeadParallel

    globals()[name] = HeadParallel
    return HeadParallel


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
