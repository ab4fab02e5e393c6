"""Compiles the kernels of CPUs with the machine's C++ compiler, once per machine, and loads them.

The library is kept in the folder `libraries` of the cache directory (`nbattn/kernels/store.py`).
The first half of a file's name is the hash of every byte of the sources, the flags, the processor's
features and the system; the second half is the hash of the compiler. Where no compiler is
installed any more, a library of any compiler is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from nbattn import cache
from nbattn.errors import BackendError
from nbattn.kernels import compilers, processor, sources
from nbattn.kernels.compilers import Compiler
from nbattn.kernels.store import Entry, Store

VERSION = 1  # of the interface between the kernels and Python
STORE = Store("libraries", "nbattn-library-1", 64 << 20)
_SECONDS = 600  # the longest compilation
_LINES = 12  # of the compiler's messages that an error shows
_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_failure: BackendError | None = None
_facts: dict[str, Any] = {}  # of the loaded library
_reason: list[str | None] = []  # of `missing`, once it is known


def library() -> ctypes.CDLL:
    """The loaded kernels; the first call of a machine compiles them, with a line on stderr.

    A failure is remembered: later calls of the process raise it again without another try.

    Raises:
        BackendError: there is no compiler, it does not compile the kernels, or they do not load.
    """
    global _library, _failure
    if _library is not None:
        return _library
    with _lock:
        if _library is None:
            if _failure is not None:
                raise BackendError(_failure.problem, _failure.fix, _failure.where)
            try:
                _library = _loaded(*_found_or_built())
            except BackendError as error:
                _failure = error
                raise
        return _library


def missing() -> str | None:
    """Why there can be no kernels on this machine and the fix, in one line; None if there can be.

    Compiles nothing: a compiler is enough, or a library that was compiled before. Where `library`
    has failed, that is the reason.
    """
    if _failure is not None:
        return _line(_failure)
    if not _reason:
        _reason.append(_why_not())
    return _reason[0]


def stored() -> tuple[str, Entry] | None:
    """The library in the cache that `library` would load, with its key; None if it would compile.

    Compiles and writes nothing.
    """
    text = _text()
    try:
        name = key(compilers.find(), text)
    except BackendError:
        return _stored(text)
    entry = STORE.read(name)
    return None if entry is None else (name, entry)


def facts() -> dict[str, Any]:
    """The loaded library's compiler, the seconds that it took, and the key of its file.

    Raises:
        BackendError: as `library`.
    """
    library()
    return dict(_facts)


def forget() -> None:
    """Forgets what this process knows, but keeps the files."""
    global _library, _failure
    _library = _failure = None
    _reason.clear()


def key(compiler: Compiler, text: str) -> str:
    """The hash of everything that a library depends on; `text` is that of the sources."""
    return f"{_base(text)}-{compiler.identity[:32]}"


def _base(text: str) -> str:
    """The first half of a key: everything but the compiler."""
    parts = (STORE.form, VERSION, text, compilers.FLAGS, processor.identity())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _text() -> str:
    return sources.amalgamate(sources.HOST, sources.host_directory())


def _why_not() -> str | None:
    try:
        if _stored(_text()) is None:
            compilers.find()
    except BackendError as error:
        return _line(error)
    return None


def _line(error: BackendError) -> str:
    return " ".join(f"{error.problem}: {error.fix}".split())


def _stored(text: str) -> tuple[str, Entry] | None:
    """A library of any compiler, with its key; none where $CXX asks for a certain compiler."""
    keys = [] if compilers.is_named() else STORE.keys(f"{_base(text)}-")
    found = ((key, STORE.read(key)) for key in keys)
    return next(((key, entry) for key, entry in found if entry is not None), None)


def _found_or_built() -> tuple[str, Entry]:
    """The key and the library: read, or else compiled by one process while others wait."""
    text = _text()
    try:
        compiler = compilers.find()
    except BackendError:
        if (stored := _stored(text)) is None:
            raise
        return stored
    name = key(compiler, text)
    if (entry := STORE.read(name)) is not None:
        return name, entry
    with STORE.locked() as folder:
        if (entry := STORE.read(name)) is None:
            with _announced(compiler, "for this process" if folder is None else "once per machine"):
                entry = build(compiler, text)
            STORE.publish(name, entry)
    return name, entry


@contextlib.contextmanager
def _announced(compiler: Compiler, how: str) -> Generator[None]:
    """One line on stderr around a compilation: it may happen inside a training step."""

    def say(text: str) -> None:
        if sys.stderr is not None:  # pyright: ignore  # a program without a console has none
            print(text, end="", file=sys.stderr, flush=True)

    start, end = time.perf_counter(), "failed"
    say(f"nbattn: compiling its CPU kernels with {compiler.name}, {how} ... ")
    try:
        yield
        end = f"took {time.perf_counter() - start:.1f} s"
    finally:
        say(f"{end}\n")


def build(compiler: Compiler, text: str) -> Entry:
    """Compiles the kernels in a private temporary folder, without the cache.

    Raises:
        BackendError: the compiler fails; the message contains its last lines.
    """
    start = time.perf_counter()
    flags = (*compiler.command, *compiler.flags)
    try:
        with tempfile.TemporaryDirectory(prefix="nbattn-", ignore_cleanup_errors=True) as name:
            source, result = Path(name, sources.HOST), Path(name, "kernels.so")
            source.write_text(text, "utf-8")
            command = (*flags, str(source), "-o", str(result), *compilers.LIBRARIES)
            done = compilers.run(command, _SECONDS, Path(name))
            if not done.returncode and result.is_file():
                seconds = round(time.perf_counter() - start, 3)
                return Entry({"compiler": compiler.name, "seconds": seconds}, result.read_bytes())
        log = done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        log = str(error)
    last = "\n".join(log.strip().splitlines()[-_LINES:])
    raise BackendError(
        f"the CPU kernels do not compile with {compiler.name}:\n{last}",
        f'{compilers.ZIG}; then export {compilers.VARIABLE}="python -m ziglang c++"; '
        'or backend="tiled"',
        " ".join(flags),
    )


def _loaded(key: str, entry: Entry) -> ctypes.CDLL:
    library = _opened(entry.code)
    library.nb_native_run.argtypes = (ctypes.c_void_p,)
    library.nb_native_run.restype = None
    found = library.nb_native_version()
    if found != VERSION:
        raise BackendError(
            f"the CPU kernels have interface {found}, this nbattn needs {VERSION}",
            sources.again(),
        )
    _facts.update(entry.facts, key=key)
    return library


def _opened(code: bytes) -> ctypes.CDLL:
    """Loads exactly the bytes that were checked.

    They are written to a new file that only this user can open, loaded, and deleted: whatever
    happens to the cached file, and although a library has no room for a hash in front. Not in
    memory (memfd): Linux only, and the loader takes two of one descriptor for the same library.
    The folder of libraries comes first, since /tmp is often mounted without execution.
    """
    problem = ""
    for folder in _private_folders():
        try:
            with tempfile.NamedTemporaryFile(prefix=".load-", suffix=".so", dir=folder) as file:
                file.write(code)
                file.flush()
                return ctypes.CDLL(file.name)
        except OSError as error:
            problem = str(error)
    raise BackendError(
        f"the CPU kernels do not load: {problem}",
        f'export {cache.VARIABLE}="$PWD/nbattn-cache", where the file system allows execution; or '
        'backend="tiled"',
    )


def _private_folders() -> Iterator[str]:
    with contextlib.suppress(cache.CacheError):
        folder = STORE.folder()
        if folder is not None and folder.is_dir():
            cache.prepare(folder)
            yield str(folder)
    yield tempfile.gettempdir()
