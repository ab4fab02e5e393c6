"""Keeps compiled code in a folder of the cache directory (`nbattn/cache.py`), checked when read.

A file's name is a hash of everything that its code depends on. The file contains its own name and
the hash of its content: one that is damaged, has another name or could have been written by others
counts as missing and is replaced. If the directory cannot be used, nothing is kept, and one warning
gives the reason. When the files exceed a bound, the least recently used ones are deleted. Code that
others could write would run with this user's rights: see SECURITY.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Generator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbattn import cache

_ABANDONED = 3600  # seconds; the process of an unfinished file that is older has ended
_PATIENCE = 600.0  # seconds to wait for another process's build before building as well
_warned = False


@dataclass(frozen=True, slots=True)
class Entry:
    """Compiled code, and facts about it that JSON can hold."""

    facts: dict[str, Any]
    code: bytes


@dataclass(slots=True)
class Store:
    """One folder of compiled code.

    Args:
        name: the folder's name in the cache directory.
        form: the first word of each file, which names its format.
        bound: the most bytes of all files together.
    """

    name: str
    form: str
    bound: int

    def folder(self) -> Path | None:
        """The folder, which may not exist; None if the cache is switched off.

        Raises:
            CacheError: the environment variables do not give an absolute path.
        """
        root = cache.directory()
        return None if root is None else root / self.name

    def read(self, key: str) -> Entry | None:
        """The entry of a key; None if its file is missing, damaged or unsafe.

        Nothing in the cache directory makes this raise.
        """
        folder = self._folder_or_warning()
        if folder is None:
            return None
        with suppress(cache.CacheError):
            content = cache.read(folder / key)
            entry = None if content is None else self.unpacked(key, content)
            if entry is not None:
                with suppress(OSError):  # the directory may be read-only
                    os.utime(folder / key)
            return entry
        return None

    def keys(self, start: str) -> list[str]:
        """The keys of all files whose names start so, sound or not, the latest used first."""
        folder = self._folder_or_warning()
        found: list[tuple[float, str]] = []
        if folder is not None:
            with suppress(OSError):
                found = [(path.lstat().st_mtime, path.name) for path in folder.glob(f"{start}*")]
        return [name for _, name in sorted(found, reverse=True)]

    def prepare(self) -> Path | None:
        """Creates the folder; None, with a warning, if it cannot be written or is not safe."""
        folder = self._folder_or_warning()
        if folder is None:
            return None
        try:
            cache.prepare(folder.parent)
            cache.prepare(folder)
        except cache.CacheError as error:
            _warn(error)
            return None
        return folder

    @contextlib.contextmanager
    def locked(self) -> Generator[Path | None]:
        """Makes other processes that build wait; yields the folder, None if it cannot be used."""
        folder = self.prepare()
        with nullcontext() if folder is None else cache.locked(folder, _PATIENCE):
            yield folder

    def publish(self, key: str, entry: Entry) -> None:
        """Writes an entry, with a warning if that is impossible."""
        folder = self.prepare()
        if folder is None:
            return
        try:
            cache.publish(folder / key, self.packed(key, entry))
        except cache.CacheError as error:
            _warn(error)
            return
        self._evict(folder, key)

    def packed(self, key: str, entry: Entry) -> bytes:
        """The content of a file."""
        content = json.dumps(entry.facts).encode() + b"\n" + entry.code
        return f"{self.form} {key} {hashlib.sha256(content).hexdigest()}\n".encode() + content

    def unpacked(self, key: str, content: bytes) -> Entry | None:
        """The entry in a file's content; None if it is damaged or belongs to another key."""
        first, _, rest = content.partition(b"\n")
        if first != f"{self.form} {key} {hashlib.sha256(rest).hexdigest()}".encode():
            return None
        facts, _, code = rest.partition(b"\n")
        try:
            return Entry(json.loads(facts), code)
        except ValueError:
            return None

    def _folder_or_warning(self) -> Path | None:
        try:
            return self.folder()
        except cache.CacheError as error:
            _warn(error)
            return None

    def _evict(self, folder: Path, newest: str) -> None:
        """Deletes the least recently used files beyond the bound, and abandoned unfinished ones."""
        files: list[tuple[float, int, Path]] = []
        with suppress(OSError):
            for path in folder.iterdir():
                with suppress(OSError):  # another process deleted the file
                    facts = path.lstat()
                    if path.name.startswith("."):
                        if facts.st_mtime < time.time() - _ABANDONED:
                            path.unlink()
                    elif path.name != newest:
                        files.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.bound:
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
