"""Compiled kernels, kept in memory and in the cache directory (`nbattn/cache.py`), below `cubins`.

A file's name is the hash of all that a cubin depends on: every byte of the kernel's source with its
headers, the compiler's options, target, version and headers. It holds its own name and the hash of
its content; one that is damaged or another's is built anew. Where the directory cannot be used,
kernels are kept in memory, and one warning says why. Beyond `BOUND` the least recently used files
go. A cubin is code: see SECURITY.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import warnings
from contextlib import suppress
from pathlib import Path

from nbattn import cache
from nbattn.kernels import nvrtc, sources, toolkit
from nbattn.kernels.nvrtc import Compiled, Usage
from nbattn.kernels.variant import Variant

BOUND = 256 << 20  # bytes of all files together
_FORMAT = "nbattn-cubin-1"
_ABANDONED = 3600  # seconds after which a file that was not finished belongs to a process that died
_memory: dict[tuple[Variant, str], Compiled] = {}
_warned = False


def get(variant: Variant, arch: str) -> Compiled:
    """A kernel for one target: from memory, else from the cache directory, else compiled.

    Whatever the cache directory holds: it never raises for that, and never returns another cubin.

    Raises:
        BackendError: as `nvrtc.compile`.
    """
    found = _memory.get((variant, arch))
    if found is None:
        found = _memory[variant, arch] = _kept(variant, arch)
    return found


def key(variant: Variant, arch: str) -> str:
    """The hash of all that a cubin depends on, in hexadecimal.

    Raises:
        BackendError: NVRTC, its headers or the source are missing.
    """
    parts = (
        _FORMAT,
        sources.digest(variant.source),
        variant.source,
        variant.entry,
        nvrtc.options(variant, arch),
        nvrtc.identity(),
        toolkit.headers_digest(),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def forget() -> None:
    """Empty the memory; files stay."""
    _memory.clear()


def folder() -> Path | None:
    """Where cubins are kept; None where the cache is switched off.

    Raises:
        CacheError: the variables name no absolute path.
    """
    root = cache.directory()
    return None if root is None else root / "cubins"


def _kept(variant: Variant, arch: str) -> Compiled:
    name = key(variant, arch)
    try:
        place = folder()
    except cache.CacheError as error:
        _warn(error)
        place = None
    if place is None:
        return nvrtc.compile(variant, arch)
    if (found := _read(place / name)) is not None:
        return found
    compiled = nvrtc.compile(variant, arch)
    try:
        _publish(place, name, compiled)
    except cache.CacheError as error:
        _warn(error)
    return compiled


def _read(path: Path) -> Compiled | None:
    """A file's cubin, if it can be trusted: whatever else lies there will be replaced."""
    with suppress(cache.CacheError):
        content = cache.read(path)
        found = None if content is None else _unpacked(path.name, content)
        if found is not None:
            with suppress(OSError):  # the directory may be one that is only read
                os.utime(path)
        return found
    return None


def _publish(place: Path, name: str, compiled: Compiled) -> None:
    cache.prepare(place.parent)
    cache.prepare(place)
    cache.publish(place / name, _packed(name, compiled))
    _evict(place, name)


def _packed(name: str, compiled: Compiled) -> bytes:
    facts = {"usage": dataclasses.asdict(compiled.usage), "log": compiled.log}
    content = json.dumps(facts).encode() + b"\n" + compiled.cubin
    return f"{_FORMAT} {name} {hashlib.sha256(content).hexdigest()}\n".encode() + content


def _unpacked(name: str, content: bytes) -> Compiled | None:
    """What a file holds; None where it is damaged or another's."""
    first, _, rest = content.partition(b"\n")
    if first != f"{_FORMAT} {name} {hashlib.sha256(rest).hexdigest()}".encode():
        return None
    facts, _, cubin = rest.partition(b"\n")
    try:
        known = json.loads(facts)
        return Compiled(cubin, Usage(**known["usage"]), known["log"])
    except (ValueError, TypeError, KeyError):
        return None


def _evict(place: Path, newest: str) -> None:
    """Remove the least recently used files beyond the bound, and what processes that died left."""
    found: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in place.iterdir():
            with suppress(OSError):  # another process was faster
                facts = path.lstat()
                if path.name.startswith("."):
                    if facts.st_mtime < time.time() - _ABANDONED:
                        path.unlink()
                elif path.name != newest:
                    found.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= BOUND:
            break
        with suppress(OSError):
            path.unlink()
        total -= size


def _warn(error: cache.CacheError) -> None:
    """Once in a process."""
    global _warned
    if _warned:
        return
    _warned = True
    fix = (
        f"{cache.VARIABLE}=/another/directory keeps them there, {cache.VARIABLE}=off silences this"
    )
    warnings.warn(
        f"compiled kernels are kept in memory only: {error}; {fix}", RuntimeWarning, stacklevel=2
    )
