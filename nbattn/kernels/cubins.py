"""Caches compiled CUDA kernels in memory and in the folder `cubins` (`nbattn/kernels/store.py`).

A file's name is the hash of everything that a cubin depends on: every byte of the kernel's source
with its headers, the compiler's options, target, version and headers.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from nbattn.kernels import nvrtc, sources, toolkit
from nbattn.kernels.nvrtc import Compiled, Usage
from nbattn.kernels.store import Entry, Store
from nbattn.kernels.variant import Variant

STORE = Store("cubins", "nbattn-cubin-1", 256 << 20)
_memory: dict[tuple[Variant, str], Compiled] = {}


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
        STORE.form,
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
    return STORE.folder()


def _from_disk_or_compiler(variant: Variant, arch: str) -> Compiled:
    name = key(variant, arch)
    entry = STORE.read(name)
    if entry is not None and (cached := _compiled(entry)) is not None:
        return cached
    compiled = nvrtc.compile(variant, arch)
    STORE.publish(name, _entry(compiled))
    return compiled


def _entry(compiled: Compiled) -> Entry:
    facts = {"usage": dataclasses.asdict(compiled.usage), "log": compiled.log}
    return Entry(facts, compiled.cubin)


def _compiled(entry: Entry) -> Compiled | None:
    """The kernel of an entry; None if its facts are not those of this version."""
    try:
        return Compiled(entry.code, Usage(**entry.facts["usage"]), entry.facts["log"])
    except (TypeError, KeyError):
        return None
