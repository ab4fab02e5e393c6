"""Where commands that measure get their plans from: a configuration, or a mask in words."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn.errors import InputError

if TYPE_CHECKING:
    from nbattn.planner.plan import Plan

_WITH_MASK = ("query", "key", "dtype", "training")


def add_source(parser: argparse.ArgumentParser) -> None:
    """The arguments that `plans` reads."""
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="a configuration file with [plans.…]")
    add("plans", nargs="*", metavar="PLAN", help="names of its plans; default: all")
    add("--mask", help="a mask instead of a configuration: 'neighborhood((7, 7))'")
    add("--query", type=shape, metavar="B,…,H,D", help="with --mask: the shape of the queries")
    add("--key", type=shape, metavar="B,…,H,D", help="with --mask: of the keys; default: --query")
    add("--dtype", help="with --mask: default float32")
    add("--training", action="store_true", help="with --mask: forward and backward")
    add("--device", help='plan for it, whatever the configuration says: "cpu", "sm_90" …')


def plans(options: argparse.Namespace, *, required: bool = True) -> dict[str, Plan]:
    """The plans that were asked for, by name; none where none is required.

    Raises:
        NbattnError: of the configuration, the mask or a shape; an unknown plan; nothing asked for.
    """
    given = [name for name in _WITH_MASK if getattr(options, name)]
    if options.mask is None:
        if options.config is None and not required and not given:
            return {}
        if options.config is None:
            raise InputError(
                "neither CONFIG nor --mask is given.",
                fix=f"nbattn {options.command} CONFIG, or --mask 'causal' --query 1,1024,8,64.",
            )
        if given:
            raise InputError(
                f"--{given[0]} does not go with CONFIG.", fix=f"write it into {options.config}."
            )
        return _configured(options)
    if options.config is not None:
        raise InputError(
            f"both CONFIG ({options.config}) and --mask are given.", fix="one of them."
        )
    if options.query is None:
        raise InputError("--mask needs a shape.", fix="--query B,…,H,D, as in --query 1,1024,8,64.")
    return {"mask": _in_words(options)}


def _configured(options: argparse.Namespace) -> dict[str, Plan]:
    found: Mapping[str, Any] = importlib.import_module("nbattn.config").load(options.config).plans
    names: Sequence[str] = options.plans or list(found)
    for name in names:
        if name not in found:
            known = ", ".join(found) or "none"
            raise InputError(f"{options.config} has no plan {name!r}.", fix=f"one of: {known}.")
    if not names:
        raise InputError(f"{options.config} has no plans.", fix="a table [plans.NAME].")
    made = {name: found[name].plan() for name in dict.fromkeys(names)}
    if options.device is None:
        return made
    from nbattn import bench

    return {name: bench.on_device(plan, options.device) for name, plan in made.items()}


def _in_words(options: argparse.Namespace) -> Plan:
    from nbattn import functional

    parse = importlib.import_module("nbattn.cli.mask_text").parse_mask
    return functional.plan(
        parse(options.mask),
        options.query,
        options.key,
        dtype=options.dtype or "float32",
        device=options.device,
        training=options.training,
    )


def shape(text: str) -> tuple[int, ...]:
    """Integers separated by commas."""
    try:
        return tuple(int(number) for number in text.strip("[]() ").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not B,…,H,D") from None


def whole(text: str) -> int:
    """A whole number from 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def names_of(
    known: Callable[[], Sequence[str]], kind: str, text: str | None
) -> tuple[str, ...] | None:
    """Names separated by commas, all of them known; None for None.

    Raises:
        InputError: one is not, with those that are.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known():
            raise InputError(
                f"{kind} {name!r} is not known.", fix=f"one of {', '.join(map(repr, known()))}."
            )
    return names


def check_writable(path: Path | None) -> None:
    """Fail before measuring, not after.

    Raises:
        InputError: no file can be made there.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        what = (
            "is a directory" if path.is_dir() else f"cannot be made: {path.parent} is no directory"
        )
        raise InputError(f"{path} {what}.", fix="a file in a directory that exists.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written.", fix="a file that you may write.")
