"""Tests of the cache of cubins: its keys, what it trusts, and many processes that die at once.

Most tests replace NVRTC by a compiler that returns its own arguments as the cubin.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import probe_kernel
import pytest
from probe_kernel import needs_nvrtc
from work import work

from nbattn import cache
from nbattn.errors import BackendError
from nbattn.kernels import cubins, nvrtc, sources, store, toolkit
from nbattn.kernels.nvrtc import Compiled, Usage
from nbattn.kernels.variant import Variant

ROOT = Path(__file__).resolve().parents[2]
INSTRUMENTS = ROOT / "tests" / "instruments"
KILLED = 40
FACTS = Usage(32, 0, 0, 0, 0, 1, 0.25)


def made(variant: Variant, arch: str, times: int = 50) -> Compiled:
    """A "cubin" that says what it is, with newlines in it."""
    text = f"\x7fELF\n{variant.options} {arch}\n{sources.digest(variant.source)}\n"
    return Compiled(text.encode() * times, FACTS, f"log of {arch}")


@pytest.fixture(autouse=True)
def cubin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Separate cache and sources, nothing in memory; the directory of the cubins."""
    folder = probe_kernel.write(tmp_path)
    monkeypatch.setattr(sources, "directory", lambda: folder)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_warned", False)
    cubins.forget()
    yield tmp_path / "cache" / "cubins"
    cubins.forget()


@pytest.fixture
def compiler_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Variant, str]]:
    """The calls of the compiler that replaces NVRTC."""
    asked: list[tuple[Variant, str]] = []

    def compile(variant: Variant, arch: str) -> Compiled:
        asked.append((variant, arch))
        return made(variant, arch)

    pretend(monkeypatch.setattr)
    monkeypatch.setattr(nvrtc, "compile", compile)
    return asked


def pretend(put: Callable[[object, str, object], None]) -> None:
    """No NVRTC is needed."""
    put(nvrtc, "identity", lambda: "13.0 (9 bytes)")
    put(toolkit, "headers_digest", lambda: "0" * 64)
    put(nvrtc, "compile", made)


def packed(name: str, compiled: Compiled) -> bytes:
    return cubins.STORE.packed(name, cubins._entry(compiled))


def unpacked(name: str, content: bytes) -> Compiled | None:
    entry = cubins.STORE.unpacked(name, content)
    return entry and cubins._compiled(entry)


def again(variant: Variant | None = None, arch: str = "80") -> Compiled:
    """As in a new process."""
    cubins.forget()
    return cubins.get(variant or probe_kernel.variant(), arch)


def test_compiled_once_then_from_memory_then_from_the_file(compiler_calls, cubin_directory: Path):
    variant = probe_kernel.variant()
    first = cubins.get(variant, "80")
    assert cubins.get(variant, "80") is first
    assert again() == first == made(variant, "80")
    assert compiler_calls == [(variant, "80")]
    (path,) = cubin_directory.iterdir()
    assert path.name == cubins.key(variant, "80")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [stat.S_IMODE(f.stat().st_mode) for f in (cubin_directory, cubin_directory.parent)] == [
        0o700,
        0o700,
    ]


