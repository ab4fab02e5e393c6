"""Whether kernels compile and are kept on this machine, as plain data for `nbattn doctor`."""

from __future__ import annotations

import time
import warnings
from typing import Any

from nbattn.kernels import cubins, nvrtc, toolkit
from nbattn.kernels.variant import Variant

# The smallest kernel, whose tiles mean nothing.
_TILES = tuple((f"NB_{kind}_TILE_{axis}", 1) for kind in ("KEY", "QUERY") for axis in range(3))
_CONSTANTS = (("NB_DTYPE", 2), ("NB_TWO_RUNS", 0), ("NB_VALUE_DIM", 64), *_TILES)
_SMALL = Variant("delta.cu", "nb_delta", tuple(sorted(_CONSTANTS)), 128, 0)


def compiler() -> dict[str, Any]:
    """NVRTC's version and place, and that of CUDA's headers."""
    version = "{}.{}".format(*nvrtc.version())
    return {"version": version, "path": toolkit.library(), "headers": toolkit.headers()}


def compiles(arch: str) -> dict[str, Any]:
    """A small kernel for a target, never from the cache."""
    facts = nvrtc.compile(_SMALL, arch).usage
    found = {"kernel": _SMALL.entry, "target": f"sm_{arch}", "registers": facts.registers}
    return {**found, "seconds": round(facts.seconds, 3)}


def keeps(arch: str) -> dict[str, Any]:
    """The cache of cubins: its place, what it holds, and whether the small kernel comes back."""
    place = cubins.folder()
    if place is None:
        return {"path": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cubins.get(_SMALL, arch)
        cubins.forget()
        start = time.perf_counter()
        cubins.get(_SMALL, arch)
        seconds = time.perf_counter() - start
    sizes = [path.stat().st_size for path in place.iterdir()] if place.is_dir() else []
    found = {"path": str(place), "files": len(sizes), "bytes": sum(sizes), "works": not caught}
    if caught:
        return {**found, "problem": str(caught[0].message)}
    return {**found, "seconds": round(seconds, 4)}
