"""The data types of every kernel family: devices, limits, requests, programs, costs, candidates.

Parts of an axis: a `Piece` (dense_pieces) is a view of queries and one of keys that one kernel call
can compute. A `Strip` (band_pieces) is a piece before views: runs of queries and keys of a residue
class, with a band. A `Slice` (bands) is a run of a band's rows and the keys that it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbattn import lazy

if TYPE_CHECKING:
    from nbattn.program import device as device

__all__ = ["device"]


def __getattr__(name: str) -> Any:
    return lazy.submodule(__name__, name, {known: f"{__name__}.{known}" for known in __all__})


def __dir__() -> list[str]:
    return __all__
