"""`nbattn mask`: show a mask as text, as a text picture, as JSON or as a figure in a file."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
from typing import TYPE_CHECKING, Any

from nbattn.cli import mask_page, mask_picture, picture_files, screen, values
from nbattn.cli.arguments import CONFIG
from nbattn.cli.mask_text import parse_lengths, parse_mask
from nbattn.cli.parser import Parser
from nbattn.errors import InputError, counted

if TYPE_CHECKING:
    from nbattn.geometry import Axes
    from nbattn.mask import Mask

    Space = tuple[int, ...]

_DESCRIPTION = """
Show which keys every query attends to: on two and three axes a picture of the keys of one query;
then for every axis a description, the number of keys per query, and a matrix of queries (down) and
keys (across). A long axis is drawn by tiles. --svg, --pdf and --png write a figure for papers,
--html a page for browsers; nothing is written without.

The mask comes from a configuration file (CONFIG NAME) or from --mask, in Python syntax.
The legend explains the symbols. An output without Unicode gets ASCII symbols instead.
"""
_EPILOG = """
examples:
  nbattn mask --mask 'Axis(3, 3, border="shift")' --query 12
  nbattn mask --mask 'Axis(8, 0), Axis(3, 3, dilation=2)' --query 16,24
  nbattn mask --mask 'causal("bottom-right")' --query 4 --key 12
  nbattn mask --mask 'neighborhood((7, 7))' --query 32,32 --at 0,31
  nbattn mask --mask 'neighborhood((7, 7))' --query 32,32 --kind neighborhood --at 2,9 --pdf nat.pdf
  nbattn mask --mask 'neighborhood((7, 7))' --query 32,32 --html nat.html --device sm_90
  nbattn mask video_3d encoder --query 8,24,24 --json

exit status:
  0  the mask was shown
  2  the mask, a file or a length is invalid
