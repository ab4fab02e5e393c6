"""Checks whether kernels compile and are cached on this machine, for `nbattn doctor`."""

from __future__ import annotations

import time
import warnings
from typing import Any

from nbattn import cache
from nbattn.kernels import compilers, cubins, host, nvrtc, toolkit
from nbattn.kernels.variant import Variant

# The smallest kernel; its results do not depend on tiles.
_TILES = tuple((f"NB_{kind}_TILE_{axis}", 1) for kind in ("KEY", "QUERY") for axis in range(3))
_CONSTANTS = (("NB_DTYPE", 2), ("NB_TWO_RUNS", 0), ("NB_VALUE_DIM", 64), *_TILES)
_SMALL = Variant("delta.cu", "nb_delta", tuple(sorted(_CONSTANTS)), 128, 0)


def compiler() -> dict[str, Any]:
    """NVRTC's version and path, and the directory of CUDA's headers."""
    version = "{}.{}".format(*nvrtc.version())
    return {"version": version, "path": toolkit.library(), "headers": toolkit.headers()}


def compiles(arch: str) -> dict[str, Any]:
    """Compiles a small kernel for a target, without the cache."""
    facts = nvrtc.compile(_SMALL, arch).usage
    report = {"kernel": _SMALL.entry, "target": f"sm_{arch}", "registers": facts.registers}
    return {**report, "seconds": round(facts.seconds, 3)}


def keeps(arch: str) -> dict[str, Any]:
    """The cache of cubins: its path and size, and whether it stores and loads a small kernel."""
    folder = cubins.folder()
    if folder is None:
        return {"path": None, "problem": "not kept: the cache is off"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cubins.get(_SMALL, arch)
        cubins.forget()
        start = time.perf_counter()
        cubins.get(_SMALL, arch)
        seconds = time.perf_counter() - start
    sizes = [path.stat().st_size for path in folder.iterdir()] if folder.is_dir() else []
    report = {"path": str(folder), "files": len(sizes), "bytes": sum(sizes), "works": not caught}
    if caught:
        return {**report, "problem": str(caught[0].message)}
    return {**report, "seconds": round(seconds, 4)}


def host_compiler() -> dict[str, Any]:
    """The C++ compiler's version and command."""
    compiler = compilers.find()
    return {"version": compiler.name, "path": " ".join(compiler.command)}


def host_cached() -> dict[str, Any]:
    """The file of this CPU's kernels in the cache, which is not loaded; compiles nothing."""
    folder, found = host.STORE.folder(), host.stored()
    if folder is None:
        return {"path": None, "works": False}
    if found is None:
        report = {"path": str(folder), "works": False}
        try:
            cache.read(folder / "any")  # raises where the folder is not trusted
        except cache.CacheError as error:
            return {**report, "problem": str(error)}
        return report
    key, entry = found
    size = (folder / key).stat().st_size
    return {**entry.facts, "path": str(folder / key), "bytes": size, "works": True}


def host_library() -> dict[str, Any]:
    """The kernels of this CPU: how they were compiled, and their file in the cache.

    Compiles them where the cache has none.
    """
    facts = host.facts()
    report = {
        "lanes": host.library().nb_native_lanes(),
        "compiler": facts["compiler"],
        "seconds": facts["seconds"],
    }
    folder = host.STORE.folder()
    if folder is None:
        return {**report, "path": None}
    path = folder / facts["key"]
    try:
        content = cache.read(path)
        size = 0 if content is None else len(content)
        return {**report, "path": str(path), "bytes": size, "works": bool(size)}
    except cache.CacheError as error:
        return {**report, "path": str(folder), "works": False, "problem": str(error)}
