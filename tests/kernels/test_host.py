"""Tests of the library of CPU kernels: its key, what it trusts, its errors, many that ask at once.

In most of them the compiler is a program that copies a finished library and counts its starts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import host_kernels
import pytest
from host_kernels import COPY, SLEEP, compilations, fake, needs_compiler, starts

from nbattn import cache
from nbattn.errors import BackendError
from nbattn.kernels import compilers, host, processor, sources, store

ROOT = Path(__file__).resolve().parents[2]
pytestmark = needs_compiler
LINE = r"nbattn: compiling its CPU kernels with g\+\+ 12\.2, {} \.\.\. {}\n"
ONCE = LINE.format("once per machine", r"took \d+\.\d s")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that a real compiler made of the small kernels."""
    folder = host_kernels.write(tmp_path_factory.mktemp("finished"))
    text = sources.amalgamate("kernels.cpp", folder / "cpu")
    (folder / "kernels.so").write_bytes(host.build(compilers.find(), text).code)
    return folder / "kernels.so"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Separate sources and cache, one compiler, nothing loaded; the folder of the libraries."""
    host_kernels.write(tmp_path)
    fake(tmp_path / "bin" / "g++", result=finished)
    monkeypatch.setattr(sources, "host_directory", lambda: tmp_path / "cpu")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    monkeypatch.setattr(store, "_warned", False)
    host.forget()
    yield tmp_path / "cache" / "libraries"
    host.forget()


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    return tmp_path / "bin" / "g++"


def lanes() -> int:
    """Of the library, as in a new process."""
    host.forget()
    return host.library().nb_native_lanes()


def test_compiled_once_then_from_memory_then_from_the_file(
    compiler: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert lanes() == 16
    assert host.library() is host.library()
    assert re.fullmatch(ONCE, capsys.readouterr().err)
    assert lanes() == 16
    assert capsys.readouterr() == ("", "")
    assert compilations(compiler) == 1
    (path,) = folder.iterdir()
    assert path.name == host.facts()["key"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(f.stat().st_mode) for f in (folder, folder.parent)] == [0o700, 0o700]


def test_facts_name_the_compiler_and_its_time():
    facts = host.facts()
    assert facts["compiler"] == "g++ 12.2"
    assert facts["seconds"] >= 0


def changed(name: str) -> Callable[[Path, pytest.MonkeyPatch], object]:
    """One more comment at the end of a file."""
    return lambda root, put: (root / name).write_text(host_kernels.FILES[name] + "// \n")


def other_macros(root: Path, put: pytest.MonkeyPatch) -> None:
    path = root / "bin" / "g++"
    path.write_text(
        path.read_text().replace("#define __GNUC__", "#define __AVX2__ 1\\n#define __GNUC__")
    )


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    **{f"a byte of {name}": changed(name) for name in host_kernels.FILES},
    "what the compiler defines": other_macros,
    "a flag": lambda _, put: put.setattr(compilers, "FLAGS", (*compilers.FLAGS, "-g")),
    "a library to link": lambda _, put: put.setattr(compilers, "LIBRARIES", ("-lm", "-lc")),
    "the processor": lambda _, put: put.setattr(processor, "identity", lambda: "another"),
    "the interface": lambda _, put: put.setattr(host, "VERSION", 2),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_key_changes_with_every_input(
    change: str, compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lanes()
    lanes()
    assert compilations(compiler) == 1
    CHANGES[change](tmp_path, monkeypatch)
    if change == "the interface":
        with pytest.raises(BackendError, match="have interface 1, this nbattn needs 2"):
            lanes()
    else:
        lanes()
    assert compilations(compiler) == 2


def test_key_ignores_the_places_of_compiler_sources_and_home(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lanes()
    elsewhere = host_kernels.write(tmp_path / "elsewhere")
    monkeypatch.setattr(sources, "host_directory", lambda: elsewhere / "cpu")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    fake(tmp_path / "elsewhere" / "c++")
    assert lanes() == 16


def test_the_compiler_reads_one_text_in_a_private_folder(
    compiler: Path, tmp_path: Path, finished: Path
):
    keep = f'{COPY} kernels.cpp "{tmp_path}/seen"; pwd > "{tmp_path}/where"'
    fake(compiler, result=finished, before=keep)
    lanes()
    seen = (tmp_path / "seen").read_text()
    assert seen == sources.amalgamate("kernels.cpp", tmp_path / "cpu")
    assert re.findall(r'#include "(.*)"', seen) == ["emulator.h"]
    assert not Path((tmp_path / "where").read_text().strip()).exists()


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def another(path: Path) -> None:
    """A sound file, under a name that is not its own."""
    entry = store.Entry({"compiler": "g++ 12.2", "seconds": 1}, b"\x7fELF")
    path.write_bytes(host.STORE.packed(path.name[::-1], entry))


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit of the library": lambda path: flipped(path, -100),
    "a bit of the hash": lambda path: flipped(path, 100),
    "a bare library": lambda path: path.write_bytes(path.read_bytes().split(b"\n", 2)[2]),
    "a file of another name": another,
    "too large": lambda path: path.write_bytes(bytes(cache.LIMIT + 1)),
    "a link": link,
    "a pipe": pipe,
    "group may write it": lambda path: path.chmod(0o660),
    "all may write it": lambda path: path.chmod(0o606),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_compiled_again(how: str, compiler: Path, folder: Path):
    lanes()
    (path,) = folder.iterdir()
    DAMAGED[how](path)
    assert lanes() == 16
    assert compilations(compiler) == 2
    assert lanes() == 16
    assert compilations(compiler) == 2
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600


def linked(folder: Path) -> str:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to(folder.parent / "elsewhere")
    return "is a symbolic link"


def writable(folder: Path) -> str:
    folder.chmod(0o777)
    return "is writable by others: chmod go-w"


def a_file(folder: Path) -> str:
    folder.rename(folder.parent / "elsewhere")
    folder.touch()
    return "libraries cannot be created: File exists"


@pytest.mark.parametrize("unsafe", [linked, writable, a_file])
def test_an_unsafe_folder_is_neither_read_nor_written(
    unsafe: Callable[[Path], str],
    compiler: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    lanes()
    capsys.readouterr()
    reason = unsafe(folder)
    before = sorted(folder.iterdir()) if folder.is_dir() else []
    seen = loads_from(monkeypatch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [lanes(), lanes()] == [16, 16]
    assert compilations(compiler) == 3
    (warning,) = caught
    assert str(warning.message).startswith("compiled kernels are kept in memory only: ")
    assert reason in str(warning.message)
    assert {path.parent for path in seen} == {Path(tempfile.gettempdir())}
    assert before == (sorted(folder.iterdir()) if folder.is_dir() else [])
    alone = LINE.format("for this process", r"took \d+\.\d s")
    assert re.fullmatch(alone * 2, capsys.readouterr().err)


def test_another_users_folder_is_neither_read_nor_written(
    compiler: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    lanes()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.warns(RuntimeWarning, match=f"belongs to user {mine}, not to {mine + 1}"):
        assert lanes() == 16
    assert compilations(compiler) == 2


def loads_from(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are loaded from now on."""
    seen: list[Path] = []
    load = host.ctypes.CDLL

    def loaded(name: str) -> object:
        path = Path(name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        seen.append(path)
        return load(name)

    monkeypatch.setattr(host.ctypes, "CDLL", loaded)
    return seen


def test_a_copy_of_the_checked_bytes_is_loaded_and_deleted(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not the cached file, which a process of the same user may replace after the check."""
    seen = loads_from(monkeypatch)
    read = host.STORE.read

    def replaced(key: str) -> object:
        entry = read(key)
        if entry is not None:
            (folder / key).write_bytes(b"no library")
        return entry

    lanes()
    monkeypatch.setattr(type(host.STORE), "read", lambda self, key: replaced(key))
    assert lanes() == 16
    assert [path.parent for path in seen] == [folder, folder]
    assert not any(path.exists() for path in seen)


def test_another_folder_is_loaded_from_where_one_allows_no_execution(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    lanes()
    load, refused = host.ctypes.CDLL, [folder]

    def loaded(name: str) -> object:
        if Path(name).parent in refused:
            raise OSError(f"{name}: failed to map segment from shared object")
        return load(name)

    monkeypatch.setattr(host.ctypes, "CDLL", loaded)
    assert lanes() == 16
    refused.append(Path(tempfile.gettempdir()))
    with pytest.raises(BackendError) as caught:
        lanes()
    assert re.fullmatch(
        r"the CPU kernels do not load: .*\.so: failed to map segment from shared object\n"
        r'  fix:   export NBATTN_CACHE="\$PWD/nbattn-cache", where the file system allows '
        r'execution; or backend="tiled"',
        str(caught.value),
    )


def test_a_read_only_folder_is_still_read(
    compiler: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Asked by `os.access`, since root may write anything."""
    lanes()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and access(path, mode))
    seen = loads_from(monkeypatch)
    assert lanes() == 16  # without a warning
    assert compilations(compiler) == 1
    assert seen[0].parent == Path(tempfile.gettempdir())


def test_cache_off_writes_nothing(
    compiler: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(cache.VARIABLE, "off")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert [lanes(), host.library().nb_native_lanes(), lanes()] == [16, 16, 16]
    assert compilations(compiler) == 2
    assert not folder.parent.exists()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_relative_cache_path_is_refused_with_one_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cache.VARIABLE, "cache")
    with pytest.warns(RuntimeWarning, match="is neither an absolute path nor") as caught:
        assert [lanes(), lanes()] == [16, 16]
    assert len(caught) == 1


FAILED = (
    "the CPU kernels do not compile with g++ 12.2:\n{}\n"
    '  given: {} {}\n  fix:   pip install "ziglang>=0.13"; then '
    'export CXX="python -m ziglang c++"; or backend="tiled"'
)


def test_a_failing_compilation_shows_the_last_lines_and_is_not_repeated(
    compiler: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    said = [f"kernels.cpp:{number}: error: no" for number in range(20)]
    fake(compiler, says="\\n".join(said))
    flags = " ".join(compilers.find().flags)
    for _ in range(3):
        with pytest.raises(BackendError) as caught:
            host.library()
        assert str(caught.value) == FAILED.format("\n".join(said[-12:]), compiler, flags)
    assert compilations(compiler) == 1
    assert re.fullmatch(LINE.format("once per machine", "failed"), capsys.readouterr().err)
    assert host.missing().startswith("the CPU kernels do not compile with g++ 12.2: ")
    assert list(folder.iterdir()) == []


def test_a_compiler_that_makes_nothing(compiler: Path):
    fake(compiler, result=Path(os.devnull))
    compiler.write_text(compiler.read_text().rpartition("while")[0])
    with pytest.raises(BackendError, match="do not compile"):
        host.library()


def test_a_compiler_that_never_ends(compiler: Path, monkeypatch: pytest.MonkeyPatch):
    fake(compiler, before=f"exec {SLEEP} 600")
    monkeypatch.setattr(host, "_SECONDS", 0.2)
    with pytest.raises(BackendError, match=r"timed out after 0\.2 seconds"):
        host.library()


def test_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiler = compilers.find()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(BackendError, match=r"do not compile .*\n.*No such file or directory"):
        host.build(compiler, "")


def test_what_is_not_a_library(compiler: Path, tmp_path: Path):
    (tmp_path / "text").write_text("no library")
    fake(compiler, result=tmp_path / "text")
    with pytest.raises(BackendError, match="the CPU kernels do not load: "):
        host.library()


def test_a_library_outlives_its_compiler(compiler: Path, folder: Path):
    lanes()
    compiler.unlink()
    assert lanes() == 16
    assert host.missing() is None
    (path,) = folder.iterdir()
    flipped(path, -1)
    with pytest.raises(BackendError, match="no C\\+\\+ compiler for the CPU kernels"):
        lanes()


def test_a_library_of_other_sources_is_not_taken(compiler: Path, tmp_path: Path):
    lanes()
    compiler.unlink()
    changed("cpu/lanes.h")(tmp_path, None)
    with pytest.raises(BackendError, match="no C\\+\\+ compiler for the CPU kernels"):
        lanes()
    host.forget()
    assert host.missing() == (
        f"no C++ compiler for the CPU kernels: {' '.join(compilers.fix().split())}"
    )


def test_a_wrong_cxx_is_an_error_although_a_library_is_there(monkeypatch: pytest.MonkeyPatch):
    lanes()
    monkeypatch.setenv("CXX", "g+++")
    with pytest.raises(BackendError, match=r"CXX='g\+\+\+': there is no program g\+\+\+"):
        lanes()
    host.forget()
    assert host.missing().startswith("CXX='g+++': there is no program g+++: ")


def test_missing_compiles_nothing_and_starts_nothing_where_a_library_is(
    compiler: Path, folder: Path
):
    assert host.missing() is None
    assert (len(starts(compiler)), compilations(compiler)) == (1, 0)
    assert host.missing() is None
    assert len(starts(compiler)) == 1
    assert not folder.exists()
    lanes()
    before = len(starts(compiler))
    host.forget()
    assert host.missing() is None
    assert len(starts(compiler)) == before


def test_missing_sources_are_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.undo()
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "a" / "b" / "kernels" / "sources.py"))
    host.forget()
    assert host.missing().endswith("has kernels.cpp: " + sources.again())
    host.forget()


