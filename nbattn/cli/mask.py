"""`nbattn mask`: show a mask as text, as a text picture, as JSON or as a PNG."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn.cli import values
from nbattn.cli.mask_text import parse_lengths, parse_mask
from nbattn.errors import InputError

if TYPE_CHECKING:
    from nbattn.mask import Mask

    Space = tuple[int, ...]

_ASCII = str.maketrans("■◆◇▣▤◧⬚·‹›–×", "#@o$=+.:<>-x")
_DESCRIPTION = """
Shows which keys every query attends to: a description of each axis, the number of keys per query,
and a matrix of queries (down) and keys (across). A long axis is drawn by tiles.

The mask comes from a configuration file (CONFIG NAME) or from --mask, in Python syntax.
The legend explains the symbols. An output without Unicode gets ASCII symbols instead.
"""
_EPILOG = """
examples:
  nbattn mask --mask 'Axis(3, 3, border="shift")' --query 12
  nbattn mask --mask 'Axis(8, 0), Axis(3, 3, dilation=2)' --query 16,24
  nbattn mask --mask 'causal("bottom-right")' --query 4 --key 12
  nbattn mask --mask 'neighborhood((7, 7))' --query 32,32 --png nat.png
  nbattn mask configs/video_3d.toml encoder --query 8,24,24 --json

exit status:
  0  the mask was shown
  2  the mask, a file or a length is invalid
"""


_FIGURE = {"device": "cpu", "dtype": "float32", "heads": 8, "head_dim": 64, "backend": "auto"}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "mask",
        help="show which keys each query attends to",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="a TOML or YAML file with [masks.NAME]")
    add("name", nargs="?", metavar="NAME", help="mask name; optional if CONFIG has one mask")
    add("--mask", metavar="TEXT", help="a mask in Python syntax, instead of CONFIG")
    add("--query", required=True, metavar="N,N", help="queries per axis: 8,24,24")
    add("--key", metavar="N,N", help="keys per axis (default: like --query)")
    add("--json", action="store_true", help="print JSON, with the pairs of every cell")
    add(
        "--png",
        metavar="PATH",
        help="also write a figure: matrices, tiles of a plan, neighborhoods",
    )
    add(
        "--device",
        metavar="NAME",
        help="device of the plan in the figure, for example sm_90 (default: cpu)",
    )
    add("--dtype", metavar="NAME", help="dtype of that plan (default: float32)")
    add("--heads", type=int, metavar="H", help="heads of that plan (default: 8)")
    add("--head-dim", type=int, metavar="D", help="head size of that plan (default: 64)")
    add("--backend", metavar="NAME", help="backend of that plan (default: auto)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the text picture or JSON, and write the figure."""
    from nbattn import draw

    mask = find(options)
    used = [name for name in _FIGURE if getattr(options, name) is not None]
    if used and options.png is None:
        name = used[0].replace("_", "-")
        raise InputError(
            f"--{name} applies to the figure's plan, but --png is missing.",
            f"--png mask.png --{name} …",
        )
    if options.png is not None:
        values.check_writable(Path(options.png), ".png")
    query = parse_lengths("--query", options.query)
    key = query if options.key is None else parse_lengths("--key", options.key)
    if options.json:
        text = json.dumps(facts(mask, query, key), indent=2)
    else:
        text = f"{mask!r}\n\n{draw.picture(mask, query, key, cells=_cells(query))}"
    if options.png is not None:
        _write_png(options, mask, query, key)
    print(_printable(text))
    return 0


def find(options: argparse.Namespace) -> Mask:
    """Return the mask of `--mask`, or of CONFIG and NAME."""
    if (options.mask is None) == (options.config is None):
        problem = "two masks are given" if options.mask else "no mask is given"
        raise InputError(f"{problem}.", "either CONFIG NAME, or --mask 'neighborhood((7, 7))'.")
    return _configured(options) if options.mask is None else parse_mask(options.mask)


def facts(mask: Mask, query: Space, key: Space) -> dict[str, Any]:
    """Return the content of the picture as plain data."""
    from nbattn import draw, geometry, mask_symbols
    from nbattn.axis import describe

    axes = geometry.bind(mask, query, key)
    mask_symbols.check_lengths(axes)

    def counts(bound_axes: Any) -> dict[str, Any]:
        low, high, empty = mask_symbols.key_counts(bound_axes)
        keys = {"fewest": low, "most": high, "queries_without_keys": empty}
        return {"pairs": geometry.pairs(bound_axes), "keys_a_query": keys}

    shown: list[dict[str, Any]] = []
    for axis in axes:
        cell = [max(1, -(-length // draw.CELLS)) for length in (axis.queries, axis.keys)]
        shown.append(
            {
                "axis": repr(axis.spec),
                "words": describe(axis.spec),
                "queries": axis.queries,
                "keys": axis.keys,
                "position_of_query_0": axis.offset if axis.is_placed else None,
                **counts((axis,)),
                "cell": cell,
                "pairs_of_cells": axis.coverage(*cell).tolist(),
            }
        )
    whole = {"query": list(query), "key": list(key), **counts(axes)}
    return {"mask": repr(mask), **whole, "axes": shown}


def _configured(options: argparse.Namespace) -> Mask:
    from nbattn.config import load  # pyright: ignore

    masks: dict[str, Mask] = load(options.config).masks
    known = ", ".join(masks) or "none"
    if options.name is None:
        if len(masks) == 1:
            return next(iter(masks.values()))
        raise InputError(f"{options.config} has {len(masks)} masks.", f"name one of: {known}.")
    if options.name not in masks:
        near = difflib.get_close_matches(options.name, masks, 1)
        hint = "".join(f"did you mean {candidate!r}? " for candidate in near)
        raise InputError(
            f"{options.config} has no mask {options.name!r}.", f"{hint}It has: {known}."
        )
    return masks[options.name]


def _cells(query: Space) -> int:
    """Return the number of cells that fit the terminal, at most `CELLS`; `CELLS` in a pipe."""
    from nbattn.draw import CELLS

    if not sys.stdout.isatty():
        return CELLS
    digits = len(str(max(query, default=0)))
    return max(8, min(CELLS, (shutil.get_terminal_size().columns - digits - 2) // 2))


def _printable(text: str) -> str:
    """Return the text, with ASCII symbols where the output encoding lacks the others."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _write_png(options: argparse.Namespace, mask: Mask, query: Space, key: Space) -> None:
    from nbattn import plot
    from nbattn.functional import plan

    settings: dict[str, Any] = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in _FIGURE.items()
    }
    heads = settings.pop("heads"), settings.pop("head_dim")
    shapes = [(1, *space, *heads) for space in (query, key)]
    plot.save(plot.figure(plan(mask, *shapes, **settings)), options.png)
