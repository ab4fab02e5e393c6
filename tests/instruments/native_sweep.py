"""The traversal of the native kernels, compiled without their arithmetic, called from Python."""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from nbattn.backends.inputs import Inputs
from nbattn.backends.native import run
from nbattn.backends.native.meaning import NativeArguments
from nbattn.backends.native.tiles import Tiles
from nbattn.geometry import Axes
from nbattn.kernels import compilers, layout, sources

SOURCE = Path(__file__).with_name("native_sweep.cpp")
PASSES = "forward", "grad_query", "grad_key", "grad_all"
BATCH, KEY_HEADS = 2, 2
COPIES = BATCH * KEY_HEADS


class _Sweep(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("times", "written", "owners")),
        *((name, ctypes.c_longlong) for name in ("columns", "computed", "summed", "copied")),
        *((name, ctypes.c_longlong) for name in ("full", "tiles", "items")),
        ("wrong", ctypes.c_int),
    ]


@dataclass
class Found:
    """What one kernel meets.

    Args:
        times: how often each row meets each column, `[B, Hk, rows, columns]`; of one head of the
            key head, and the same for all of them.
        written: in how many tiles each row is.
        computed, copied, full: columns of all tiles, of all groups, and those that need no mask.
        summed: those of all lanes for which sums have them.
        items: groups, also those without rows.
    """

    times: np.ndarray
    written: np.ndarray
    computed: int
    summed: int
    copied: int
    full: int
    items: int


@cache
def library() -> ctypes.CDLL:
    """Compiled once per process."""
    kernels = sources.amalgamate(sources.HOST, sources.host_directory())
    text = kernels.partition("#define NB_EXPORT")[0] + SOURCE.read_text("utf-8")
    compiler = compilers.find()
    with tempfile.TemporaryDirectory(prefix="nbattn-") as folder:
        source, result = Path(folder, "sweep.cpp"), Path(folder, "sweep.so")
        source.write_text(text, "utf-8")
        command = [*compiler.command, *compiler.flags, "-O1", "-w", str(source), "-o", str(result)]
        done = compilers.run([*command, *compilers.LIBRARIES], 600, Path(folder))
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(result))


def numbered(*shape: int) -> torch.Tensor:
    """The places of a tensor's elements, plus 1."""
    count = torch.Size(shape).numel()
    return torch.arange(1, count + 1, dtype=torch.float32).reshape(shape)


def meet(
    axes: Axes, tiles: Tiles, *, kernel: str, capacity: int, group: int = 1,
    key_range: torch.Tensor | None = None, double: bool = False,
) -> Found:  # fmt: skip
    """Runs a traversal over a mask's axes; samples and heads must be alike."""
    queries, keys = tuple(axis.queries for axis in axes), tuple(axis.keys for axis in axes)
    heads = KEY_HEADS * group
    dtype = torch.float64 if double else torch.float32
    query = numbered(BATCH, *queries, heads, 1).to(dtype)
    key = numbered(BATCH, *keys, KEY_HEADS, 1).to(dtype)
    inputs = Inputs(query, key, key, key_range=key_range)
    window, inverse = NativeArguments(axes, *(tiles,) * len(PASSES)), kernel == "grad_key"
    numbers = run._pass(window, PASSES.index(kernel), inputs, query)
    delta = torch.stack([query - 1, 1 - query], dim=-1).contiguous()
    tensors = {"query": query, "key": key, "value": key, "grad_out": query, "delta": delta}
    if key_range is not None:
        tensors["key_range"] = key_range
    pointers = run._POINTERS.pack(
        *(tensors[name].data_ptr() if name in tensors else 0 for name in layout.POINTERS)
    )
    rows, columns = (key, query) if inverse else (query, key)
    times = np.zeros((rows.numel(), columns.numel()), dtype=np.uint8)
    written = np.zeros(rows.numel(), dtype=np.uint8)
    owners = np.zeros(columns.numel(), dtype=np.int64)
    arrays = (times, written, owners)
    into = _Sweep(*(array.ctypes.data for array in arrays), columns.numel())
    library().sweep_pairs(pointers + numbers, ctypes.c_long(capacity), ctypes.byref(into))
    assert into.wrong == 0, into.wrong
    per_row, per_column = (1, group) if inverse else (group, 1)
    return Found(
        _own(times, per_row, per_column),
        written,
        *(getattr(into, name) for name in ("computed", "summed", "copied", "full", "items")),
    )


def _own(times: np.ndarray, per_row: int, per_column: int) -> np.ndarray:
    """`[B, Hk, rows, columns]`; nothing meets another sample or key head, and heads are alike."""
    rows, columns = times.shape
    rows, columns = rows // (COPIES * per_row), columns // (COPIES * per_column)
    split = times.reshape(BATCH, rows, KEY_HEADS, per_row, BATCH, columns, KEY_HEADS, per_column)
    sample, head = np.ix_(range(BATCH), range(KEY_HEADS))
    own = split[sample, :, head, :, sample, :, head, :]  # [B, Hk, rows, per_row, columns, per_col]
    assert own.sum() == times.sum()
    assert (own == own[:, :, :, :1, :, :1]).all()
    return own[:, :, :, 0, :, 0]
