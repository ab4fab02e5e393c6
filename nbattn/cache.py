"""The directory of files that nbattn keeps between processes: where it lies, and what is trusted.

It is `$NBATTN_CACHE`, else `$XDG_CACHE_HOME/nbattn`, else `~/.cache/nbattn`; `NBATTN_CACHE=off` is
none. A file counts only if nobody but this user could have written it: neither it nor its directory
may be a symbolic link, another user's, or writable by others. Files appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Generator
from pathlib import Path

VARIABLE = "NBATTN_CACHE"
LIMIT = 16 << 20  # bytes of a file that is read


class CacheError(Exception):
    """Why the cache cannot be used, in one line."""


def directory() -> Path | None:
    """Where it lies, whether or not it exists; None when it is switched off.

    Raises:
        CacheError: the variables name no absolute path.
    """
    own, shared = os.environ.get(VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    if own.lower() == "off":
        return None
    if own:
        if not Path(own).is_absolute():
            raise CacheError(f'{VARIABLE}={own!r} is neither an absolute path nor "off"')
        return Path(own)
    if Path(shared).is_absolute():  # others are to be ignored, says the XDG standard
        return Path(shared) / "nbattn"
    try:
        return Path.home() / ".cache" / "nbattn"
    except RuntimeError as error:
        raise CacheError(f"there is no home directory ({error})") from None


def read(path: Path) -> bytes | None:
    """A file of the cache; None where there is none.

    Raises:
        CacheError: it cannot be read or trusted.
    """
    try:
        _check(path.parent, os.lstat(path.parent), stat.S_ISDIR)
        _check(path, os.lstat(path), stat.S_ISREG)  # first: opening a pipe would wait
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(handle, "rb") as file:  # noqa: PTH123 (a descriptor)
            _check(
                path, os.fstat(handle), stat.S_ISREG
            )  # the file opened, not one put in its place
            content = file.read(LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > LIMIT:
        raise CacheError(f"{path} is over {LIMIT >> 20} MiB")
    return content


def prepare(folder: Path) -> None:
    """Make the directory, for this user alone, where there is none.

    Raises:
        CacheError: it cannot be made, written or trusted.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder, os.lstat(folder), stat.S_ISDIR)
    except OSError as error:
        raise CacheError(f"{folder} cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"{folder} cannot be written")


def publish(path: Path, content: bytes) -> None:
    """Put a file in place as a whole, readable by this user alone.

    Raises:
        CacheError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
        part = Path(name)
        try:
            with open(handle, "wb") as file:  # noqa: PTH123 (a descriptor)
                file.write(content)
                file.flush()
                os.fsync(handle)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CacheError(f"{path} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """One writer at a time between reading a file and replacing it; readers need no lock.

    Where the system has no file locks the last writer wins.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # network file systems may have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check(path: Path, found: os.stat_result, is_kind: object) -> None:
    """Raise unless only this user could have written it."""
    kind = "directory" if is_kind is stat.S_ISDIR else "file"
    if stat.S_ISLNK(found.st_mode):
        raise CacheError(f"{path} is a symbolic link")
    if not is_kind(found.st_mode):  # pyright: ignore
        raise CacheError(f"{path} is no {kind}")
    if not hasattr(os, "geteuid"):  # Windows keeps a profile private by other means
        return
    if found.st_uid != os.geteuid():
        raise CacheError(f"{path} belongs to user {found.st_uid}, not to {os.geteuid()}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(f"{path} is writable by others: chmod go-w {path}")
