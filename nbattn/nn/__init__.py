"""Attention as modules: the layer, and the styles that share it out over the ranks of a mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbattn import lazy
from nbattn.nn.layer import NeighborhoodAttention

if TYPE_CHECKING:
    from nbattn.nn.parallel import HeadParallel as HeadParallel
    from nbattn.nn.parallel import SpaceParallel as SpaceParallel

__all__ = ["HeadParallel", "NeighborhoodAttention", "SpaceParallel"]


def __getattr__(name: str) -> Any:
    """Loads the styles when they are first used: they need torch's distributed tensors."""
    if name not in ("HeadParallel", "SpaceParallel"):
        return lazy.submodule(__name__, name, {known: f"{__name__}.{known}" for known in __all__})
    from nbattn.nn import parallel

    globals()[name] = getattr(parallel, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
