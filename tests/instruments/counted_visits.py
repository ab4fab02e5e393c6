"""Compares the planner's model of a visit with the instructions counted in `golden/kernels.json`.

The model is `nbattn/backends/cuda/pipes.py`. Its coefficients are fitted to what is counted; what
the tables call clocks is computed from counts. Nothing is measured.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from nbattn.backends.cuda import pipes
from nbattn.backends.cuda import tiles as cuda_tiles
from nbattn.backends.cuda.pipes import Machine, Part, Work
from nbattn.backends.cuda.tiles import Build, Extents, Tiles
from nbattn.program.device import DEVICES

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "kernels.json"
DEVICE = {"80": "sm_80", "90a": "sm_90"}  # by target: those that the model is fitted to
Kinds = dict[str, int]
Budget = dict[str, int | dict[str, int]]  # of a kernel for a target, as the file has it
_COMMON, _EACH = ("COPY", "MASK", "OUTPUT"), ("VISIT", "SCORE")  # of `pipes.py`


def _tile(
    kernel: str, size: int, rows: Extents, columns: Extents, row_blocks: int
) -> tuple[str, Tiles, Build]:
    warps = math.prod(rows) // 16 // row_blocks
    return kernel, Tiles(rows, columns, warps, row_blocks, 2), Build("bfloat16", size, size)


# The tiles that large problems get on most devices.
TABLE = (
    _tile("fwd", 128, (1, 8, 16), (1, 4, 8), 2),
    _tile("fwd", 128, (1, 8, 8), (1, 8, 8), 1),
    _tile("fwd", 64, (1, 8, 16), (1, 8, 8), 2),
    _tile("fwd", 64, (1, 8, 8), (1, 8, 8), 1),
    _tile("dq", 128, (1, 8, 8), (1, 8, 8), 1),
    _tile("dq", 128, (1, 8, 16), (1, 4, 8), 2),
    _tile("dq", 64, (1, 8, 16), (1, 4, 8), 2),
    _tile("dkdv", 128, (1, 8, 8), (1, 4, 8), 1),
    _tile("dkdv", 128, (1, 8, 16), (1, 4, 8), 1),
    _tile("dkdv", 64, (1, 8, 8), (1, 8, 8), 1),
    _tile("dkdv", 64, (1, 8, 16), (1, 4, 8), 2),
)


class Counted(NamedTuple):
    """The instructions of a kernel's visits for one target, by kind."""

    kernel: str
    tiles: Tiles
    build: Build
    target: str
    interior: Kinds
    masked: Kinds
    rescale: Kinds | None
    registers: int

    @property
    def label(self) -> str:
        size, warps = self.build.head_dim, self.tiles.warps
        columns = self.tiles.area // self.tiles.row_count
        return f"{self.kernel} D{size} {self.tiles.row_count}x{columns} {warps}w sm_{self.target}"

    @property
    def machine(self) -> Machine:
        device = DEVICES[DEVICE[self.target]]
        return pipes.machine(device, self.build.dtype, cuda_tiles.LARGEST_MEMORY)


def counted(*, table: bool = False) -> list[Counted]:
    """All tensor-core kernels with counts for one of the targets, without optional features; or
    those with a table of relative positions and no other.
    """
    kernels = json.loads(GOLDEN.read_text())["kernels"]
    found = [
        Counted(*_read(name), target, b["interior"], b["masked"], b.get("rescale"), b["registers"])
        for name, budgets in kernels.items()
        if "_mma" in name and ("bias=1" in name) == table
        if not any(option in name for option in ("two_runs", "softcap", "grids", "range"))
        for target, b in budgets.items()
        if target in DEVICE and "interior" in b
    ]
    return sorted(found, key=lambda one: (cuda_tiles.KERNELS.index(one.kernel), one.label))


def _read(name: str) -> tuple[str, Tiles, Build]:
    """A kernel by its name in the file."""
    kernel, *words = name.split()
    values = {key: int(value) for key, _, value in (word.partition("=") for word in words)}
    query, key = (_extents(values, side) for side in ("query", "key"))
    rows, columns = (key, query) if kernel.startswith("dkdv") else (query, key)
    tiles = Tiles(rows, columns, values.get("warps", 4), values.get("row_blocks", 1), 2)
    dtype = cuda_tiles.DTYPES[values["dtype"]]
    build = Build(dtype, values["head_dim"], values["value_dim"], table=values.get("bias") == 1)
    return kernel.partition("_")[0], tiles, build


def _extents(values: Kinds, side: str) -> Extents:
    first, second, third = (values.get(f"{side}_tile_{n}", 1) for n in range(3))
    return first, second, third


