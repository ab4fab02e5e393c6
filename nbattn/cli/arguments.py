"""Options that select plans: the plans of a configuration, or one from a mask and a shape."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from nbattn.cli import values
from nbattn.errors import InputError

if TYPE_CHECKING:
    from nbattn.config import PlanConfig
    from nbattn.planner.plan import Plan

_SWITCHES = {
    "training": "a backward pass follows",
    "return-lse": "the logsumexp is returned too",
    "sink": "the softmax has a sink",
    "key-range": "keys have valid ranges (padding)",
    "deterministic": "every run gives the same bits",
    "packed": "q, k and v are views of one tensor",
}


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the options that select plans; `plans` evaluates them."""
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="TOML, YAML or JSON file")
    parser.add_argument(
        "names", nargs="*", metavar="PLAN", help="plan names in the file; default: all"
    )
    group = parser.add_argument_group("request")
    text = "a mask, 'Axis(3, 3), Axis(6, 6, border=\"wrap\")', or a mask's name in CONFIG"
    group.add_argument("--mask", metavar="MASK", help=text)
    shape = "comma-separated"
    group.add_argument("--query", type=values.shape, metavar="B,X,...,H,D", help=f"{shape} shape")
    group.add_argument(
        "--key", type=values.shape, metavar="B,X,…,Hk,D", help="default: like the query"
    )
    group.add_argument("--value-dim", type=int, metavar="DV", help="default: D")
    group.add_argument("--dtype", help="float16, bfloat16 (default), float32 or float64")
    group.add_argument("--device", help="cpu, sm_80, sm_90, ...; default: this machine's")
    group.add_argument("--backend", help="default: auto")
    for name in ("require", "forbid"):
        text = f"strategies or backends to {name}"
        group.add_argument(f"--{name}", type=values.names, metavar="NAME,...", help=text)
    group.add_argument("--extra-keys", type=int, metavar="E", help="extra keys for every query")
    group.add_argument("--softcap", type=float, metavar="C", help="soft cap of the scores")
    for name, text in _SWITCHES.items():
        group.add_argument(f"--{name}", action="store_true", default=None, help=text)


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the options select plans: a configuration, or a request option besides --device."""
    request = ("config", "mask", "query", "key", "value_dim", "dtype", "backend", "require")
    more = ("forbid", "extra_keys", "softcap", *(name.replace("-", "_") for name in _SWITCHES))
    return any(getattr(options, name) is not None for name in (*request, *more))


def plans(options: argparse.Namespace) -> dict[str, Plan]:
    """Return the selected plans by name.

    Raises:
        NbattnError: a file, mask, shape or name is invalid; nothing is selected; no backend
            supports a plan.
    """
    return {name: request.plan() for name, request in requests(options)}


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
        return [(name, replace(plan, **changes)) for name, plan in _named(options)]
    if options.mask is None or options.query is None:
        raise InputError(
            "the request is missing: give CONFIG, or --mask and --query.",
            f"nbattn {options.command} CONFIG, or nbattn {options.command} "
            "--mask 'sliding_window(511)' --query 1,4096,8,64",
        )
    if options.names:
        raise InputError(
            f"--mask defines the request, so plan names are unused: {', '.join(options.names)}.",
            "give either --mask or plan names.",
        )
    return [(options.mask, PlanConfig(mask=_mask(options), **changes))]


def _named(options: argparse.Namespace) -> list[tuple[str, PlanConfig]]:
    """Return the selected plans of the file."""
    from nbattn.config import load

    plans = load(options.config).plans
    for name in options.names or plans or [""]:
        if name not in plans:
            known = ", ".join(plans) or "none: it declares masks or layers only"
            raise InputError(
                f"{options.config} has no plan {name!r}." if name else "no plan to show.",
                f"plans of {options.config}: {known}.",
            )
    return [(name, plans[name]) for name in options.names or plans]


def _mask(options: argparse.Namespace) -> Any:
    """Return the mask of --mask: a mask of that name in the file, else the parsed text."""
    from nbattn.cli.mask_text import parse_mask

    if options.config is not None:
        from nbattn.config import load

        masks = load(options.config).masks
        if options.mask in masks:
            return masks[options.mask]
        if options.mask.isidentifier():
            problem = f"{options.config} has no mask {options.mask!r}."
            raise InputError(problem, f"masks of {options.config}: {', '.join(masks)}.")
    return parse_mask(options.mask)
