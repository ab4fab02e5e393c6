"""Tests of what identifies a processor: its features, and nothing that changes from day to day."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from nbattn.kernels import processor

X86 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
cpu MHz\t\t: 2400.1
flags\t\t: sse2 avx2 fma
bogomips\t: 4800.0

processor\t: 1
vendor_id\t: AuthenticAMD
flags\t\t: sse2
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU part\t: 0xd40

"""


def identity() -> str:
    return processor.identity.__wrapped__()


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that stands in for /proc/cpuinfo."""
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def test_fields_of_the_first_processor(cpuinfo: Path):
    cpuinfo.write_text(X86)
    assert processor._cpuinfo() == [
        "vendor_id: AuthenticAMD", "cpu family: 25", "model: 17", "flags: avx2 fma sse2",
    ]  # fmt: skip
    cpuinfo.write_text(ARM)
    assert processor._cpuinfo() == [
        "CPU implementer: 0x41", "CPU part: 0xd40", "Features: asimd fp sve",
    ]  # fmt: skip


def test_only_the_beginning_of_a_long_file_is_read(cpuinfo: Path):
    cpuinfo.write_text(X86)
    first = identity()
    cpuinfo.write_text(X86 + "x" * processor._BLOCK)
    assert identity() == first


CHANGES = {
    "another order of the flags": (X86.replace("sse2 avx2 fma", "fma sse2 avx2"), True),
    "another clock": (X86.replace("2400.1", "800.2"), True),
    "another feature": (X86.replace("fma", "fma avx512f"), False),
    "without a feature": (X86.replace("avx2 fma", "avx2"), False),
    "another model": (X86.replace(": 17", ": 1"), False),
    "another family": (X86.replace(": 25", ": 26"), False),
    "another vendor": (X86.replace("AuthenticAMD", "GenuineIntel"), False),
    "of another kind": (ARM, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_identity_changes_with_the_features_only(change: str, cpuinfo: Path):
    text, is_same = CHANGES[change]
    cpuinfo.write_text(X86)
    first = identity()
    cpuinfo.write_text(text)
    assert (identity() == first) is is_same


def test_identity_changes_with_the_system(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch):
    cpuinfo.write_text(X86)
    found = {identity()}
    monkeypatch.setattr(processor.platform, "machine", lambda: "aarch64")
    found.add(identity())
    monkeypatch.setattr(processor.os, "confstr", lambda name: "glibc 2.17", raising=False)
    found.add(identity())
    monkeypatch.setattr(processor.sys, "platform", "freebsd14")
    found.add(identity())
    assert len(found) == 4


def test_a_system_without_the_name_of_its_library(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    cpuinfo.write_text(X86)
    monkeypatch.setattr(processor.os, "confstr", unknown, raising=False)
    assert "glibc" not in identity()


def test_macos_is_asked_by_sysctl(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch):
    """There is no /proc/cpuinfo, and Apple's processors have no list of features."""

    class Library:
        @staticmethod
        def sysctlbyname(name: bytes, value, size, new: None, length: object) -> int:
            if name != b"machdep.cpu.brand_string":
                return -1
            value.value = b"Apple M1"
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    assert processor._cpuinfo() == []
    assert processor._sysctl() == ["machdep.cpu.brand_string: Apple M1"]
    assert identity().endswith("Apple M1")


def test_an_unknown_system_has_the_name_only(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(processor.platform, "processor", lambda: "m68k")
    assert identity().splitlines()[-1] == "m68k"


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc/cpuinfo")
def test_this_processor_has_features():
    assert any(line.lower().startswith(("flags: ", "features: ")) for line in processor._cpuinfo())