def test_only_the_file_is_read_where_memory_is_empty(
    compiler_calls, monkeypatch: pytest.MonkeyPatch
):
    again()
    monkeypatch.setattr(nvrtc, "compile", None)
    assert again() == made(probe_kernel.variant(), "80")


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Path], object]] = {
    **{
        f"a byte of {name}": lambda put, sources, name=name: (sources / name).write_text(
            probe_kernel.FILES[name].replace("128", "0x80").replace("SCALE 2", "SCALE 02") + "//"
        )
        for name in probe_kernel.FILES
    },
    "NVRTC": lambda put, _: put.setattr(nvrtc, "identity", lambda: "13.0 (10 bytes)"),
    "CUDA's headers": lambda put, _: put.setattr(toolkit, "headers_digest", lambda: "1" * 64),
    "a flag": lambda put, _: put.setattr(nvrtc, "_FLAGS", (*nvrtc._FLAGS, "-lineinfo")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_cubin_key_changes_with_every_input(
    change: str, compiler_calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    again()
    again()
    assert len(compiler_calls) == 1
    CHANGES[change](monkeypatch, tmp_path / "cuda")
    again()
    assert len(compiler_calls) == 2


def test_cubin_key_changes_with_variant_and_target(compiler_calls):
    probe = probe_kernel.variant(64)
    other = Variant(probe.source, "nb_other", probe.constants, probe.threads, 0)
    wanted = {
        (probe, "90a"), (probe, "80"), (probe_kernel.variant(65), "90a"), (other, "90a"),
        (probe_kernel.variant(64, shared_bytes=16), "90a"),
    }  # fmt: skip
    for variant, arch in wanted:
        again(variant, arch)
    assert set(compiler_calls) == wanted
    assert len(compiler_calls) == len({cubins.key(*one) for one in wanted}) == len(wanted)


def test_memory_separates_targets_and_variants(compiler_calls):
    for variant in (probe_kernel.variant(64), probe_kernel.variant(32)):
        for arch in ("80", "86"):
            assert cubins.get(variant, arch) == made(variant, arch)
    assert len(compiler_calls) == 4


def test_cubin_key_ignores_folder_time_and_home(
    compiler_calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = cubins.key(probe_kernel.variant(), "80")
    elsewhere = probe_kernel.write(tmp_path / "elsewhere")
    monkeypatch.setattr(sources, "directory", lambda: elsewhere)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    os.utime(elsewhere / "probe.cu", (1, 1))
    assert cubins.key(probe_kernel.variant(), "80") == first


def flipped(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def another(path: Path) -> None:
    """A sound file, under a name that is not its own."""
    other = probe_kernel.variant(128)
    cubins.get(other, "80")
    (path.parent / cubins.key(other, "80")).replace(path)


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def later_format(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"nbattn-cubin-1", b"nbattn-cubin-2", 1))


DAMAGED: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit of the cubin": lambda path: flipped(path, -100),
    "a bit of the facts": lambda path: flipped(path, 160),
    "a bit of the hash": lambda path: flipped(path, 100),
    "a bare cubin": lambda path: path.write_bytes(b"\x7fELF" + bytes(4000)),
    "another's file": another,
    "a later format": later_format,
    "too large": lambda path: path.write_bytes(bytes(cache.LIMIT + 1)),
    "a link": link,
    "a pipe": pipe,
    "group may write it": lambda path: path.chmod(0o660),
    "all may write it": lambda path: path.chmod(0o606),
    "unreadable by its hash": lambda path: path.write_bytes(
        packed(path.name, Compiled(b"\x7fELF", FACTS, "")).replace(b"{", b"[", 1)
    ),
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_file_is_compiled_again(how: str, compiler_calls, cubin_directory: Path):
    wanted = again()
    path = cubin_directory / cubins.key(probe_kernel.variant(), "80")
    before = path.read_bytes()
    DAMAGED[how](path)
    compiler_calls.clear()
    assert again() == wanted
    assert compiler_calls == [(probe_kernel.variant(), "80")]
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert again() == wanted
    assert len(compiler_calls) == 1


def test_every_flipped_bit_is_seen(compiler_calls, cubin_directory: Path, cases):
    again()
    (path,) = cubin_directory.iterdir()
    content = path.read_bytes()
    for at in range(len(content)):
        flipped_copy = bytearray(content)
        flipped_copy[at] ^= 1 << at % 8
        assert unpacked(path.name, bytes(flipped_copy)) is None
        cases("cubins: damaged bytes", 1)
    for size in range(len(content)):
        assert unpacked(path.name, content[:size]) is None
    assert unpacked(path.name, content) == made(probe_kernel.variant(), "80")


def test_a_file_without_a_known_field_is_compiled_again(compiler_calls, cubin_directory: Path):
    """Hash and name are right, but the facts lack a field."""
    again()
    (path,) = cubin_directory.iterdir()
    head = b'{"usage": {"registers": 1}, "log": ""}\n\x7fELF'
    hashed = hashlib.sha256(head).hexdigest()
    path.write_bytes(f"{cubins.STORE.form} {path.name} {hashed}\n".encode() + head)
    assert again() == made(probe_kernel.variant(), "80")
    assert len(compiler_calls) == 2


def linked(cubin_directory: Path) -> str:
    cubin_directory.rename(cubin_directory.parent / "elsewhere")
    cubin_directory.symlink_to(cubin_directory.parent / "elsewhere")
    return "is a symbolic link"


def writable(cubin_directory: Path) -> str:
    cubin_directory.chmod(0o777)
    return "is writable by others: chmod go-w"


def a_file(cubin_directory: Path) -> str:
    cubin_directory.rename(cubin_directory.parent / "elsewhere")
    cubin_directory.touch()
    return "cubins cannot be created: File exists"


UNSAFE: dict[str, Callable[[Path], str]] = {
    "a link": linked,
    "others may write it": writable,
    "a file": a_file,
}


@pytest.mark.parametrize("how", UNSAFE)
def test_an_unsafe_directory_is_neither_read_nor_written(
    how: str, compiler_calls, cubin_directory: Path
):
    again()
    expected_warning = UNSAFE[how](cubin_directory)
    memory_only(expected_warning, compiler_calls)


def test_another_users_directory_is_neither_read_nor_written(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    again()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    memory_only(f"belongs to user {mine}, not to {mine + 1}", compiler_calls)


def memory_only(expected_warning: str, compiler_calls: list[tuple[Variant, str]]) -> None:
    """Three kernels are compiled and cached in memory only; one warning gives the reason."""
    compiler_calls.clear()
    cubins.forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for size in (64, 72, 80):
            variant = probe_kernel.variant(size)
            assert cubins.get(variant, "80") == made(variant, "80")
            assert cubins.get(variant, "80") is cubins.get(variant, "80")
    assert len(compiler_calls) == 3
    (warning,) = caught
    text = str(warning.message)
    assert warning.category is RuntimeWarning
    assert text.startswith("compiled kernels are kept in memory only: ")
    assert expected_warning in text
    assert text.endswith(
        "NBATTN_CACHE=/another/directory keeps them there, NBATTN_CACHE=off silences this"
    )


def test_a_read_only_directory_is_still_read(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    """Asked by `os.access`, since root may write anything."""
    cached = again()
    cubin_directory.chmod(0o500)
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != cubin_directory and access(path, mode)
    )
    assert again() == cached
    assert len(compiler_calls) == 1
    compiler_calls.clear()
    with pytest.warns(RuntimeWarning, match="cubins cannot be written"):
        assert again(arch="90a") == made(probe_kernel.variant(), "90a")
    assert len(list(cubin_directory.iterdir())) == 1
    cubin_directory.chmod(0o700)


def test_a_full_disk_leaves_no_partial_file(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert again() == made(probe_kernel.variant(), "80")
    assert list(cubin_directory.iterdir()) == []


def test_cache_off_writes_no_cubin(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(cache.VARIABLE, "off")
    assert again() is cubins.get(probe_kernel.variant(), "80")
    again()
    assert len(compiler_calls) == 2
    assert not cubin_directory.parent.exists()


def test_a_relative_cache_path_is_refused(compiler_calls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(cache.VARIABLE, "cache")
    memory_only("NBATTN_CACHE='cache' is neither an absolute path nor \"off\"", compiler_calls)


def test_where_warnings_are_errors_the_next_call_works(compiler_calls, cubin_directory: Path):
    cubin_directory.parent.touch()
    with pytest.raises(RuntimeWarning):
        again()
    assert again() == made(probe_kernel.variant(), "80")


def test_compile_errors_are_not_cached(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(variant: Variant, arch: str) -> Compiled:
        raise BackendError("no")

    monkeypatch.setattr(nvrtc, "compile", refuse)
    for _ in range(2):
        with pytest.raises(BackendError, match="no"):
            cubins.get(probe_kernel.variant(), "80")
    assert not cubin_directory.exists()


def test_least_recently_used_cubins_are_deleted(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    variants = [probe_kernel.variant(16 * n) for n in range(1, 9)]
    paths = [cubin_directory / cubins.key(variant, "80") for variant in variants]
    for number, variant in enumerate(variants[:7]):
        again(variant)
        os.utime(paths[number], (1000 + number,) * 2)
    again(variants[1])  # a hit makes it young
    monkeypatch.setattr(cubins.STORE, "bound", 4 * paths[0].stat().st_size + 50)
    again(variants[7])
    assert [n for n, path in enumerate(paths) if path.exists()] == [1, 4, 5, 6, 7]


def test_the_newest_cubin_stays_whatever_its_size(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cubins.STORE, "bound", 0)
    for size in (16, 32):
        again(probe_kernel.variant(size))
        assert [path.name for path in cubin_directory.iterdir()] == [
            cubins.key(probe_kernel.variant(size), "80")
        ]


def test_old_partial_files_are_deleted(compiler_calls, cubin_directory: Path):
    again()
    for name, age in ((".abandoned", 7200), (".in-work", 60)):
        (cubin_directory / name).write_bytes(b"part")
        os.utime(cubin_directory / name, (time.time() - age,) * 2)
    again(arch="86")
    assert {path.name for path in cubin_directory.iterdir() if path.name[0] == "."} == {".in-work"}


# Many processes


def large(variant: Variant, arch: str) -> Compiled:
    """Of a megabyte, so that many die while they write it."""
    return made(variant, arch, 8000)


def read_and_write(seed: int, cubin_directory: Path) -> None:
    """Ask for kernels in random order and check every answer; 1 as the exit status: a wrong one."""
    pretend(setattr)
    nvrtc.compile = large
    dice = random.Random(seed)
    parent = os.getppid()
    while os.getppid() == parent:  # until it is killed
        variant = probe_kernel.variant(16 * dice.randint(1, 6))
        cubins.forget()
        if cubins.get(variant, "80") != large(variant, "80"):
            os._exit(1)
        if dice.random() < 0.2:  # so that there is always something to write
            (cubin_directory / cubins.key(variant, "80")).unlink(missing_ok=True)
    os._exit(0)


def contest(root: Path) -> int:
    """Sixteen processes with one cache, some of which are killed all the time; how many there were.

    Wherever they die, no process reads a partial file, and the files left are complete.
    """
    folder, cubin_directory = probe_kernel.write(root), root / "cache" / "cubins"
    os.environ[cache.VARIABLE] = str(cubin_directory.parent)
    sources.directory = lambda: folder
    cubins.STORE.bound = 4 << 20  # eviction is busy as well
    pretend(setattr)
    context = multiprocessing.get_context("fork")
    dice = random.Random(0)
    started = 0

    def start() -> multiprocessing.process.BaseProcess:
        nonlocal started
        started += 1
        process = context.Process(target=read_and_write, args=(started, cubin_directory))
        process.start()
        return process

    alive = [start() for _ in range(16)]
    for _ in range(KILLED):
        time.sleep(0.005)  # for somebody to be somewhere else
        number = dice.randrange(16)
        os.kill(alive[number].pid, signal.SIGKILL)
        alive[number].join()
        assert alive[number].exitcode == -signal.SIGKILL
        alive[number] = start()
    for process in alive:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL  # not 1: none has read a wrong one
    names = {cubins.key(probe_kernel.variant(16 * n), "80"): 16 * n for n in range(1, 7)}
    for path in cubin_directory.iterdir():
        if not path.name.startswith("."):
            found = unpacked(path.name, path.read_bytes())
            assert found == large(probe_kernel.variant(names[path.name]), "80")
    return started


def test_cache_survives_sixteen_processes_being_killed(tmp_path: Path, cases):
    """From a process that holds little, and so forks at once."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, INSTRUMENTS)))},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cases("cubins: processes killed", int(done.stdout))


@needs_nvrtc
def test_a_real_cubin_is_read_back_unchanged(cubin_directory: Path):
    variant = probe_kernel.variant()
    first = cubins.get(variant, "90a")
    found = again(variant, "90a")
    assert found == first
    assert found.cubin[:4] == b"\x7fELF"
    assert found.usage.registers > 0


def test_a_cached_kernel_is_read_once_and_nothing_is_compiled(
    compiler_calls, cubin_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    """A megabyte, nine times a kernel's: a few copies of it, and no line for each of its own."""
    monkeypatch.setattr(nvrtc, "compile", large)
    again()
    monkeypatch.setattr(nvrtc, "compile", None)
    (cached,) = cubin_directory.iterdir()
    found = work(again)
    assert found.lines <= 2500
    assert found.peak <= cache.LIMIT + 4 * cached.stat().st_size


@needs_nvrtc
def test_real_sources_that_change_are_compiled_again(cubin_directory: Path, tmp_path: Path):
    """A changed header gives another kernel."""
    first = again(arch="90a").cubin
    path = tmp_path / "cuda" / "base.cuh"
    path.write_text(path.read_text().replace("SCALE 2", "SCALE 3"))
    assert again(arch="90a").cubin != first


if __name__ == "__main__":
    print(contest(Path(sys.argv[1])))