"""


_COLOURS = {"■": "32", "◆": "1;33", "◇": "33", "▣": "36", "▤": "35", "◧": "32", "⬚": "2", "·": "2"}


def parser() -> Parser:
    """Return the parser of the command."""
    found = Parser("mask", "show which keys each query attends to", _DESCRIPTION, _EPILOG)
    add = found.add_argument
    add("config", nargs="?", metavar="CONFIG", help=CONFIG)
    add("name", nargs="?", metavar="NAME", help="mask name; optional if CONFIG has one mask")
    text = "a mask in Python syntax, instead of CONFIG"
    add("--mask", metavar="TEXT", type=values.text("causal()"), help=text)
    lengths = values.text("16,16")
    add("--query", metavar="N,N", type=lengths, help="queries per axis: 8,24,24")
    add("--key", metavar="N,N", type=lengths, help="keys per axis; default: like --query")
    text = "the query that pictures are about; default: in the middle"
    add("--at", metavar="I,I", type=values.text("8,8"), help=text)
    add("--json", action="store_true", help="print JSON, with the pairs of every cell")
    add = picture_files.add_options(found, "a figure of the mask as an SVG")
    text = "matrix (default): queries down, keys across; neighborhood: the keys of the query --at "
    text += "on their grid; axes: a lane per axis"
    add("--kind", metavar="KIND", type=values.text("neighborhood"), help=text)
    mask_page.add_options(found)
    return found


def run(options: argparse.Namespace) -> int:
    """Print the text picture or JSON, and write the figure."""
    mask = find(options)
    paths = picture_files.files(options)
    mask_page.check(options)
    if options.kind is not None and not paths:
        raise InputError(
            "--kind is the kind of a figure, and no file is given for one.",
            f"--kind {options.kind} --svg mask.svg",
        )
    if options.query is None:
        given = ["--mask", options.mask, options.config, options.name]
        words = given[:2] if options.mask else [word for word in given[2:] if word]
        line = ["nbattn", "mask", *words, "--query", ",".join(["16"] * mask.rank)]
        raise InputError("--query is missing: the queries per axis.", shlex.join(line))
    query = parse_lengths("--query", options.query)
    key = query if options.key is None else parse_lengths("--key", options.key)
    _check_lengths(mask, query, key)
    if options.json:
        shown = json.dumps(facts(mask, query, key), indent=2)
    else:
        shown = _coloured(text(mask, query, key, options.at, is_drawn=bool(paths)))
    if paths:
        picture_files.save(_figure(options, mask, query, key), paths)
    paths += mask_page.write(options, mask, query, key)
    shown += f"\n\nwritten: {', '.join(map(str, paths))}" * bool(paths and not options.json)
    screen.show(shown)
    return 0


def _check_lengths(mask: Mask, query: Space, key: Space) -> None:
    from nbattn.pictures.signs import LONGEST

    for name, lengths in (("query", query), ("key", key)):
        if len(lengths) != mask.rank:
            given, axes = counted(len(lengths), "length"), counted(mask.rank, "axis", "axes")
            fixed = (*lengths, *lengths[-1:] * mask.rank)[: mask.rank]
            fix = f"--{name} {','.join(map(str, fixed))}"
            raise InputError(f"--{name} has {given}, the mask {axes}.", fix, repr(mask))
    longest = max(*query, *key)
    if longest > LONGEST:
        shorter = [",".join(str(min(length, 1024)) for length in space) for space in (query, key)]
        raise InputError(
            f"{longest} is longer than {LONGEST}, up to which pictures go; a shorter axis shows "
            "the same.",
            f"--query {shorter[0]}" + f" --key {shorter[1]}" * (query != key),
        )


def text(mask: Mask, query: Space, key: Space, at: str | None, *, is_drawn: bool = False) -> str:
    """Return the mask, the picture of one query's keys, and the matrices of all axes.

    Args:
        at: the query of that picture.
        is_drawn: whether `at` is for a figure, too, and so of use on one axis.
    """
    from nbattn import geometry
    from nbattn.pictures.text import picture

    axes = geometry.bind(mask, query, key)
    matrices = picture(mask, query, key, **_fitting(axes))
    parts = [screen.wrapped(repr(mask), rest="  ")]
    if len(axes) > 1 and math.prod(query) and math.prod(key):
        one = mask_picture.middle(query) if at is None else parse_lengths("--at", at)
        mask_picture.check_query(one, query)
        parts.append(_legend(mask_picture.picture(axes, one, screen.width())))
    elif at is not None and not is_drawn:
        raise InputError(
            "--at chooses the query of a picture on two axes or more; this mask has one.",
            f"--query {','.join(map(str, query))}",
        )
    return "\n\n".join([*parts, *map(_legend, matrices.split("\n\n"))])


def _legend(part: str) -> str:
    """Wraps the legend between its entries, and sentences above a matrix."""
    if "\n" in part or "   " not in part:
        return "\n".join(line if line[:1] == " " else _sentence(line) for line in part.splitlines())
    entries = [entry.replace(" ", screen.TIED) for entry in part.split("   ")]
    return screen.wrapped("  ".join(entries)).replace(screen.TIED, " ")


def _sentence(line: str) -> str:
    is_row = line[:1].isdigit() and not {*line}.isdisjoint(_COLOURS)
    return line if is_row else screen.wrapped(line, rest="  ")


def _coloured(picture: str) -> str:
    """Return the picture with its signs in colours, where the output has them."""
    if not screen.has_colours(sys.stdout):
        return picture

    def coloured(run: re.Match[str]) -> str:
        return f"\x1b[{_COLOURS[run[0][0]]}m{run[0]}\x1b[0m"

    return re.sub(f"([{''.join(_COLOURS)}])( ?\\1)*", coloured, picture)


def find(options: argparse.Namespace) -> Mask:
    """Return the mask of `--mask`, or of CONFIG and NAME."""
    if options.mask is not None and options.config is not None:
        lengths = re.fullmatch(r"\d+(,\d+)*", options.config)
        query = options.query or (options.config if lengths else "")
        query = query or ",".join(["16"] * parse_mask(options.mask).rank)
        raise InputError(
            f"{options.config!r} is one word too many: the mask is that of --mask.",
            shlex.join(["nbattn", "mask", "--mask", options.mask, "--query", query]),
        )
    if options.mask is None and options.config is None:
        query = options.query or "16,16"
        rank = query.count(",") + 1
        example = "causal()" if rank == 1 else f"neighborhood(({', '.join('7' * rank)}))"
        words = ["nbattn", "mask", "--mask", example, "--query", query]
        raise InputError("no mask is given: give CONFIG and NAME, or --mask.", shlex.join(words))
    return _configured(options) if options.mask is None else parse_mask(options.mask)


def facts(mask: Mask, query: Space, key: Space) -> dict[str, Any]:
    """Return the content of the picture as plain data."""
    from nbattn import geometry
    from nbattn.axis import describe
    from nbattn.pictures import signs
    from nbattn.pictures.text import CELLS

    axes = geometry.bind(mask, query, key)
    signs.check_lengths(axes)

    def counts(bound_axes: Any) -> dict[str, Any]:
        low, high, empty = signs.key_counts(bound_axes)
        keys = {"fewest": low, "most": high, "queries_without_keys": empty}
        return {"pairs": geometry.pairs(bound_axes), "keys_a_query": keys}

    shown: list[dict[str, Any]] = []
    for axis in axes:
        cell = [max(1, -(-length // CELLS)) for length in (axis.queries, axis.keys)]
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
    from nbattn.config import load

    masks: dict[str, Mask] = load(options.config).masks
    if len(masks) == 1 and options.name is None:
        return next(iter(masks.values()))
    if not masks:
        problem = f"{options.config} declares no masks."
        raise InputError(problem, "--mask 'neighborhood((7, 7))'")
    if options.name not in masks:
        known = ", ".join(masks)
        problem = f"{options.config} has {len(masks)} masks: {known}."
        if options.name is not None:
            problem = f"{options.config} has no mask {options.name!r}; its masks are {known}."
            problem += values.guess(options.name, list(masks))
        name = values.nearest(options.name or "", list(masks))
        query = options.query or ",".join(["16"] * masks[name].rank)
        words = ["nbattn", "mask", options.config, name, "--query", query]
        raise InputError(problem, shlex.join(words))
    return masks[options.name]


def _fitting(axes: Axes) -> dict[str, Any]:
    """Return the cells of a matrix that fit the width, and the gap between them: none where an axis
    fits only without.
    """
    from nbattn.pictures.text import CELLS

    longest = max((max(axis.queries, axis.keys) for axis in axes), default=0)
    room = screen.width() - len(str(longest)) - 2
    spaced = max(8, min(CELLS, room // 2))
    return {"cells": room, "gap": ""} if spaced < longest <= room else {"cells": spaced}


def _figure(options: argparse.Namespace, mask: Mask, query: Space, key: Space) -> Any:
    """Return the figure of --kind and --at."""
    from nbattn.pictures import plot, style

    at = None if options.at is None else parse_lengths("--at", options.at)
    if at is not None:
        mask_picture.check_query(at, query)
    kind = options.kind or plot.KINDS[0]
    if kind not in plot.KINDS:
        known = ", ".join(plot.KINDS)
        nearest = values.nearest(kind, plot.KINDS)
        raise InputError(f"--kind {kind} is not one of {known}.", f"--kind {nearest}")
    made = plot.picture(mask, query, key, query=at, kind=kind, figure=style.plain_figure)
    return made.figure
