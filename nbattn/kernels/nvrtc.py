"""Compiles a variant of a kernel to a cubin, with NVRTC through ctypes.

Needs neither a GPU nor a driver. The compiler's options contain no text from callers, only
integers.
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
from nbattn.packages import install_line

# Targets that include the instructions of one generation only (wgmma, setmaxnreg, tcgen05).
_WITH_OWN_INSTRUCTIONS = {(9, 0): "90a", (10, 0): "100a", (10, 3): "103a"}
_FLAGS = ("-std=c++17", "-default-device", "-ftz=true", "--ptxas-options=-v", "--no-source-include")
_ARCH = re.compile(r"([0-9]{2,3})[af]?")
_OPTION = re.compile(r"-D[A-Z_0-9]+=[0-9]+")
_SOURCE, _ENTRY = re.compile(r"[a-z0-9_]+\.cu"), re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Usage:
    """The resources that one kernel uses, from the compiler's log.

    Args:
        registers: per thread.
        stack: bytes of local memory per thread.
        spill_stores, spill_loads: bytes of registers spilled to local memory.
        shared: bytes of static shared memory per block.
        barriers: named barriers per block.
        seconds: the time of the compilation.
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
    """A kernel's cubin, with its resources and the compiler's whole log."""

    cubin: bytes
    usage: Usage
    log: str


def arch_of(capability: tuple[int, int]) -> str:
    """The compiler's target for a device's compute capability.

    >>> arch_of((8, 6)), arch_of((9, 0)), arch_of((12, 0))
    ('86', '90a', '120')
    """
    return _WITH_OWN_INSTRUCTIONS.get(capability) or "{}{}".format(*capability)


@cache
def version() -> tuple[int, int]:
    """The version of NVRTC, such as (13, 0).

    Raises:
        BackendError: NVRTC is not installed or does not load.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@cache
def identity() -> str:
    """NVRTC's version and file size: builds of one version differ and have no build number."""
    path = Path(toolkit.library())
    size = path.stat().st_size if path.is_file() else 0
    return "{}.{} ({} bytes)".format(*version(), size)


def options(variant: Variant, arch: str) -> tuple[str, ...]:
    """All options for the compiler, except the directories of headers.

    Raises:
        BackendError: the target or a constant has a form that is not allowed.
    """
    try:
        flags = variant.options
    except (TypeError, ValueError):
        raise _invalid(variant.constants, _OPTION) from None
    for text, form in ((arch, _ARCH), *((flag, _OPTION) for flag in flags)):
        if not form.fullmatch(text):
            raise _invalid(text, form)
    return (f"-arch=sm_{arch}", *_FLAGS, *flags)


def _invalid(option: object, form: re.Pattern[str]) -> BackendError:
    return BackendError(f"{option!r} is not a valid compiler option: it must match {form.pattern}")


def compile(variant: Variant, arch: str) -> Compiled:
    """Compiles a cubin for one target.

    Args:
        variant: the kernel and its constants.
        arch: the target, as `arch_of` returns it: "80", "90a".

    Raises:
        BackendError: NVRTC is not installed, does not support the target, or does not compile the
            source (the message contains its log).
    """
    if not (_SOURCE.fullmatch(variant.source) and _ENTRY.fullmatch(variant.entry)):
        raise BackendError(
            f"{variant.source!r}, {variant.entry!r} are not a kernel's file and name"
        )
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
            constants = " ".join(variant.options)
            raise BackendError(
                f"{variant.source} does not compile for sm_{arch} with {constants}:\n{log}",
                where=f"NVRTC {identity()}, {toolkit.library()}",
            )
        return Compiled(program.fetch("CUBIN"), _usage(log, variant.entry, seconds), log)


class _Program:
    """NVRTC's program object for one compilation; leaving the context destroys it."""

    def __init__(self, text: str, name: str) -> None:
        self._handle = ctypes.c_void_p()
        arguments = (text.encode(), name.encode(), 0, None, None)
        _call("nvrtcCreateProgram", ctypes.byref(self._handle), *arguments)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        _call("nvrtcDestroyProgram", ctypes.byref(self._handle))

    def compile(self, flags: Sequence[str]) -> int:
        """Compiles and returns NVRTC's status: 0 for success, otherwise the log has the reason."""
        array = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        return _library().nvrtcCompileProgram(self._handle, len(flags), array)

    def fetch(self, result: str) -> bytes:
        size = ctypes.c_size_t()
        _call(f"nvrtcGet{result}Size", self._handle, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        _call(f"nvrtcGet{result}", self._handle, content)
        return content.raw


def _call(function: str, *arguments: Any) -> None:
    if status := getattr(_library(), function)(*arguments):
        reason = _library().nvrtcGetErrorString(status).decode()
        raise BackendError(f"{function}: {reason}", where=f"NVRTC {toolkit.library()}")


@cache
def _library() -> ctypes.CDLL:
    path = toolkit.library()
    try:
        library = ctypes.CDLL(path)
        # NVRTC loads its second library by name only, which does not find the one in a wheel.
        for second in Path(path).resolve().parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(second))
    except OSError as error:
        raise BackendError(f"NVRTC does not load: {error}", where=path) from None
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


@cache
def _targets() -> tuple[int, ...]:
    """The compute capabilities that NVRTC supports, such as 90."""
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    targets = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", targets)
    return tuple(targets)


def _check_target(arch: str) -> None:
    matched = _ARCH.fullmatch(arch)
    if matched is None or int(matched[1]) not in _targets():
        known = ", ".join(f"sm_{target}" for target in _targets())
        raise BackendError(
            "NVRTC {}.{} compiles for {}, not for sm_{}".format(*version(), known, arch),
            f"{install_line('cuda13')} --upgrade",
            toolkit.library(),
        )


def _usage(log: str, entry: str, seconds: float) -> Usage:
    """Parses the part of the log about one kernel; other kernels and functions have their own."""
    _, _, text = log.partition(f"Compiling entry function '{entry}'")
    frame = re.search(rf"Function properties for {entry}\n(.*)", text)
    used = re.search(r"Used (\d+) registers(.*)", text)
    if frame is None or used is None:
        raise BackendError(f"the compiler's log has no resource usage of {entry}:\n{log}")

    def number(words: str, where: str) -> int:
        match = re.search(rf"(\d+) {words}", where)
        return int(match[1]) if match else 0

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
