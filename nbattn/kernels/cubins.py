"""Caches compiled kernels in memory and in the folder `cubins` of the cache directory
(`nbattn/cache.py`).

A file's name is the hash of everything that a cubin depends on: every byte of the kernel's source
with its headers, the compiler's options, target, version and headers. The file contains its own
name and the hash of its content; a file that is damaged or has another name is compiled again. If
the directory cannot be used, kernels are cached in memory only, and one warning gives the reason.
When the files exceed `BOUND` bytes, the least recently used ones are deleted. A cubin is code: see
SECURITY.md.
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

BOUND = 256 << 20  # the most bytes of all files together
_FORMAT = "nbattn-cubin-1"
_ABANDONED = 3600  # seconds; the process of an unfinished file that is older has ended
_memory: dict[tuple[Variant, str], Compiled] = {}
_warned = False


def get(variant: Variant, arch: str) -> Compiled:
    """A kernel for one target: from memory, else from the cache directory, else compiled.

    No content of the cache directory makes this raise or return a cubin of another kernel.

    Raises:
        BackendError: as `nvrtc.compile`.
    """
    compiled = _memory.get((variant, arch))
    if compiled is None:
        compiled = _memory[variant, arch] = _from_disk_or_compiler(variant, arch)
    return compiled


def key(variant: Variant, arch: str) -> str:
    """The hash of everything that a cubin depends on, in hexadecimal.

    Raises:
        BackendError: NVRTC, its headers or the source is missing.
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
    """Empty the cache in memory, but keep the files."""
    _memory.clear()


def folder() -> Path | None:
    """The folder of the cached cubins; None if the cache is switched off.

    Raises:
        CacheError: the environment variables do not give an absolute path.
    """
    root = cache.directory()
    return None if root is None else root / "cubins"


def _from_disk_or_compiler(variant: Variant, arch: str) -> Compiled:
    name = key(variant, arch)
    try:
        directory = folder()
    except cache.CacheError as error:
        _warn(error)
        directory = None
    if directory is None:
        return nvrtc.compile(variant, arch)
    if (cached := _read(directory / name)) is not None:
        return cached
    compiled = nvrtc.compile(variant, arch)
    try:
        _publish(directory, name, compiled)
    except cache.CacheError as error:
        _warn(error)
    return compiled


def _read(path: Path) -> Compiled | None:
    """The cubin of a file; None if the file is missing, damaged or unsafe: it will be replaced."""
    with suppress(cache.CacheError):
        content = cache.read(path)
        compiled = None if content is None else _unpacked(path.name, content)
        if compiled is not None:
            with suppress(OSError):  # the directory may be read-only
                os.utime(path)
        return compiled
    return None


def _publish(directory: Path, name: str, compiled: Compiled) -> None:
    cache.prepare(directory.parent)
    cache.prepare(directory)
    cache.publish(directory / name, _packed(name, compiled))
    _evict(directory, name)


def _packed(name: str, compiled: Compiled) -> bytes:
    facts = {"usage": dataclasses.asdict(compiled.usage), "log": compiled.log}
    content = json.dumps(facts).encode() + b"\n" + compiled.cubin
    return f"{_FORMAT} {name} {hashlib.sha256(content).hexdigest()}\n".encode() + content


def _unpacked(name: str, content: bytes) -> Compiled | None:
    """The kernel in a file's content; None if it is damaged or belongs to another name."""
    first, _, rest = content.partition(b"\n")
    if first != f"{_FORMAT} {name} {hashlib.sha256(rest).hexdigest()}".encode():
        return None
    facts, _, cubin = rest.partition(b"\n")
    try:
        fields = json.loads(facts)
        return Compiled(cubin, Usage(**fields["usage"]), fields["log"])
    except (ValueError, TypeError, KeyError):
        return None


def _evict(directory: Path, newest: str) -> None:
    """Delete the least recently used files beyond `BOUND`, and abandoned unfinished files."""
    files: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in directory.iterdir():
            with suppress(OSError):  # another process deleted the file
                facts = path.lstat()
                if path.name.startswith("."):
                    if facts.st_mtime < time.time() - _ABANDONED:
                        path.unlink()
                elif path.name != newest:
                    files.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= BOUND:
            break
        with suppress(OSError):
            path.unlink()
        total -= size


def _warn(error: cache.CacheError) -> None:
    """Warns, once per process, that the cache directory cannot be used."""
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
