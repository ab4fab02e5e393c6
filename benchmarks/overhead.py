"""Time the host side without arithmetic: tiny calls, warm and cold plans, proofs, closed-form
counts, the work before a kernel launch, the import.

The tests count the same work and assert no time.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import records
import report
import torch
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

import nbattn
from nbattn import Axis, Mask, geometry, machine
from nbattn.backends.cuda import run as cuda
from nbattn.backends.inputs import Inputs
from nbattn.kernels import cubins, launch
from nbattn.kernels.launch import Launcher
from nbattn.planner import planner
from nbattn.program.device import named
from nbattn.program.tile_traversal import Traversal
from nbattn.timing import Action

_SPACE, _HEADS, _DIM = 16, 1, 16
_TURN = 0.02
_NOW = time.process_time
_DECODE = Mask.from_transformers(512)

# Each runs in a new process, so that only the line before the clock has warmed anything.
_COLD = """
import time
import nbattn
from nbattn import Mask
nbattn.plan(Mask.neighborhood(3), (1, 16, 1, 16), device={device!r})
start = time.process_time()
nbattn.plan({mask}, {shape}, device={device!r}, training={training})
print(time.process_time() - start)
"""
_IMPORT = """
import time
import torch
start = time.process_time()
{line}
print(time.process_time() - start)
"""
_FLUX = "(1, 256, 256, 24, 128)"
_HUNYUAN = "(1, 30, 48, 80, 24, 128)"
COLD = {
    "FLUX 256x256, 80x80": ("Mask.neighborhood((80, 80))", _FLUX),
    "FLUX 256x256, 80x80 stride 16": ("Mask.neighborhood((80, 80), stride=16)", _FLUX),
    "Hunyuan 30x48x80, 18x24x24": ("Mask.neighborhood((18, 24, 24))", _HUNYUAN),
    "Hunyuan 30x48x80, 18x24x24 stride 16x8x8": (
        "Mask.neighborhood((18, 24, 24), stride=(16, 8, 8))",
        _HUNYUAN,
    ),
}
IMPORTS = {
    "import nbattn": "import nbattn",
    "import nbattn; nbattn.attention": "import nbattn; nbattn.attention",
}


LARGE: dict[str, tuple[Mask, tuple[int, ...]]] = {
    "Cosmos 16x44x80, 16x4x16 dilation 1x11x5": (
        Mask.neighborhood((16, 4, 16), dilation=(1, 11, 5)),
        (1, 16, 44, 80, 16, 128),
    ),
    "sphere 721x1440, 7x13, wrapped": (
        Mask(Axis(3, 3), Axis(6, 6, border="wrap")),
        (1, 721, 1440, 8, 64),
    ),
    "32768, 2048": (Mask.neighborhood(2048), (1, 32768, 1, 128)),
    "32768, 2048 stride 2048": (Mask.neighborhood(2048, stride=2048), (1, 32768, 1, 128)),
    "131072, causal": (Mask.causal(), (1, 131072, 8, 64)),
}


def per_call(run: Action, repeats: int) -> float:
    """Return the seconds of a call: the least of several turns, since other load only adds time."""
    run()
    before = _NOW()
    run()
    count = max(1, math.ceil(_TURN / max(_NOW() - before, 1e-7)))
    turns: list[float] = []
    for _ in range(repeats):
        before = _NOW()
        for _ in range(count):
            run()
        turns.append((_NOW() - before) / count)
    return min(turns)


def tiny_calls() -> dict[str, Action]:
    """Return calls with little arithmetic, for nbattn and for torch's own attention."""
    mask = Mask.sliding_window(3)
    plain = torch.randn(1, _SPACE, _HEADS, _DIM)
    leaf, grad = plain.clone().requires_grad_(), torch.ones_like(plain)
    allowed = torch.from_numpy(mask.dense(_SPACE))

    def dense(tensor: torch.Tensor) -> torch.Tensor:
        first = tensor.transpose(1, 2)
        return torch.nn.functional.scaled_dot_product_attention(
            first, first, first, attn_mask=allowed
        ).transpose(1, 2)

    def own(backend: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda tensor: nbattn.attention(tensor, tensor, tensor, mask, backend=backend)

    ways = {"torch SDPA, dense mask": dense, "nbattn, auto": own("auto")}
    ways |= {f"nbattn, {name}": own(name) for name in ("sdpa", "tiled")}
    calls: dict[str, Action] = {}
    for name, way in ways.items():
        calls[f"{name}: no grad"] = lambda way=way: way(plain)
        calls[f"{name}: grad"] = lambda way=way: way(leaf)
        calls[f"{name}: grad and backward"] = lambda way=way: torch.autograd.grad(
            way(leaf), leaf, grad
        )
    shape = (1, _SPACE, _HEADS, _DIM)
    calls["nbattn.plan, known shape"] = lambda: nbattn.plan(mask, shape, dtype="float32")
    calls["Mask.neighborhood((7, 7))"] = lambda: Mask.neighborhood((7, 7))
    return calls


def decode(steps: int) -> dict[str, list[float]]:
    """Time the first call of every length during decoding, and a second call."""
    key = torch.randn(1, 1024 + steps, 8, 64)
    query = torch.randn(1, 1, 8, 64)
    times: dict[str, list[float]] = {"nbattn.plan": [], "nbattn.attention": [], "known length": []}

    def plan(length: int) -> object:  # training: a different plan than that of the call below
        shapes = (1, 1, 8, 64), (1, length, 8, 64)
        return nbattn.plan(_DECODE, *shapes, dtype="float32", device="cpu", training=True)

    def attend(length: int) -> object:
        return nbattn.attention(query, key[:, :length], key[:, :length], _DECODE)

    attend(1023)
    gc.collect()
    gc.disable()  # as timeit does: a full collection would take longer than the calls
    for length in range(1024, 1024 + steps):
        for name, run in (
            ("nbattn.plan", plan),
            ("nbattn.attention", attend),
            ("known length", attend),
        ):
            before = _NOW()
            run(length)
            times[name].append(_NOW() - before)
    gc.enable()
    return times


def planning(device: str) -> dict[str, Action]:
    """Return functions that plan large requests and a decoding step again in a warm process."""
    shapes = {name: (mask, shape, shape) for name, (mask, shape) in LARGE.items()}
    shapes["decode, 1 of 10^9 keys"] = (_DECODE, (1, 1, 32, 128), (1, 10**9, 8, 128))

    def plan_again(mask: Mask, query: tuple[int, ...], key: tuple[int, ...]) -> None:
        planner.forget()
        nbattn.plan(mask, query, key, device=device)

    return {name: partial(plan_again, *shape) for name, shape in shapes.items()}


def proving(device: str) -> dict[str, Action]:
    """Return `plan.verify` of large plans."""
    return {name: nbattn.plan(*large, device=device).verify for name, large in LARGE.items()}


def counting() -> dict[str, Action]:
    """Return closed forms and the text picture at lengths that are too large for loops."""
    window = Mask.sliding_window(4095)
    (line,) = geometry.bind(window, 10**9, 10**9)
    (long,) = geometry.bind(window, 2**31, 2**31)
    return {
        "pairs, 10^9 queries": line.pairs,
        "queries without keys, 10^9": line.empty_queries,
        "tiles that kernels visit, 2^31": lambda: Traversal(long).tile_pairs(64, 64),
        "the same for keys": lambda: Traversal(long, inverse=True).tile_pairs(64, 64),
        "draw(10^6)": lambda: Mask.causal().draw(10**6),
    }


class _Nothing:
    """A launcher that launches no kernel."""

    def launch(self, *_: Any) -> None: ...

    def load(self, *_: Any) -> None: ...


def launching() -> dict[str, Action]:
    """Return the host side of a forward with the CUDA kernels: without launches; loading a kernel
    from its file where a compiler is installed; with launches where a GPU is available.
    """
    available = torch.cuda.is_available() and launch.missing() is None
    device = "cuda" if available else "cpu"
    info = None if available else replace(named("sm_90"), providers=("cupy",))
    mask, shape = Mask.neighborhood((7, 7)), (2, 20, 20, 4, 64)
    program = nbattn.plan(mask, shape, device=info, backend="cuda").chosen.program
    assert program is not None
    query = torch.zeros(shape, dtype=torch.bfloat16, device=device)
    inputs = Inputs(query, query, query, scale=0.125)

    def forward(launcher: Launcher) -> object:
        return cuda.forward(program, inputs, return_lse=False, launcher=launcher)

    calls: dict[str, Action] = {"forward, nothing launched": lambda: forward(_Nothing())}
    if launch.missing() is None:
        variants: list[Any] = []
        recorder = _Nothing()
        recorder.launch = lambda variant, *_: variants.append(variant)  # pyright: ignore
        forward(recorder)

        def load_stored() -> None:
            cubins.forget()
            cubins.get(variants[0], "90a")

        if cubins.folder() is not None:
            calls["its kernel, from the cache directory"] = load_stored
    if available:
        calls["forward, launched"] = lambda: forward(launch.launcher())
    return calls


def fresh(code: str, repeats: int) -> list[float]:
    """Run a script in new processes; return the number that each of them prints."""
    paths = [str(records.ROOT.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", code]
    return [
        float(subprocess.check_output(command, env=environment, text=True)) for _ in range(repeats)
    ]


def collect(options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Measure all rows: group, name, typical and worst seconds, number of runs."""
    rows: list[dict[str, Any]] = []
    calls = tiny_calls()
    groups = {
        f"plan anew, {options.device}": planning(options.device),
        f"plan.verify(), {options.device}": proving(options.device),
        "closed forms and pictures": counting(),
        "CUDA kernels, host side": launching(),
    }
    total = len(calls) + 1 + sum(map(len, groups.values())) + 2 * len(COLD) + len(IMPORTS)
    task = progress.add_task("overhead", total=total)

    def add(group: str, name: str, seconds: list[float]) -> None:
        typical, worst, runs = statistics.median(seconds), max(seconds), len(seconds)
        rows.append(
            {"group": group, "name": name, "seconds": typical, "worst": worst, "runs": runs}
        )

    for name, run in calls.items():
        add("call, 16 tokens", name, [per_call(run, options.repeats)])
        progress.advance(task)
    for name, seconds in decode(options.steps).items():
        add("decode, keys grow from 1024", name, seconds)
    progress.advance(task)
    for group, runs in groups.items():
        for name, run in runs.items():
            add(group, name, [per_call(run, options.repeats)])
            progress.advance(task)
    for name, (mask, shape) in COLD.items():
        for training in (False, True):
            code = _COLD.format(mask=mask, shape=shape, device=options.device, training=training)
            suffix = ", training" if training else ""
            add(f"first plan, {options.device}", name + suffix, fresh(code, options.processes))
            progress.advance(task)
    for name, line in IMPORTS.items():
        add("after import torch", name, fresh(_IMPORT.format(line=line), options.processes))
        progress.advance(task)
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all rows, in microseconds below a millisecond."""
    shown = Table(title="host side", title_justify="left", box=SIMPLE_HEAD)
    for name in ("what", "", "time", "worst", "runs"):
        shown.add_column(name, justify="left" if name in ("what", "") else "right", no_wrap=True)
    for row in rows:
        times = [
            report.short(row["seconds"]),
            report.short(row["worst"]) if row["runs"] > 1 else "",
        ]
        shown.add_row(row["group"], row["name"], *times, str(row["runs"]))
    return shown


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--device", default="cpu", help="device of the plans: cpu, sm_90, ...")
    add("--repeats", type=int, default=20, help="turns per tiny call")
    add("--steps", type=int, default=64, help="number of decoded lengths")
    add("--processes", type=int, default=5, help="new processes for a cold plan or an import")
    records.add_output(parser, "overhead-DATE.json")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    path = records.destination(options, f"overhead-{machine.today()}.json")
    torch.set_num_threads(1)
    screen = report.console()
    with Progress(console=screen, disable=not screen.is_terminal, transient=True) as progress:
        rows = collect(options, progress)
    screen.print(table(rows))
    record = {
        "date": machine.now(),
        "machine": records.machine(),
        "versions": records.versions(),
        "method": "process CPU time, 1 thread; tiny calls: least of many turns, else median",
        "rows": rows,
    }
    records.write(path, record)


if __name__ == "__main__":
    main()
