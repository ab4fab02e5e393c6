"""The options --html and --device of `nbattn mask`: the explorer's page of a mask, with a plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nbattn.cli import values
from nbattn.cli.parser import Parser
from nbattn.errors import InputError

if TYPE_CHECKING:
    from nbattn.mask import Mask

_HEADS = (8, 64)  # heads and head size of the plan


def add_options(parser: Parser) -> None:
    """Adds the options in a group of their own."""
    add = parser.add_argument_group("page for browsers").add_argument
    text = "write a page that explores the mask and a plan for it: 8 heads of size 64"
    add("--html", type=values.page, metavar="FILE", help=text)
    text = "device of the plan, for example sm_90; default: cpu"
    add("--device", type=values.text("cpu"), metavar="NAME", help=text)


def check(options: argparse.Namespace) -> None:
    """Checks the options before anything is computed.

    Raises:
        InputError: the page cannot be written, or there is a device and no page.
    """
    values.check_writable("--html", options.html, ".html")
    if options.device is not None and options.html is None:
        raise InputError(
            "--device is of the page's plan, and --html is missing.",
            f"--html mask.html --device {options.device}",
        )


def write(
    options: argparse.Namespace, mask: Mask, query: tuple[int, ...], key: tuple[int, ...]
) -> list[Path]:
    """Writes the page, if it is asked for; returns the files that were written.

    Raises:
        BackendError: no backend supports the plan.
    """
    if options.html is None:
        return []
    from nbattn.explorer import page
    from nbattn.functional import plan

    device = options.device or "cpu"
    dtype = "float32" if device == "cpu" else "bfloat16"
    shapes = [(1, *space, *_HEADS) for space in (query, key)]
    page.write({"mask": plan(mask, *shapes, dtype=dtype, device=device)}, options.html)
    return [options.html]
