"""`nbattn plan --model`: what a published model would run, against the model without windows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nbattn.cli import arguments, screen, values
from nbattn.cli.parser import Kind, Parser
from nbattn.errors import InputError

if TYPE_CHECKING:
    from nbattn.published import LayerPlan, ModelPlan

HEADS = ("layers", "tokens", "useful", "computed", "time", "dense", "faster", "memory")
# Columns that narrow terminals leave out, one after another; the text below has most of them.
_LEFT_OUT = ("tokens", "computed", "memory", "useful", "dense")
_SUMMED = ("useful_flops", "computed_flops", "seconds", "dense_seconds")
_WIDE = 60  # columns of a terminal in which texts stand beside their labels
_PICTURES = (".png", ".svg")
_NUMBERS = ("model", "size", "frames", "text", "mask", "device", "dtype", "plot")
_SWITCHES = ("training", "verify", "json")
_OURS = {*_NUMBERS, *_SWITCHES, "config", "names", "command", "words"}
_ENDS = (
    "FLOPs, times and memory are of one layer's attention; the last line is the sum of all layers, "
    "and the memory of the largest. Projections, MLPs and cross attention over text are not "
    "counted.",
    "useful: of pairs that the mask allows. dense: one attention of all tokens to all tokens, by "
    "the same planner. memory: q, k, v, output and logsumexp, and what the chosen candidate needs "
    "beside them, as far as costs count it.",
)
_ESTIMATES = "time, dense: the planner's estimates, which are no times of a run"
_MIXED = ", and measured times, which are not compared with these; `nbattn tune` measures more"


def _size(text: str) -> tuple[int, int]:
    height, width = (int(part) for part in text.lower().split("x"))
    return height, width


size = Kind("a height and a width", "1024x1024", _size)


def add_options(parser: Parser) -> None:
    """Add the options of models; `run` evaluates them."""
    add = parser.add_argument_group("a published model, in the place of a request").add_argument
    text = "flux, hunyuan_video, wan, ltx2_decoder …: its attention, layer by layer; --mask is for "
    text += "all layers, default: published windows"
    add("--model", metavar="NAME", type=values.text("flux"), help=text)
    text = "height x width in pixels; default: the model's"
    add("--size", metavar="HxW", type=size, help=text)
    text = "frames of a video; default: the model's"
    add("--frames", metavar="N", type=values.whole(1, example="121"), help=text)
    text = "tokens of text that attend together with the grid; default: the model's"
    add("--text", metavar="N", type=values.whole(0, example="512"), help=text)
    text = "draw the times as bars, with --mesh the halo: .png or .svg (matplotlib)"
    add("--plot", metavar="FILE", type=values.picture, help=text)


def is_asked(options: argparse.Namespace) -> bool:
    """Whether the options plan a model.

    Raises:
        InputError: there is an option of models, but no model.
    """
    if options.model is not None:
        return True
    for name in ("size", "frames", "text", "plot"):
        if getattr(options, name) is not None and not (name == "plot" and options.mesh):
            problem = f"--{name} is of a published model, and --model is missing."
            raise InputError(problem, arguments.line(options, "--model", "flux", *options.words))
    return False


def run(options: argparse.Namespace) -> int:
    """Plan the model and print it; return the exit status, as of `nbattn plan`."""
    _check(options)
    from nbattn import published

    plan = published.plan(
        options.model,
        options.size,
        frames=options.frames,
        text=options.text,
        mask=None if options.mask is None else arguments.mask_of(options),
        device=options.device,
        dtype=options.dtype or "bfloat16",
        training=bool(options.training),
    )
    proof = _proof(plan) if options.verify else ""
    if options.plot is not None:
        from nbattn.cli import model_chart

        model_chart.save(plan, options.plot)
    if options.json:
        exact = {"verified": not proof.startswith("NOT")} if options.verify else {}
        screen.show(json.dumps(plan.to_dict() | exact, indent=1))
    else:
        screen.show("\n".join(text(plan, proof)))
        if options.plot is not None:
            screen.show(f"written: {options.plot}")
    return int(proof.startswith("NOT"))


def _check(options: argparse.Namespace) -> None:
    """Check what is given beside the model, before anything is planned.

    Raises:
        InputError: an option is unused, a mask has no name, or the picture cannot be written.
    """
    unused = [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name not in _OURS and value is not None and value is not False and value != []
    ]
    if unused or options.names:
        shown = ", ".join([*options.names, *unused])
        problem = f"--model defines the request, so these are unused: {shown}."
        raise InputError(problem, _line(options))
    if options.config is not None and options.mask is None:
        from nbattn.config import load

        mask = next(iter(load(options.config).masks), "full(2)")
        problem = f"{options.config} is given, but not which of its masks is for the layers."
        raise InputError(problem, f"--mask {mask}")
    check_picture(options)


def check_picture(options: argparse.Namespace) -> None:
    """Check that the file of --plot can be written, and matplotlib is there.

    Raises:
        InputError: one of them fails.
    """
    if options.plot is not None:
        ending = options.plot.suffix.lower()
        values.check_writable("--plot", options.plot, ending if ending in _PICTURES else ".png")
        from nbattn.cli import model_chart

        model_chart.check_installed()


def _line(options: argparse.Namespace) -> str:
    """The command line with the options that are used."""
    words = [options.config] * (options.config is not None)
    for name in _NUMBERS:
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name}", "x".join(map(str, value)) if name == "size" else str(value)]
    switches = [f"--{name}" for name in _SWITCHES if getattr(options, name)]
    return arguments.line(options, *words, *switches)


def _proof(plan: ModelPlan) -> str:
    try:
        plan.verify()
    except AssertionError as error:
        return f"NOT EXACT: {error}"
    return "exact: every pair of every mask once, no other"


def text(plan: ModelPlan, proof: str = "") -> Iterator[str]:
    """Yield the lines: the model, the table, what runs, and what the numbers are."""
    request = plan.request
    pixels = f"{plan.size[0]} x {plan.size[1]} pixels (height x width)"
    clip = f"{plan.frames} frames of {pixels}" if plan.model.stride else pixels
    training = ", training" * request.training
    yield (
        screen.styled(plan.name, "bold")
        + screen.wrapped(
            f"{plan.model.title}, {clip}, {request.dtype}, {request.device.name}{training}",
            " " * len(plan.name) + "  ",
        )[len(plan.name) :]
    )
    yield _hanging(plan.model.source, "  sizes    ")
    if proof:
        styles = ("bold", "red") if proof.startswith("NOT") else ()
        yield screen.styled(_hanging(proof, "  proof    "), *styles)
    yield ""
    yield from _table(plan)
    yield ""
    yield from _details(plan)
    yield ""
    yield from map(screen.wrapped, _ends(plan))


def _table(plan: ModelPlan) -> Iterator[str]:
    """Yield the table: a row for layers that attend alike, and their sum."""
    rows: list[list[str]] = [[*HEADS]]
    for name, part in zip(plan.names(), plan.layers, strict=True):
        numbers = _numbers([getattr(part, number) for number in _SUMMED], part.speedup)
        held = part.tensor_bytes + part.beside_bytes
        rows.append([name, _tokens(part), *numbers, _bytes(held)])
    count = sum(part.layers.count for part in plan.layers)
    sums = _numbers([*map(plan.total, _SUMMED)], plan.speedup)
    rows.append([f"{count} in all", "", *sums, _bytes(plan.peak_bytes)])
    for head in _LEFT_OUT:
        if _width(rows) > screen.width():
            place = rows[0].index(head)
            rows = [row[:place] + row[place + 1 :] for row in rows]
    sizes = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        cells = (f"{c:>{s}}" for c, s in zip(row[1:], sizes[1:], strict=True))
        line = f"  {row[0]:<{sizes[0]}}  {'  '.join(cells)}"
        yield screen.styled(line, *(["bold"] if number in (0, len(rows) - 1) else []))


def _width(rows: list[list[str]]) -> int:
    return sum(2 + max(map(len, cells)) for cells in zip(*rows, strict=True))


def _numbers(sums: list[float], speedup: float | None) -> list[str]:
    from nbattn.program.candidate import short_count

    flops, times = map(round, sums[:2]), sums[2:]
    faster = "" if speedup is None else f"{screen.rounded(speedup)}x"
    return [*map(short_count, flops), *map(_time, times), faster]


def _time(seconds: float) -> str:
    """A time in three digits and its unit."""
    unit, scale = ("h", 3600) if seconds >= 36e3 else ("s", 1) if seconds >= 1 else ("ms", 1e-3)
    return f"{screen.rounded(seconds / scale)} {unit}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def _tokens(part: LayerPlan) -> str:
    grid = " x ".join(map(str, part.grid))
    return f"{grid} + {part.text}" if part.text else grid


def _details(plan: ModelPlan) -> Iterator[str]:
    """Yield what runs, once for layers of different kinds that run alike."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, part in zip(plan.names(), plan.layers, strict=True):
        alike.setdefault(tuple(_of_a_layer(part)), []).append(name)
    for (tokens, *lines), names in alike.items():
        yield screen.wrapped(f"{', '.join(names)}: {tokens}", "  ")
        yield from (_hanging(line, "    ", 13) for line in lines)


