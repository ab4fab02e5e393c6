"""NVRTC through ctypes: a variant of a kernel to a cubin and what the compiler says of it.

Needs neither a GPU nor a driver. Nothing but integers reaches the compiler's options.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nbattn.errors import BackendError
from nbattn.kernels import sources, toolkit
from nbattn.kernels.variant import Variant

# Instructions of one generation only (wgmma, setmaxnreg, tcgen05) exist for its own target.
_OWN = {(9, 0): "90a", (10, 0): "100a", (10, 3): "103a"}
_FLAGS = ("-std=c++17", "-default-device", "-ftz=true", "--ptxas-options=-v", "--no-source-include")
_ARCH = re.compile(r"([0-9]{2,3})[af]?")
_OPTION = re.compile(r"-D[A-Z_0-9]+=[0-9]+")
_SOURCE, _ENTRY = re.compile(r"[a-z0-9_]+\.cu"), re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the compiler says of one kernel.

    Args:
        registers: per thread.
        stack: bytes of local memory per thread.
        spill_stores, spill_loads: bytes of registers that are kept there.
        shared: bytes of static shared memory per block.
        barriers: named barriers per block.
        seconds: that compiling took.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    barriers: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel as the device loads it, with its facts and the compiler's whole log."""

    cubin: bytes
    usage: Usage
    log: str


def arch_of(capability: tuple[int, int]) -> str:
    """The target for a device.

    >>> arch_of((8, 6)), arch_of((9, 0)), arch_of((12, 0))
    ('86', '90a', '120')
    """
    return _OWN.get(capability) or "{}{}".format(*capability)


@cache
def version() -> tuple[int, int]:
    """Of NVRTC, such as (13, 0).

    Raises:
        BackendError: NVRTC is not installed or does not load.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@cache
def identity() -> str:
    """Version and size of NVRTC: builds of one version differ, and it does not tell its build."""
    path = Path(toolkit.library())
    size = path.stat().st_size if path.is_file() else 0
    return "{}.{} ({} bytes)".format(*version(), size)


def options(variant: Variant, arch: str) -> tuple[str, ...]:
    """All that the compiler is told, but for the directories of headers.

    Raises:
        BackendError: something else than a target and integers would reach it.
    """
    try:
        flags = variant.options
    except (TypeError, ValueError):
        raise _refused(variant.constants, _OPTION) from None
    for text, form in ((arch, _ARCH), *((flag, _OPTION) for flag in flags)):
        if not form.fullmatch(text):
            raise _refused(text, form)
    return (f"-arch=sm_{arch}", *_FLAGS, *flags)


def _refused(found: object, form: re.Pattern[str]) -> BackendError:
    return BackendError(f"{found!r} is no option for the compiler: it must match {form.pattern}")


def compile(variant: Variant, arch: str) -> Compiled:
    """A cubin for one target.

    Args:
        variant: the kernel and its constants.
        arch: as `arch_of` says it: "80", "90a".

    Raises:
        BackendError: NVRTC is not installed, does not know the target, or refuses the source (the
            message has its log).
    """
    if not (_SOURCE.fullmatch(variant.source) and _ENTRY.fullmatch(variant.entry)):
        raise BackendError(f"{variant.source!r}, {variant.entry!r} name no kernel")
    flags = options(variant, arch)
    _check_target(arch)
    text = sources.amalgamate(variant.source)
    flags = (*flags, f"-I{toolkit.headers()}")
    with _Program(text, variant.source) as program:
        start = time.perf_counter()
        status = program.compile(flags)
        seconds = time.perf_counter() - start
        log = program.fetch("ProgramLog").rstrip(b"\0\n").decode(errors="replace")
        if status:
            told = " ".join(variant.options)
            raise BackendError(
                f"{variant.source} does not compile for sm_{arch} with {told}:\n{log}",
                where=f"NVRTC {identity()}, {toolkit.library()}",
            )
        return Compiled(program.fetch("CUBIN"), _usage(log, variant.entry, seconds), log)


class _Program:
    """NVRTC's object for one compilation, destroyed on leaving."""

    def __init__(self, text: str, name: str) -> None:
        self._handle = ctypes.c_void_p()
        arguments = (text.encode(), name.encode(), 0, None, None)
        _call("nvrtcCreateProgram", ctypes.byref(self._handle), *arguments)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        _call("nvrtcDestroyProgram", ctypes.byref(self._handle))

    def compile(self, flags: Sequence[str]) -> int:
        """NVRTC's status: 0, or why there is no cubin is in the log."""
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        return _library().nvrtcCompileProgram(self._handle, len(flags), array)

    def fetch(self, what: str) -> bytes:
        size = ctypes.c_size_t()
        _call(f"nvrtcGet{what}Size", self._handle, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        _call(f"nvrtcGet{what}", self._handle, content)
        return content.raw


def _call(function: str, *arguments: Any) -> None:
    if status := getattr(_library(), function)(*arguments):
        words = _library().nvrtcGetErrorString(status).decode()
        raise BackendError(f"{function}: {words}", where=f"NVRTC {toolkit.library()}")


@cache
def _library() -> ctypes.CDLL:
    path = toolkit.library()
    try:
        library = ctypes.CDLL(path)
        # It looks for its second half by name only, where the wheel's is not found.
        for half in Path(path).resolve().parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(half))
    except OSError as error:
        raise BackendError(f"NVRTC does not load: {error}", where=path) from None
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


@cache
def _targets() -> tuple[int, ...]:
    """The generations that NVRTC compiles for, such as 90."""
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", found)
    return tuple(found)


def _check_target(arch: str) -> None:
    matched = _ARCH.fullmatch(arch)
    if matched is None or int(matched[1]) not in _targets():
        known = ", ".join(f"sm_{target}" for target in _targets())
        raise BackendError(
            "NVRTC {}.{} compiles for {}, not for sm_{}".format(*version(), known, arch),
            "an NVRTC and headers that do, such as those of a newer torch; from CUDA 13 on: "
            "pip install --upgrade nvidia-cuda-nvrtc nvidia-cuda-runtime",
            toolkit.library(),
        )


def _usage(log: str, entry: str, seconds: float) -> Usage:
    """From the part of the log that is about a kernel; others and device functions have theirs."""
    _, _, text = log.partition(f"Compiling entry function '{entry}'")
    frame = re.search(rf"Function properties for {entry}\n(.*)", text)
    used = re.search(r"Used (\d+) registers(.*)", text)
    if frame is None or used is None:
        raise BackendError(f"the compiler says nothing of {entry}:\n{log}")

    def number(words: str, where: str) -> int:
        found = re.search(rf"(\d+) {words}", where)
        return int(found[1]) if found else 0

    return Usage(
        registers=int(used[1]),
        stack=max(
            number("bytes stack frame", frame[1]), number("bytes cumulative stack size", used[2])
        ),
        spill_stores=number("bytes spill stores", frame[1]),
        spill_loads=number("bytes spill loads", frame[1]),
        shared=number("bytes smem", used[2]),
        barriers=number("barriers", used[2]),
        seconds=seconds,
    )
