"""Options that select plans: the plans of a configuration, or one from a mask and a shape."""

from __future__ import annotations

import argparse
import shlex
from math import prod
from typing import TYPE_CHECKING

from nbattn.cli import values
from nbattn.cli.parser import Parser
from nbattn.errors import InputError, counted

if TYPE_CHECKING:
    from nbattn.config import PlanConfig
    from nbattn.mask import Mask
    from nbattn.planner.plan import Plan

CONFIG = "a TOML, YAML or JSON file, or a name that comes with nbattn, such as nat_tiny"
_SWITCHES = {
    "training": "a backward pass follows",
    "return-lse": "the logsumexp is returned too",
    "sink": "the softmax has a sink",
    "key-range": "keys have valid ranges (padding)",
    "extra-queries": "extra tokens are queries, too: the plans of both parts",
    "extra-range": "extra keys have valid ranges (padding)",
    "relative-bias": "scores have a table of relative positions",
    "alibi-slopes": "scores have slopes by distance",
    "deterministic": "every run gives the same bits",
    "packed": "q, k and v are views of one tensor",
}

EXTRAS = ", extra queries"  # in the name of a joint attention's other part


def add_request(parser: Parser) -> None:
    """Add the options that select plans; `plans` evaluates them."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=CONFIG)
    parser.add_argument(
        "names", nargs="*", metavar="PLAN", help="plan names in the file; default: all"
    )
    add = parser.add_argument_group("request").add_argument
    text = "a mask, 'Axis(3, 3), Axis(6, 6, border=\"wrap\")', or a mask's name in CONFIG"
    add("--mask", metavar="MASK", type=values.text("causal()"), help=text)
    text = "shape of the queries: batch, one length per axis, heads, head size"
    add("--query", type=values.shape, metavar="B,X,...,H,D", help=text)
    add("--key", type=values.shape, metavar="B,X,...,Hk,D", help="default: like the query")
    add("--value-dim", type=values.count, metavar="DV", help="head size of the values; default: D")
    text = "float16, bfloat16 (default), float32 or float64"
    add("--dtype", metavar="DTYPE", type=values.text("float32"), help=text)
    text = "cpu, sm_90, gfx942, xe, ...; default: this machine's"
    add("--device", metavar="DEVICE", type=values.text("cpu"), help=text)
    add("--backend", metavar="NAME", type=values.text("auto"), help="default: auto")
    for name in ("require", "forbid"):
        text = f"strategies or backends to {name}"
        add(f"--{name}", type=values.names, metavar="NAME,...", help=text)
    text = "extra keys for every query"
    add("--extra-keys", type=values.whole(0, 2**31 - 1, "4"), metavar="E", help=text)
    text = "sizes of grids that are packed one after another; the query is then tokens,heads,size"
    add("--grids", type=values.grids, metavar="XxY,...", help=text)
    add("--key-grids", type=values.grids, metavar="XxY,...", help="default: like those of queries")
    add("--softcap", type=values.number, metavar="C", help="soft cap of the scores")
    for name, text in _SWITCHES.items():
        add(f"--{name}", action="store_true", default=None, help=text)


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the options select plans: a configuration, or a request option besides --device."""
    request = ("config", "mask", "query", "key", "value_dim", "dtype", "backend", "require")
    more = (
        "forbid",
        "extra_keys",
        "grids",
        "key_grids",
        "softcap",
        *(name.replace("-", "_") for name in _SWITCHES),
    )
    return any(getattr(options, name) is not None for name in (*request, *more))


def plans(options: argparse.Namespace) -> dict[str, Plan]:
    """Return the selected plans by name; both parts of a joint attention.

    Raises:
        NbattnError: a file, mask, shape or name is invalid; nothing is selected; no backend
            supports a plan.
    """
    from nbattn.planner.joint_plan import JointPlan

    found: dict[str, Plan] = {}
    for name, request in requests(options):
        plan = request.plan()
        if isinstance(plan, JointPlan):
            found[name], found[f"{name}{EXTRAS}"] = plan.parts()
        else:
            found[name] = plan
    return found


def requests(options: argparse.Namespace) -> list[tuple[str, PlanConfig]]:
    """Return the selected plan requests as (name, request) pairs.

    Raises:
        ConfigError, InputError: a file, name or option is invalid.
    """
    from dataclasses import fields, replace

    from nbattn.config import PlanConfig

    flags = {f.name: getattr(options, f.name, None) for f in fields(PlanConfig) if f.name != "mask"}
    changes = {name: value for name, value in flags.items() if value is not None}
    if options.mask is None and options.config is not None:
        found = [(name, replace(plan, **changes)) for name, plan in _named(options)]
    else:
        _check_complete(options)
        found = [(str(options.mask), PlanConfig(mask=mask_of(options), **changes))]
    for _, plan in found:
        _check_shapes(options, plan)
    return found