def _hanging(text: str, first: str, hanging: int = 0) -> str:
    """Wraps a text below its start, or in a narrow terminal further to the left."""
    columns = (hanging or len(first)) if screen.width() >= _WIDE else 6
    return screen.wrapped(text, first, " " * columns)


def _of_a_layer(part: LayerPlan) -> Iterator[str]:
    """Yield the tokens, windows, choice and memory of a layer."""
    from nbattn.planner.explain import cost_of
    from nbattn.published import memory

    layers = part.layers
    beside = f", and {part.text} of text" * bool(part.text)
    yield (
        f"{_tokens(part).partition(' +')[0]} tokens{beside}, {layers.heads} heads of "
        f"{layers.head_dim}"
    )
    if part.windows == "none":
        windows = "none are published; --mask sets them"
    else:
        windows = f"{part.windows}: {part.mask!r}"
    yield f"windows  {windows}" + f"; {part.note}" * bool(part.note)
    for label, one in zip(("runs", "text"), memory.parts(part.plan), strict=False):
        yield f"{label:<8} {one.chosen.name}, {cost_of(one.chosen)}; {one.chosen.work()}"
    if part.plan is not part.dense:
        slower = ", faster than with windows" * ((part.speedup or 1) < 1)
        yield f"dense    {part.dense.chosen.name}, {cost_of(part.dense.chosen)}{slower}"
    extra = f" and {_bytes(part.beside_bytes)} beside them" * bool(part.beside_bytes)
    yield f"memory   {_bytes(part.tensor_bytes)} of tensors{extra}"


def _ends(plan: ModelPlan) -> Iterator[str]:
    """Yield what the numbers are."""
    yield from _ENDS
    if "estimated" in plan.clocks():
        yield _ESTIMATES + _MIXED * (plan.speedup is None)
    yield from dict.fromkeys(
        each.decided_by() for part in plan.layers for each in (part.plan, part.dense)
    )