def test_threads_compile_once(compiler: Path, finished: Path):
    fake(compiler, result=finished, before=f"{SLEEP} 0.2")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: host.library(), range(8)))
    assert len({id(one) for one in found}) == 1
    assert compilations(compiler) == 1


CHILD = """
import pathlib, sys
from nbattn.kernels import host, sources
sources.host_directory = lambda: pathlib.Path(sys.argv[1])
print(host.library().nb_native_lanes())
"""


def child(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that loads the library."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "cpu")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_of_processes_that_start_together_one_compiles(
    compiler: Path, finished: Path, tmp_path: Path
):
    fake(compiler, result=finished, before=f"{SLEEP} 1")
    ended = [process.communicate(timeout=600) for process in [child(tmp_path) for _ in range(4)]]
    assert [out for out, _ in ended] == ["16\n"] * 4
    assert compilations(compiler) == 1
    assert re.fullmatch(ONCE, "".join(err for _, err in ended))


def test_a_process_that_is_killed_while_it_compiles_hinders_nobody(
    compiler: Path, finished: Path, folder: Path, tmp_path: Path
):
    fake(compiler, before=f"exec {SLEEP} 600")
    process = child(tmp_path)
    while not compilations(compiler):
        assert process.poll() is None
        time.sleep(0.01)
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        fake(compiler, result=finished)
        assert lanes() == 16
        assert len(list(folder.iterdir())) == 1
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # its compiler still runs
        process.communicate()


