"""The cache directory: its location, and reading and writing its files securely.

It is `$NBATTN_CACHE`, else `$XDG_CACHE_HOME/nbattn`, else `~/.cache/nbattn`; `NBATTN_CACHE=off`
disables it. A file is trusted only if no other user could have written it: the file and its
directory must belong to this user, be no symbolic links and not be writable by others. Files are
written atomically.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

VARIABLE = "NBATTN_CACHE"
LIMIT = 16 << 20  # the most bytes of a file that is read


class CacheError(Exception):
    """The cache cannot be used; the message is one line."""


def directory() -> Path | None:
    """Return the path of the directory, which may not exist; None when the cache is off.

    Raises:
        CacheError: the environment variables do not name an absolute path.
    """
    own, shared = os.environ.get(VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    if own.lower() == "off":
        return None
    if own:
        if not Path(own).is_absolute():
            raise CacheError(f'{VARIABLE}={own!r} is neither an absolute path nor "off"')
        return Path(own)
    if Path(shared).is_absolute():  # the XDG standard ignores relative paths
        return Path(shared) / "nbattn"
    try:
        return Path.home() / ".cache" / "nbattn"
    except RuntimeError as error:
        raise CacheError(f"there is no home directory ({error})") from None


def read(path: Path) -> bytes | None:
    """Return the content of a cache file; None if it does not exist.

    Raises:
        CacheError: the file cannot be read or is not trusted.
    """
    try:
        _check(path.parent, os.lstat(path.parent), stat.S_ISDIR)
        _check(path, os.lstat(path), stat.S_ISREG)  # before open(), which would block on a pipe
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(handle, "rb") as file:  # noqa: PTH123 (a descriptor)
            # again, since the file may have been replaced before open()
            _check(path, os.fstat(handle), stat.S_ISREG)
            content = file.read(LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CacheError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > LIMIT:
        raise CacheError(f"{path} is over {LIMIT >> 20} MiB")
    return content


def prepare(folder: Path) -> None:
    """Create the directory, accessible to this user only, if it does not exist.

    Raises:
        CacheError: it cannot be created or written, or is not trusted.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder, os.lstat(folder), stat.S_ISDIR)
    except OSError as error:
        raise CacheError(f"{folder} cannot be created: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CacheError(f"{folder} cannot be written")


def publish(path: Path, content: bytes) -> None:
    """Write a file atomically, readable by this user only.

    Raises:
        CacheError: the file cannot be written.
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
def locked(folder: Path, patience: float | None = None) -> Generator[None]:
    """Lock the folder while a file is read and replaced; readers need no lock.

    On systems without file locks, or after `patience` seconds, the last writer wins.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            if patience is None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            else:
                _try_to_lock(handle, patience)
        yield
    finally:
        os.close(handle)


def _try_to_lock(handle: int, seconds: float) -> None:
    import fcntl

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    return None


def _check(path: Path, status: os.stat_result, is_kind: object) -> None:
    """Raise CacheError unless only this user could have written the file or directory."""
    kind = "directory" if is_kind is stat.S_ISDIR else "file"
    if stat.S_ISLNK(status.st_mode):
        raise CacheError(f"{path} is a symbolic link")
    if not is_kind(status.st_mode):  # pyright: ignore
        raise CacheError(f"{path} is not a {kind}")
    if not hasattr(os, "geteuid"):  # Windows protects the user profile itself
        return
    if status.st_uid != os.geteuid():
        raise CacheError(f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(f"{path} is writable by others: chmod go-w {path}")