def over(budget: Budget, found: Budget) -> list[str]:
    """What is over its budget."""
    faults: list[str] = []
    for name, amount in found.items():
        limit = budget.get(name, 0)
        if isinstance(amount, dict) and isinstance(limit, dict):
            faults += [f"{name}: {fault}" for fault in over({**limit}, {**amount})]
        elif isinstance(amount, dict):
            faults.append(f"{name}: has no budget")
        elif isinstance(limit, dict) or amount > limit:
            faults.append(f"{amount} {name}: {limit}")
    return faults


def work_of(kinds: Kinds) -> Work:
    """What a warp does in a visit whose instructions are counted."""
    of = Counter(kinds)
    words = 4 * (of["LDSM"] + of["LDGSTS"]) + of["LDS"] + of["SHFL"]
    return Work(of["HMMA"], of["MUFU"], of["all"], of["ALU"], words)


def modelled(one: Counted, *, masked: bool = False) -> Work:
    """The same by the model."""
    (work,) = pipes.visit(one.kernel, one.tiles, one.build, masked=float(masked))
    return work


def fit() -> dict[str, Part]:
    """The coefficients by name that fit best, each error relative to what is counted."""
    ones = counted()
    columns = [*_COMMON, *(f"{name} {k}" for k in cuda_tiles.KERNELS for name in _EACH)]
    found: dict[str, list[float]] = {name: [] for name in columns}
    for part in Part._fields:
        rows, wanted = zip(*_equations(ones, columns, part), strict=True)
        solution = _least_squares(np.array(rows), np.array(wanted))
        for name, value in zip(columns, solution, strict=True):
            found[name].append(float(value))
    return {name: Part(*values) for name, values in found.items()}


def _equations(
    ones: list[Counted], columns: list[str], part: str
) -> Iterator[tuple[list[float], float]]:
    """What the coefficients should sum up to, for an interior and a masked visit of each kernel."""
    for one in ones:
        scores = one.tiles.row_blocks * one.tiles.area // one.tiles.row_count / 2
        copies = one.interior["LDGSTS"]
        outputs = one.tiles.row_blocks * one.build.value_dim / 2 * (one.kernel == "fwd")
        for kinds, hidden in ((one.interior, 0.0), (one.masked, scores)):
            terms = {"COPY": copies, "MASK": hidden, "OUTPUT": outputs}
            terms |= {f"VISIT {one.kernel}": 1.0, f"SCORE {one.kernel}": scores}
            work = work_of(kinds)
            moved = kinds.get("LDSM", 0) + kinds.get("LDGSTS", 0)
            closed = {"issued": work.hmma + moved, "alu": 0.0, "words": 4.0 * moved}[part]
            total = max(getattr(work, part), 1.0)
            yield [terms.get(name, 0.0) / total for name in columns], (total - closed) / total


def _least_squares(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The best coefficients of which none is negative: those that would be are left out."""
    kept = np.ones(rows.shape[1], dtype=bool)
    while True:
        solution = np.zeros(rows.shape[1])
        solution[kept] = np.linalg.lstsq(rows[:, kept], wanted, rcond=None)[0]
        if solution.min() >= 0:
            return solution
        kept[solution.argmin()] = False


def print_fit() -> None:
    """The coefficients as `nbattn/backends/cuda/pipes.py` has them."""
    parts = {name: f"Part{tuple(round(x, 1) for x in part)}" for name, part in fit().items()}
    for name in _COMMON:
        print(f"{name} = {parts[name]}")
    for name in _EACH:
        rows = "".join(f'    "{k}": {parts[f"{name} {k}"]},\n' for k in cuda_tiles.KERNELS)
        print(f"{name}: Mapping[str, Part] = {{\n{rows}}}")


def print_model() -> None:
    """Clocks of one scheduler for a warp's visit: of the instructions counted, and by the model."""
    table = Table(
        title="clocks of a scheduler for one warp's visit, counted | by the model", box=None
    )
    names = ("issue", "alu", "IMAD", "mufu", "tensor", "shared")
    for name in ("kernel", "visit", *names, "bound", "tensor % of bound"):
        table.add_column(name, justify="left" if name in ("kernel", "visit") else "right")
    for one in counted():
        for kind, kinds in (("interior", one.interior), ("masked", one.masked)):
            real = work_of(kinds).clocks(one.machine.hmma)
            real["IMAD"] = 2.0 * kinds.get("IMAD", 0)
            guess = modelled(one, masked=kind == "masked").clocks(one.machine.hmma)
            cells = [
                f"{real[n]:.0f} | {guess[n]:.0f}" if n in guess else f"{real[n]:.0f}" for n in names
            ]
            busiest = max(real, key=real.__getitem__)
            share = f"{100 * real['tensor'] / real[busiest]:.0f}"
            share += f" | {100 * guess['tensor'] / max(guess.values()):.0f}"
            table.add_row(one.label, kind, *cells, busiest, share)
    Console(width=150).print(table)
