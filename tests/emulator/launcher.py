"""Launches a kernel in the emulator: copies tensors into guarded memory and outputs back.

It replaces CuPy's launcher, so that the same backend runs on CPU tensors.
"""

from __future__ import annotations

import ctypes
import math
import re
import struct
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from emulator import build
from nbattn.kernels import layout
from nbattn.kernels.tensor_maps import TensorMap
from nbattn.kernels.variant import Variant

Mode = Literal["eager", "lazy", "random", "check"]
_COPIES: dict[Mode, int] = {"eager": 0, "lazy": 1, "random": 2, "check": 1}  # enum Copies
MODES = tuple(_COPIES)
_ONE_AT_A_TIME = threading.Lock()  # the emulator has one state
_OWN = {path.name for path in build.HERE.glob("*.h")}
# `Map` of tensor_maps.cpp, in place of the driver's encoding.
_MAP = struct.Struct("<QQ4q5I5I5Iii")
_ALIGNMENT = 64  # of the kernels' argument
_MAP_MAGIC = 0x70616D726F736E74
_PLACE = re.compile(r"<\+([0-9a-f]+)>")


class KernelError(Exception):
    """A mistake of a kernel, with its place in the source."""


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("present", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("element_bytes", ctypes.c_int),
        ("writable", ctypes.c_int),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("params", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_int),
        ("blocks", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("copies", ctypes.c_int),
        ("check", ctypes.c_int),
        ("mapped", ctypes.c_int),
        ("seconds", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("error", ctypes.c_char * 1500),
        *((name, ctypes.c_uint64) for name in ("switches", "mma", "matrices", "bank_ways")),
        *((name, ctypes.c_uint64) for name in ("copied_bytes", "shared_accesses")),
        *((name, ctypes.c_uint64) for name in ("wgmma", "boxes", "box_bytes")),
    ]


@dataclass
class Counts:
    """Counters of all launches so far.

    Args:
        mma: `mma.sync` instructions, counted once per warp.
        matrices: matrices of 8x8 elements loaded by `ldmatrix`.
        bank_ways: passes over shared memory for these matrices; one each without bank conflicts.
        copied_bytes: bytes copied by `cp.async`, without zeros.
        wgmma: `wgmma.mma_async` instructions, counted once per warpgroup.
        boxes: boxes copied by tensor maps.
        box_bytes: their bytes, with zeros.
    """

    launches: int = 0
    blocks: int = 0
    mma: int = 0
    matrices: int = 0
    bank_ways: int = 0
    copied_bytes: int = 0
    wgmma: int = 0
    boxes: int = 0
    box_bytes: int = 0

    def add(self, launch: _Launch) -> None:
        """Add the counters of one launch."""
        self.launches += 1
        for each in fields(self)[1:]:
            setattr(self, each.name, getattr(self, each.name) + getattr(launch, each.name))


@dataclass
class Launcher:
    """Implements `nbattn.kernels.launch.Launcher` on a CPU.

    Args:
        mode: when asynchronous work is done: copies, boxes and products at once ("eager"), as late
            as waits allow ("lazy") or at either by chance ("random", which also shuffles the order
            of threads and blocks). "check" is lazy and checks every access: slower, but faults have
            file and line.
        seed: the seed of "random".
        seconds: CPU time after which a launch is stopped.
        folder: the folder of the kernels' sources.
    """

    mode: Mode = "lazy"
    seed: int = 1
    seconds: int = 120
    folder: Path = build.CUDA
    counts: Counts = field(default_factory=Counts)

    def load(self, variant: Variant) -> None:
        """Build a kernel."""
        build.kernel(variant, checked=self.mode == "check", folder=self.folder)

    def launch(
        self,
        variant: Variant,
        blocks: int,
        tensors: Mapping[str, Tensor],
        numbers: bytes,
        maps: Sequence[TensorMap] = (),
    ) -> None:
        """Run one kernel to its end.

        Args:
            maps: the kernel's tensor maps, of some of these tensors.

        Raises:
            KernelError: the emulator found a mistake.
        """
        check = self.mode == "check"
        path = build.kernel(variant, checked=check, folder=self.folder)
        with _ONE_AT_A_TIME:
            runtime, library = _runtime(), ctypes.CDLL(str(path))
            writes = _writes(variant)
            try:
                guarded = {n: _Guarded(runtime, n, t, n in writes) for n, t in tensors.items()}
                addresses = [guarded[n].address if n in guarded else 0 for n in layout.POINTERS]
                argument = struct.pack(f"<{len(addresses)}Q", *addresses) + numbers
                mapped = bool(maps) or variant.entry.endswith("_wgmma")
                if mapped:
                    assert len(argument) == layout.FIRST_MAP, (len(argument), layout.FIRST_MAP)
                    argument += b"".join(_encoded(m, guarded[m.tensor]) for m in maps)
                    argument = argument.ljust(layout.MAPPED_SIZE, b"\0")
                memory = ctypes.create_string_buffer(len(argument) + _ALIGNMENT)
                params = ctypes.addressof(memory) + -ctypes.addressof(memory) % _ALIGNMENT
                ctypes.memmove(params, argument, len(argument))
                launch = _Launch(
                    kernel=ctypes.cast(library[variant.entry], ctypes.c_void_p),
                    params=params,
                    mapped=mapped,
                    buffers=(_Buffer * len(guarded))(*(g.buffer for g in guarded.values())),
                    buffer_count=len(guarded),
                    blocks=blocks,
                    threads=variant.threads,
                    shared_bytes=variant.shared_bytes,
                    copies=_COPIES[self.mode],
                    check=check,
                    seconds=self.seconds,
                    seed=self.seed if self.mode == "random" else 0,
                )
                if runtime.emulator_run(ctypes.byref(launch)):
                    raise KernelError(
                        f"{variant.entry}: {_with_places(launch.error.decode(), path)}"
                    )
                self.counts.add(launch)
                for name in guarded:
                    if name in writes:
                        guarded[name].copy_back(tensors[name])
            finally:
                runtime.emulator_free_all()


def _encoded(tensor_map: TensorMap, tensor: _Guarded) -> bytes:
    """A map as tensor_maps.cpp reads it.

    Raises:
        ValueError: the driver would refuse it.
    """
    m, item = tensor_map, tensor.buffer.element_bytes
    wrong = [
        name
        for name, ok in {
            "rank": (len(m.sizes), len(m.strides), len(m.box), len(m.steps)) == (5, 4, 5, 5),
            "element": item == 2,
            "address": (tensor.address + m.offset) % 16 == 0,
            "sizes": all(1 <= size <= 1 << 32 for size in m.sizes),
            "strides": all(0 < s < 1 << 40 and s % 16 == 0 for s in m.strides),
            "box": all(1 <= extent <= 256 for extent in m.box),
            "steps": all(1 <= step <= 8 for step in m.steps),
            "swizzle": m.swizzle in (32, 64, 128) and m.box[0] * item == m.swizzle,
        }.items()
        if not ok
    ]
    if wrong:
        raise ValueError(f"no tensor map has this {', '.join(wrong)}: {m}, at {tensor.address:#x}")
    begin, steps = tensor.address + m.offset, (1, *m.steps[1:])
    fields = _MAP.pack(_MAP_MAGIC, begin, *m.strides, *m.sizes, *m.box, *steps, m.swizzle, item)
    return fields.ljust(layout.MAP_BYTES, b"\0")


def _writes(variant: Variant) -> list[str]:
    """The names of the tensors that a kernel writes."""
    names = layout.WRITES.get(variant.entry, ("out", "lse"))
    grads = dict(variant.constants).get("NB_GRADS", 3)
    without = {"value"} if not grads & 1 else {"key"} if not grads & 2 else set[str]()
    return [name for name in names if name.rpartition("_")[2] not in without]


class _Guarded:
    """A copy of a tensor in memory that ends at a guard page; gaps between its elements are NaN.

    Far strides may make the span larger than the machine's memory, so no code loops over all of it.
    """

    def __init__(self, runtime: ctypes.CDLL, name: str, tensor: Tensor, writable: bool) -> None:
        size, axes = tensor.element_size(), list(zip(tensor.shape, tensor.stride(), strict=True))
        span = 1 + sum((n - 1) * stride for n, stride in axes) if tensor.numel() else 0
        distinct = math.prod(n for n, stride in axes if stride)
        self.address = runtime.emulator_allocate(span * size, tensor.data_ptr() % 16)
        raw = (ctypes.c_ubyte * (span * size)).from_address(self.address)
        self.memory = torch.frombuffer(raw, dtype=tensor.dtype) if span else tensor.new_empty(0)
        self.index = torch.zeros(tensor.shape, dtype=torch.int64)
        for axis, (n, stride) in enumerate(axes):
            self.index += (torch.arange(n) * stride).view(-1, *[1] * (tensor.ndim - axis - 1))
        if not writable:  # outputs stay NaN
            self.memory[self.index] = tensor.detach()
        self.present = None if distinct == span else np.zeros(span, bool)  # torch writes all zeros
        if self.present is not None:
            self.present[self.index.numpy()] = True
        self.buffer = _Buffer(
            begin=self.address,
            bytes=span * size,
            present=None if self.present is None else self.present.ctypes.data,
            name=name.encode(),
            element_bytes=size,
            writable=writable,
        )

    def copy_back(self, tensor: Tensor) -> None:
        tensor.detach().copy_(self.memory[self.index])


@cache
def _runtime() -> ctypes.CDLL:
    """The emulator's library, loaded so that kernels find its symbols."""
    runtime = ctypes.CDLL(str(build.runtime()), mode=ctypes.RTLD_GLOBAL)
    runtime.emulator_allocate.restype = ctypes.c_void_p
    runtime.emulator_allocate.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    assert runtime.emulator_launch_bytes() == ctypes.sizeof(_Launch)
    return runtime


def _with_places(text: str, path: Path) -> str:
    """The text with source lines in place of addresses in the library, without directories."""

    def place(match: re.Match[str]) -> str:
        command = ["addr2line", "-i", "-e", str(path), hex(int(match[1], 16) - 1)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        lines = [Path(line.split(" (")[0]).name for line in output.splitlines()]
        kernel = [line for line in lines if line.split(":")[0] not in _OWN] or lines
        return kernel[0] + (f" (called in {', '.join(kernel[1:])})" if kernel[1:] else "")

    return _PLACE.sub(place, re.sub(r"/\S*/", "", text))
