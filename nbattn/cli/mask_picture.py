"""The text picture of one query's keys on the last two axes, a cell per key and column.

A mask is the AND over its axes, so on three axes every slice that has keys shows the same picture:
one is drawn, and a sentence lists the slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbattn.errors import InputError, counted

if TYPE_CHECKING:
    from nbattn.geometry import Axes, BoundAxis

ROWS = 64  # the most lines of a picture
NO_KEY = "."


def middle(query_space: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the query in the middle of every axis."""
    return tuple(length // 2 for length in query_space)


def check_query(query: tuple[int, ...], space: tuple[int, ...]) -> None:
    """Checks that a query is on the grid.

    Raises:
        InputError: it is not; the fix is the query in the middle.
    """
    if len(query) != len(space) or not all(i < n for i, n in zip(query, space, strict=True)):
        here, there = (",".join(map(str, numbers)) for numbers in (query, space))
        raise InputError(
            f"--at {here} is not on the grid of queries, which has the lengths {there}.",
            f"--at {','.join(map(str, middle(space)))}",
        )


def picture(axes: Axes, query: tuple[int, ...], columns: int) -> str:
    """Draws the keys of one query, in at most `columns` columns and `ROWS` rows.

    Args:
        axes: of a bound mask, two or three.
        query: its position on every axis, on the grid.
        columns: the width of the text.
    """
    keys = [_keys(axis, i) for axis, i in zip(axes, query, strict=True)]
    own = [i + axis.offset if axis.is_placed else -1 for axis, i in zip(axes, query, strict=True)]
    rows, line = axes[-2:]
    width = len(str(max(rows.keys - 1, 0)))
    down = _part(rows.keys, own[-2], ROWS)
    across = _part(line.keys, own[-1], columns - width - 1)
    count = len(keys[0]) * len(keys[1]) * (len(keys[2]) if len(keys) > 2 else 1)
    text = [f"query {', '.join(map(str, query))} attends to {count} keys{_where(keys, own)}:", ""]
    text.append(f"{'':{width}} {_ruler(across)}")
    is_own_slice = len(keys) < 3 or own[0] in keys[0]
    for y in down:
        cells = (
            _sign(y in keys[-2] and x in keys[-1], is_own_slice and (y, x) == (own[-2], own[-1]))
            for x in across
        )
        text.append(f"{y:>{width}} {''.join(cells)}")
    text += ["", f"■ attended   ◆ attended, own position   {NO_KEY} not attended"]
    drawn = [*_drawn("rows", rows.keys, down), *_drawn("columns", line.keys, across)]
    if drawn:
        inside = len(keys[-2] & {*down}) * len(keys[-1] & {*across})
        outside = len(keys[-2]) * len(keys[-1]) - inside
        rest = f"; {counted(outside, 'key')} of the query lie outside" * (outside > 0)
        text.append(f"drawn: {' and '.join(drawn)}{rest}")
    return "\n".join(line.rstrip() for line in text)


def _keys(axis: BoundAxis, query: int) -> set[int]:
    """Returns the keys of a query on one axis."""
    step = axis.spec.dilation
    runs = axis.key_intervals(query)
    return {key for start, count in runs for key in range(start, start + count * step, step)}


def _where(keys: list[set[int]], own: list[int]) -> str:
    """Returns in words which slices of the first of three axes have keys."""
    if len(keys) < 3 or not keys[0]:
        return ""
    slices = ", ".join(_runs(sorted(keys[0])))
    return f", the same in the slices {slices} of axis 0; its own slice is {own[0]}"


def _runs(numbers: list[int]) -> list[str]:
    """Returns sorted numbers as text, neighbours joined: 0–3, 5.

    >>> _runs([0, 1, 2, 5])
    ['0–2', '5']
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]


def _part(length: int, centre: int, most: int) -> range:
    """Returns the positions that are drawn: all, or as many as fit around the query's own."""
    start = max(0, min(centre - most // 2, length - most))
    return range(start, min(length, start + most))


def _ruler(across: range) -> str:
    """Numbers every tenth column."""
    marks = [x for x in across if x % 10 == 0 and x + len(str(x)) <= across.stop + 1]
    ruler = ""
    for mark in marks:
        ruler = ruler.ljust(mark - across.start) + str(mark)
    return ruler


def _sign(attended: bool, is_own: bool) -> str:
    if is_own:
        return "◆" if attended else "◇"
    return "■" if attended else NO_KEY


def _drawn(what: str, length: int, drawn: range) -> list[str]:
    return [] if len(drawn) == length else [f"{what} {drawn.start}–{drawn[-1]} of {length}"]