def test_who_waits_too_long_for_another_compiles_as_well(
    compiler: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    host.STORE.prepare()
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    with cache.locked(folder):
        assert lanes() == 16


def test_least_recently_used_libraries_are_deleted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    lanes()
    (old,) = folder.iterdir()
    monkeypatch.setattr(host.STORE, "bound", 10)
    changed("cpu/lanes.h")(tmp_path, None)
    assert lanes() == 16
    assert not old.exists()


def test_a_program_without_a_console(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert lanes() == 16


def test_real_kernels_need_the_c_library_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    text = sources.amalgamate("kernels.cpp", host_kernels.write(tmp_path) / "cpu")
    (tmp_path / "made.so").write_bytes(host.build(compilers.find(), text).code)
    reader = shutil.which("readelf")
    if reader is None:
        pytest.skip("no readelf")
    done = subprocess.run([reader, "-d", tmp_path / "made.so"], capture_output=True, text=True)
    needed = re.findall(r"NEEDED.*\[(.*?)\]", done.stdout)
    assert needed
    assert all(re.match(r"lib(c|m|pthread|c\.musl.*)\.so|ld-", name) for name in needed)


def test_changed_sources_give_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By a real compiler, and both are loaded in one process."""
    monkeypatch.setenv("PATH", os.environ["PATH"] + os.pathsep + os.defpath)
    (tmp_path / "bin" / "g++").unlink()
    assert lanes() == 16
    (tmp_path / "cpu" / "lanes.h").write_text("#define LANES 8\n")
    assert lanes() == 8
