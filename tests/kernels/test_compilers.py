"""Tests of which C++ compiler is taken, and of what is said where none can be.

The compilers are small programs in a folder that is the whole $PATH.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import host_kernels
import pytest
from host_kernels import CLANG, GNU, fake, starts

from nbattn.errors import BackendError
from nbattn.kernels import compilers

FIX = (
    '  fix:   pip install "ziglang>=0.13"  # or the system\'s own: '
    + ("xcode-select --install" if sys.platform == "darwin" else "apt-get install g++")
)  # fmt: skip


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is $PATH; nothing else of compilers is on the machine."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    return tmp_path / "bin"


def refusal() -> str:
    with pytest.raises(BackendError) as caught:
        compilers.find()
    return str(caught.value)


def test_first_of_the_names_is_taken(programs: Path):
    fake(programs / "c++", GNU | {"__GNUC_MINOR__": "3"})
    assert compilers.find().command == (str(programs / "c++"),)
    fake(programs / "clang++", CLANG)
    assert compilers.find().name == "clang++ 15.0"
    gnu = fake(programs / "g++")
    found = compilers.find()
    assert (found.name, found.command) == ("g++ 12.2", (str(gnu),))
    assert len(starts(gnu)) == 1


def test_kind_is_what_a_compiler_defines_not_its_name(programs: Path):
    fake(programs / "g++", CLANG | {"__apple_build_version__": "15000309"})
    found = compilers.find()
    assert found.name == "Apple clang++ 15.0"
    assert "-fno-gnu-unique" not in found.flags
    assert "-nostdlib++" in found.flags
    fake(programs / "g++")
    found = compilers.find()
    assert "-fno-gnu-unique" in found.flags
    assert "-nostdlib++" not in found.flags


@pytest.mark.parametrize(
    ("macros", "name", "oldest"),
    [
        (GNU | {"__GNUC__": "9", "__GNUC_MINOR__": "4"}, "g++ 9.4", 10),
        (CLANG | {"__clang_major__": "13"}, "clang++ 13.0", 14),
        (
            CLANG | {"__clang_major__": "13", "__apple_build_version__": "1"},
            "Apple clang++ 13.0",
            14,
        ),
    ],
)
def test_an_old_compiler_is_named_with_both_numbers(
    macros: dict[str, str], name: str, oldest: int, programs: Path
):
    path = fake(programs / "g++", macros)
    assert refusal() == (
        f"no C++ compiler for the CPU kernels; {path} is {name}, and {oldest} is the oldest that "
        f"works\n{FIX}"
    )
    fake(programs / "c++")
    assert compilers.find().command == (str(programs / "c++"),)


def test_the_oldest_that_works(programs: Path):
    fake(programs / "g++", GNU | {"__GNUC__": "10", "__GNUC_MINOR__": "0"})
    assert compilers.find().name == "g++ 10.0"
    fake(programs / "g++", CLANG | {"__clang_major__": "14"})
    assert compilers.find().name == "clang++ 14.0"


def test_no_compiler(programs: Path):
    assert refusal() == f"no C++ compiler for the CPU kernels\n{FIX}"


def test_every_reason_is_listed(programs: Path):
    gnu = fake(programs / "g++", {"__GNUC__": "4", "__GNUC_MINOR__": "8"})
    other = fake(programs / "c++", {})
    other.write_text("#!/bin/sh\necho 'cannot execute cc1plus' >&2; exit 1\n")
    assert refusal() == (
        f"no C++ compiler for the CPU kernels; {gnu} is g++ 4.8, and 10 is the oldest that works; "
        f"{other} does not work: cannot execute cc1plus\n{FIX}"
    )


def test_a_compiler_that_says_nothing(programs: Path):
    path = fake(programs / "g++")
    path.write_text("#!/bin/sh\nexit 3\n")
    assert f"{path} does not work: it ended with status 3" in refusal()
    path.write_text("#!/bin/sh\nexit 0\n")
    assert f"{path} does not work: it ended with status 0" in refusal()
    path.write_text("not a program")
    assert f"{path} does not work: Exec format error" in refusal()


def test_the_processor_is_named_unless_the_compiler_does_not_know_it(programs: Path):
    path = fake(programs / "g++")
    native = compilers._native()
    assert native in compilers.find().flags
    fake(path, refuses=native)
    found = compilers.find()
    assert native not in found.flags
    assert len(starts(path)) == 3


@pytest.mark.parametrize(
    ("machine", "flag"),
    [
        ("x86_64", "-march=native"),
        ("AMD64", "-march=native"),
        ("arm64", "-mcpu=native"),
        ("aarch64", "-mcpu=native"),
    ],
)
def test_flag_of_the_processor(machine: str, flag: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compilers.platform, "machine", lambda: machine)
    assert compilers._native() == flag


def test_cxx_comes_first_and_may_have_arguments(programs: Path, monkeypatch: pytest.MonkeyPatch):
    fake(programs / "g++")
    fake(programs / "my tool", CLANG)
    monkeypatch.setenv("CXX", "'my tool' g++ -m64")
    found = compilers.find()
    assert found.name == "clang++ 15.0"
    assert found.command == (str(programs / "my tool"), "g++", "-m64")


def test_a_relative_cxx_is_found_from_another_folder(
    programs: Path, monkeypatch: pytest.MonkeyPatch
):
    path = fake(programs / "mine")
    monkeypatch.chdir(programs)
    monkeypatch.setenv("CXX", "./mine")
    assert compilers.find().command == (str(path),)


OLD = GNU | {"__GNUC__": "9"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("g+++", "there is no program g+++"),
        ("old -m64", "{}/old -m64 is g++ 9.2, and 10 is the oldest that works"),
        ("cat", "{}/cat does not work: what?"),
        ("'g++", "No closing quotation"),
    ],
)
def test_a_wrong_cxx_is_an_error_and_no_other_is_taken(
    value: str, reason: str, programs: Path, monkeypatch: pytest.MonkeyPatch
):
    fake(programs / "g++")
    fake(programs / "old", OLD)
    fake(programs / "cat").write_text("#!/bin/sh\necho 'what?' >&2; exit 1\n")
    monkeypatch.setenv("CXX", value)
    assert refusal() == (
        f"CXX={value!r}: {reason.format(programs)}\n"
        "  fix:   unset CXX, and nbattn looks for a compiler itself"
    )
    assert starts(programs / "g++") == []


def test_an_empty_cxx_is_none(programs: Path, monkeypatch: pytest.MonkeyPatch):
    fake(programs / "g++")
    monkeypatch.setenv("CXX", " ")
    assert compilers.find().name == "g++ 12.2"


def test_ziglang_comes_last_and_is_not_imported(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    zig = fake(tmp_path / "site" / "ziglang" / "zig", CLANG)
    (zig.parent / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.delitem(sys.modules, "ziglang")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = compilers.find()
    assert (found.name, found.command) == ("zig c++ 15.0", (str(zig), "c++"))
    assert starts(zig)[0].startswith("c++ ")
    assert "ziglang" not in sys.modules
    fake(programs / "clang++", CLANG)
    assert compilers.find().name == "clang++ 15.0"


def test_ziglang_without_its_program_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "ziglang").mkdir()
    monkeypatch.delitem(sys.modules, "ziglang")
    monkeypatch.syspath_prepend(tmp_path)
    assert refusal() == f"no C++ compiler for the CPU kernels\n{FIX}"


def test_identity_is_version_target_and_flags_but_not_the_place(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake(programs / "g++")
    first = compilers.find().identity
    elsewhere = fake(tmp_path / "elsewhere" / "g++")
    assert compilers.examine([str(elsewhere)]).identity == first
    found = {first}
    for macros in (
        GNU | {"__GNUC_MINOR__": "3"},
        GNU | {"__AVX2__": "1"},
        {"__aarch64__": "1", **{name: GNU[name] for name in ("__GNUC__", "__GNUC_MINOR__")}},
        CLANG,
    ):
        fake(elsewhere, macros)
        found.add(compilers.examine([str(elsewhere)]).identity)
    assert len(found) == 5
    fake(elsewhere, refuses=compilers._native())
    found.add(compilers.examine([str(elsewhere)]).identity)
    monkeypatch.setattr(compilers, "FLAGS", (*compilers.FLAGS, "-g"))
    found.add(compilers.examine([str(programs / "g++")]).identity)
    assert len(found) == 7


def test_windows_has_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compilers.sys, "platform", "win32")
    assert refusal() == (
        "the CPU kernels are compiled on Linux and macOS only\n"
        '  fix:   backend="tiled", or WSL'
    )  # fmt: skip


def test_apples_names_without_apples_compilers_are_not_started(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their start would open a window that offers to install them."""
    xcode = fake(tmp_path / "xcode-select")
    monkeypatch.setattr(compilers.sys, "platform", "darwin")
    monkeypatch.setattr(compilers, "_XCODE", str(xcode))
    monkeypatch.setattr(compilers.shutil, "which", lambda name: f"/usr/bin/{name}")
    xcode.write_text("#!/bin/sh\nexit 2\n")
    assert compilers._commands() == []
    xcode.write_text("#!/bin/sh\nexit 0\n")
    assert compilers._commands() == [["/usr/bin/g++"], ["/usr/bin/clang++"], ["/usr/bin/c++"]]
    xcode.unlink()
    assert compilers._commands() == []
    assert "xcode-select --install" in compilers.fix()


def test_zig_leaves_its_files_in_the_private_folder(programs: Path, tmp_path: Path):
    path = fake(programs / "g++")
    echo = '#!/bin/sh\necho "$ZIG_GLOBAL_CACHE_DIR $ZIG_LOCAL_CACHE_DIR $PWD $LC_ALL"\n'
    path.write_text(echo)
    done = compilers.run([str(path)], 60, tmp_path)
    assert done.stdout.split() == [str(tmp_path)] * 3 + ["C"]


@host_kernels.needs_compiler
def test_a_real_compiler_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    found = compilers.find()
    kind, _, version = found.name.rpartition(" ")
    assert int(version.partition(".")[0]) >= compilers._OLDEST[kind]
    assert shutil.which(found.command[0])
    assert compilers.find() == found