def line(options: argparse.Namespace, *words: str) -> str:
    """Return a command line of the same command, as a fix."""
    return shlex.join(["nbattn", options.command, *words])


def _check_complete(options: argparse.Namespace) -> None:
    """Check that --mask and --query are given, and no names of plans.

    Raises:
        InputError: something is missing or unused; the fix is a complete command line.
    """
    file = [options.config] * (options.config is not None)
    if options.mask is None or options.query is None:
        given = {"--mask": options.mask, "--query": options.query}
        missing = " and ".join(name for name, value in given.items() if value is None)
        sizes = options.grids or ()
        rank = len(sizes[0]) if sizes else max(1, len(options.query or "....") - 3)
        rank = mask_of(options).rank if options.mask else rank
        local = f"neighborhood(({', '.join('7' * rank)}))"
        mask = options.mask or ("sliding_window(511)" if rank == 1 else local)
        tokens = sum(map(prod, sizes))
        packed = ["--grids", ",".join("x".join(map(str, size)) for size in sizes)] * bool(sizes)
        space = (4096,) if rank == 1 else (32,) * rank
        shape = (1, *space, 8, 64) if options.grids is None else (tokens, 8, 64)
        query = ",".join(map(str, options.query or shape))
        problem = f"{missing} {'is' if ' ' not in missing else 'are'} missing"
        raise InputError(
            f"the request is incomplete: {problem}, and no plans of a CONFIG are selected.",
            line(options, *file, "--mask", mask, "--query", query, *packed),
        )
    if options.names:
        raise InputError(
            f"--mask defines the request, so plan names are unused: {', '.join(options.names)}.",
            line(options, *file, *options.names),
        )


def _check_shapes(options: argparse.Namespace, plan: PlanConfig) -> None:
    """Check that the shapes on the command line have a number for everything.

    Raises:
        InputError: one has too few or too many; the fix begins as it does.
    """
    rank, is_packed = plan.mask.rank, plan.grids is not None or plan.key_grids is not None
    if plan.grids is None and options.key_grids is not None:
        sizes = ",".join("x".join(map(str, size)) for size in options.key_grids)
        raise InputError("--key-grids is given, but not --grids.", f"--grids {sizes}")
    example = (1, *(32,) * rank, 8, 64)
    wanted = f"batch, a length for each axis ({counted(rank, 'axis', 'axes')} in the mask)"
    if is_packed:
        wanted = "the tokens of all grids"
    for name in ("query", "key"):
        own = plan.key_grids if name == "key" and plan.key_grids is not None else plan.grids
        example = (sum(map(prod, own or ())), 8, 64) if is_packed else example
        given = getattr(options, name) or example
        if len(given) != len(example):
            fixed = (*given, *example[len(given) :])[: len(example)]
            if is_packed and len(given) > len(example):  # a batch, and lengths of axes
                fixed = (*example[:1], *given[-2:])
            raise InputError(
                f"--{name} has {counted(len(given), 'number')}, not {len(example)}: {wanted}, "
                "heads, head size.",
                f"--{name} {','.join(map(str, fixed))}",
            )


def _named(options: argparse.Namespace) -> list[tuple[str, PlanConfig]]:
    """Return the selected plans of the file."""
    from nbattn.config import load

    config = load(options.config)
    plans = config.plans
    if not plans:
        name, mask = next(iter(config.masks.items()), ("full()", None))
        query = ",".join(map(str, (1, *((32,) * (mask.rank if mask else 1)), 8, 64)))
        raise InputError(
            f"{options.config} declares no plans, only masks or layers.",
            line(options, options.config, "--mask", name, "--query", query),
        )
    for name in options.names:
        if name not in plans:
            raise InputError(
                f"{options.config} has no plan {name!r}; its plans are {', '.join(plans)}.",
                line(options, options.config, values.nearest(name, list(plans))),
            )
    return [(name, plans[name]) for name in options.names or plans]


def mask_of(options: argparse.Namespace) -> Mask:
    """Return the mask of --mask: a mask of that name in the file, else the parsed text."""
    from nbattn.cli.mask_text import parse_mask

    if options.config is not None:
        from nbattn.config import load

        masks = load(options.config).masks
        if options.mask in masks:
            return masks[options.mask]
        if options.mask.isidentifier():
            known = f"its masks are {', '.join(masks)}" if masks else "it declares none"
            problem = f"{options.config} has no mask {options.mask!r}; {known}."
            near = values.nearest(options.mask, [*masks, "full()"][: len(masks) or 1])
            raise InputError(problem, f"--mask {shlex.quote(near)}")
    return parse_mask(options.mask)
