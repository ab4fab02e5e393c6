"""The plan: what was chosen for a request, everything else that could have been, why not, and the
proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from nbattn import geometry
from nbattn.dialects import flash_providers
from nbattn.dialects.cuda import Window
from nbattn.dialects.dense import Dense
from nbattn.dialects.flash import Flash
from nbattn.dialects.tiled import Tiled
from nbattn.planner import proof
from nbattn.planner.candidate import Candidate
from nbattn.planner.programs import Call, View
from nbattn.planner.request import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Visit:
    """One block that a kernel computes: ranges of queries and keys per axis, and whether every pair
    is read.

    Keys are products of one range per axis; where windows wrap or a prefix stands apart, there are
    several.
    """

    queries: tuple[range, ...]
    keys: tuple[tuple[range, ...], ...]
    full: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run for a request, and why. An immutable value; `print(plan.explain())` shows it.

    Args:
        request: what was asked.
        chosen: the accepted candidate with the lowest cost.
        candidates: all of them: accepted ones by cost, then refused ones with their reasons.
        note: why measured times did not decide; empty where nothing is known of any.

    >>> import nbattn
    >>> mask, shape = nbattn.Mask.neighborhood((7, 7)), (1, 56, 56, 2, 32)
    >>> plan = nbattn.plan(mask, shape, dtype="float32", device="cpu")
    >>> plan.chosen.backend, plan.verify()
    ('tiled', True)
    """

    request: Request
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    note: str = ""

    def __str__(self) -> str:
        return self.explain()

    def explain(self) -> str:
        """What was chosen, what else it could have been, at what cost, and why not."""
        lines = [f"plan  {self.request.mask!r}", f"      {self.request.summary()}"]
        width = max(len(candidate.name) for candidate in self.candidates)
        for candidate in self.candidates:
            lines += _explain(candidate, self.chosen, width)
        return "\n".join([*lines, f"  {self.decided_by()}"])

    def decided_by(self) -> str:
        """What the candidates were ranked by, and where the device's rates come from."""
        measured = self.chosen.cost is not None and self.chosen.cost.measured is not None
        why = self.note or "no measurement of this request is known"
        known = "measured times" if measured else f"bounds ({why})"
        device = self.request.device
        return f"decided by {known}; rates of {device.name}: {device.source}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data that JSON takes; the same for equal requests, everywhere."""
        return {
            "request": self.request.to_dict(),
            "chosen": self.chosen.name,
            "candidates": [candidate.to_dict() for candidate in self.candidates],
        }

    def support(self) -> NDArray[np.bool_]:
        """The (query, key) pairs that the chosen program computes, bool `[Nq, Nk]`, from index
        grids sent through it.

        Raises:
            InputError: more than 2^26 pairs.
            AssertionError: a pair is computed twice, or (batch, head) slices differ.
        """
        return proof.support(self.request, self.chosen)

    def verify(self) -> bool:
        """Whether the chosen program is the mask exactly, proved per axis without a matrix:
        time and memory grow with the lengths of the axes, not with their products.

        Raises:
            AssertionError: it is not, with the first query that differs.
        """
        return proof.verify(self.request, self.chosen)

    def schedule(self) -> Iterator[Visit]:
        """The blocks that the chosen program computes, one after another."""
        assert self.chosen.program is not None
        for call in self.chosen.program.calls:
            if isinstance(call.arguments, Tiled):
                yield from _tile_visits(call.arguments)
            elif isinstance(call.arguments, Window):
                yield from _walk_visits(call.arguments)
            elif isinstance(call.arguments, Flash) and call.arguments.has_window:
                yield from _block_visits(self.request, call, call.arguments)
            else:
                full = isinstance(call.arguments, (Dense, Flash))
                yield from _group_visits(call.query, call.key, full=full)

    def warmup(self) -> None:
        """Prepare what the first run would: the tiles of this plan."""
        from nbattn import functional

        functional.warmup(self)

    def run(
        self, query: Tensor, key: Tensor, value: Tensor, **tensors: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention on tensors of the planned shapes, by exactly this plan.

        Args:
            query, key, value: as in `nbattn.attention`.
            **tensors: scale, softcap, sink, key_range, extra_key, extra_value, as in
            `nbattn.attention`.

        Raises:
            InputError: the tensors are not those of the request.
        """
        from nbattn import functional

        return functional.run(self, query, key, value, **tensors)


def _explain(candidate: Candidate, chosen: Candidate, width: int) -> list[str]:
    """One candidate in a line, its reasons in further ones."""
    if candidate.reasons:
        first, *rest = candidate.reasons
        return [
            f"  refused   {candidate.name:<{width}} {first.text}",
            *[f"{'':{width + 13}}{reason.text}" for reason in rest],
        ]
    cost, best = candidate.cost, chosen.cost
    assert cost is not None
    assert best is not None
    label = "measured" if cost.measured is not None else "bound"
    ratio = "" if candidate is chosen else f" ({cost.seconds / max(best.seconds, 1e-12):.3g}x)"
    return [
        f"  {'chosen' if candidate is chosen else 'slower':<9} {candidate.name:<{width}} "
        f"{label} {cost.seconds * 1e3:.3g} ms{ratio}  {candidate.work()}"
    ]


def _tile_visits(tiles: Tiled) -> Iterator[Visit]:
    steps = [line.axis.dilation for line in tiles.lines]
    for parts in tiles.visits():
        runs = [[_range(run, d) for run in tile.keys] for tile, d in zip(parts, steps, strict=True)]
        queries = tuple(_range(tile.queries, d) for tile, d in zip(parts, steps, strict=True))
        yield Visit(queries, tuple(product(*runs)), all(tile.is_full for tile in parts))


def _walk_visits(window: Window) -> Iterator[Visit]:
    steps = [line.axis.dilation for line in window.lines]
    for rows, columns, full in window.visits():
        queries = tuple(_ranges(at, d)[0] for at, d in zip(rows, steps, strict=True))
        runs = [_ranges(at, d) for at, d in zip(columns, steps, strict=True)]
        yield Visit(queries, tuple(product(*runs)), full)


def _ranges(positions: geometry.Ints, step: int) -> list[range]:
    """Positions that lie a step apart, but for one seam where they wrap."""
    seams = np.flatnonzero(np.diff(positions) != step) + 1
    return [
        range(int(part[0]), int(part[-1]) + 1, step) for part in np.split(positions, seams.tolist())
    ]


def _range(run: geometry.Run, step: int) -> range:
    return range(run[0], run[0] + run[1] * step, step)


def _block_visits(request: Request, call: Call, told: Flash) -> Iterator[Visit]:
    """The key blocks of every block of queries, for all groups: what the kernel's loop walks."""
    rows, keys = call.query.count, call.key.count
    size = max(request.head_dim, request.value_dim)
    tile = flash_providers.tile(told.provider, request.device, size)
    lo, hi = told.band(rows, keys).rows(np.arange(rows), keys)
    for first, end, row in zip(
        *told.key_blocks(tile, rows, keys), range(0, rows, tile[0]), strict=True
    ):
        queries = slice(row, min(row + tile[0], rows))
        for block in range(int(first), int(end)):
            columns = slice(block * tile[1], min((block + 1) * tile[1], keys))
            if columns.start >= keys:
                continue  # padded keys
            full = bool(
                (lo[queries] <= columns.start).all() and (hi[queries] >= columns.stop).all()
            )
            parts = _cut(call.query, told.axis, queries), _cut(call.key, told.axis, columns)
            yield from _group_visits(*parts, full=full)


def _cut(view: View, number: int, some: slice) -> View:
    """The view with a run of the positions of one axis."""
    axis = view.axes[number]
    part = replace(axis, start=axis.start + axis.step * some.start, length=some.stop - some.start)
    return View((*view.axes[:number], part, *view.axes[number + 1 :]))


def _group_visits(query: View, key: View, *, full: bool) -> Iterator[Visit]:
    """One visit per combination of groups."""
    for groups in product(*(range(axis.groups) for axis in query.axes)):
        spans = [
            tuple(
                _range((axis.start + axis.group_step * g, axis.length), axis.step)
                for axis, g in zip(view.axes, groups, strict=True)
            )
            for view in (query, key)
        ]
        yield Visit(spans[0], (spans[1],), full)
