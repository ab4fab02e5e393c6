"""The command `mask`: a mask in words, as a text picture, as JSON, as a PNG."""

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
Shows which keys every query of a mask reads: per axis what it does, how many keys a query reads,
and a matrix of queries (down) and keys (across). A long axis is drawn by tiles.

The mask comes from a configuration file (CONFIG NAME) or from --mask, written as in Python.
The legend explains the signs that occur. Where the output cannot show them, others stand in.
"""
_EPILOG = """
examples:
  nbattn mask --mask 'Axis(3, 3, border="shift")' --query 12
  nbattn mask --mask 'Axis(8, 0), Axis(3, 3, dilation=2)' --query 16,24
  nbattn mask --mask 'causal("bottom-right")' --query 4 --key 12
  nbattn mask --mask 'neighborhood((7, 7))' --query 32,32 --png nat.png
  nbattn mask configs/video_3d.toml encoder --query 8,24,24 --json

exit status:
  0  shown
  2  the mask, a file or a length does not fit
"""


_FIGURE = {"device": "cpu", "dtype": "float32", "heads": 8, "head_dim": 64, "backend": "auto"}


def add_parser(commands: Any) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "mask",
        help="show which keys a mask reads",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="a TOML or YAML file with [masks.NAME]")
    add("name", nargs="?", metavar="NAME", help="which of its masks; may be left out for one")
    add("--mask", metavar="TEXT", help="a mask as in Python, instead of CONFIG")
    add("--query", required=True, metavar="N,N", help="queries per axis: 8,24,24")
    add("--key", metavar="N,N", help="keys per axis (default: as the queries)")
    add("--json", action="store_true", help="the same facts as JSON, pairs of every cell included")
    add("--png", metavar="PATH", help="also a figure: matrices, tiles of a plan, neighborhoods")
    add(
        "--device",
        metavar="NAME",
        help="of the plan in the figure: sm_90 and so on (default: cpu)",
    )
    add("--dtype", metavar="NAME", help="of that plan (default: float32)")
    add("--heads", type=int, metavar="H", help="of that plan (default: 8)")
    add("--head-dim", type=int, metavar="D", help="of that plan (default: 64)")
    add("--backend", metavar="NAME", help="of that plan (default: auto)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the picture or its facts; write the figure."""
    from nbattn import draw

    mask = find(options)
    given = [name for name in _FIGURE if getattr(options, name) is not None]
    if given and options.png is None:
        name = given[0].replace("_", "-")
        raise InputError(f"--{name} is of the figure's plan.", f"--png mask.png --{name} …")
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
    """The mask of `--mask`, or of CONFIG and NAME."""
    if (options.mask is None) == (options.config is None):
        problem = "two masks are named" if options.mask else "no mask is named"
        raise InputError(f"{problem}.", "either CONFIG NAME, or --mask 'neighborhood((7, 7))'.")
    return _configured(options) if options.mask is None else parse_mask(options.mask)


def facts(mask: Mask, query: Space, key: Space) -> dict[str, Any]:
    """What the picture shows, as plain data."""
    from nbattn import draw, geometry, mask_symbols
    from nbattn.axis import describe

    axes = geometry.bind(mask, query, key)
    mask_symbols.check_lengths(axes)

    def counts(some: Any) -> dict[str, Any]:
        low, high, none = mask_symbols.key_counts(some)
        keys = {"fewest": low, "most": high, "queries_without_keys": none}
        return {"pairs": geometry.pairs(some), "keys_a_query": keys}

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
        hint = "".join(f"did you mean {one!r}? " for one in near)
        raise InputError(
            f"{options.config} has no mask {options.name!r}.", f"{hint}It has: {known}."
        )
    return masks[options.name]


def _cells(query: Space) -> int:
    """As many cells as the terminal is wide, up to the usual number; piped: the usual number."""
    from nbattn.draw import CELLS

    if not sys.stdout.isatty():
        return CELLS
    digits = len(str(max(query, default=0)))
    return max(8, min(CELLS, (shutil.get_terminal_size().columns - digits - 2) // 2))


def _printable(text: str) -> str:
    """The text, or with other signs where the output has no such characters."""
    encoding = sys.stdout.encoding or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def _write_png(options: argparse.Namespace, mask: Mask, query: Space, key: Space) -> None:
    from nbattn import plot
    from nbattn.functional import plan

    given: dict[str, Any] = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in _FIGURE.items()
    }
    heads = given.pop("heads"), given.pop("head_dim")
    shapes = [(1, *space, *heads) for space in (query, key)]
    plot.save(plot.figure(plan(mask, *shapes, **given)), options.png)
