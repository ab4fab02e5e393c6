"""Time Flash on a GPU: planned calls, the provider called directly, other libraries, and the regret
of the chosen strategy.

    PYTHONPATH=. python benchmarks/gpu_flash.py --output benchmarks/results/gpu-flash-DATE.json

Needs only a CUDA device and torch. It has not been run yet.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import nbattn
from nbattn import Axis, Mask, machine
from nbattn.errors import BackendError
from nbattn.timing import Action, clock, interleave

_ROUNDS = 7
_CPU_CALLS = 200
_HEADS = 8
Tensors = tuple[Tensor, Tensor, Tensor, Tensor]


def tensors(queries: int, keys: int, dim: int, batch: int = 1) -> Tensors:
    """Create q, k, v and the gradient of the output in bfloat16."""
    torch.manual_seed(0)
    sizes = (queries, keys, keys, queries)
    made = (torch.randn(batch, n, _HEADS, dim, device="cuda", dtype=torch.bfloat16) for n in sizes)
    return tuple(made)  # pyright: ignore


def forward_and_backward(attend: Callable[..., Tensor], made: Tensors) -> Action:
    """Return a function that runs both passes."""
    *inputs, grad = made
    leaves = [t.detach().requires_grad_() for t in inputs]
    return lambda: torch.autograd.grad(attend(*leaves), leaves, grad)


def planned(mask: Mask, **named: Any) -> Callable[..., Tensor]:
    """Return nbattn with torch's built-in Flash."""
    return partial(nbattn.attention, mask=mask, backend="flash:aten", **named)


def by_hand(window: tuple[int, int], made: Tensors, training: bool) -> Action:
    """Return a call of the raw operators with the best arguments for a square sliding window."""
    query, key, value, grad = made
    rows, keys = query.shape[1], key.shape[1]
    named = {
        "scale": query.shape[-1] ** -0.5,
        "window_size_left": window[0],
        "window_size_right": window[1],
    }
    sizes = (None, None, rows, keys, 0.0, False)
    run = torch.ops.aten._flash_attention_forward
    back = torch.ops.aten._flash_attention_backward

    def both() -> object:
        out, lse, seed, unused, _ = run(query, key, value, *sizes, False, **named)
        if not training:
            return out
        return back(grad, query, key, value, out, lse, *sizes, seed, unused, **named)

    return both


def flex(window: int, made: Tensors, training: bool) -> Action:
    """Return compiled FlexAttention; compilation is not timed."""
    heads_first = tuple(t.transpose(1, 2).contiguous() for t in made)
    rows = made[0].shape[1]

    def allowed(_b: Any, _h: Any, q: Any, k: Any) -> Any:
        return (q >= k) & (q - k <= window)

    blocks = create_block_mask(allowed, None, None, rows, rows, device="cuda")
    compiled = torch.compile(flex_attention)
    attend = partial(compiled, block_mask=blocks)
    return (
        forward_and_backward(attend, heads_first)  # pyright: ignore
        if training
        else partial(attend, *heads_first[:3])
    )


def sdpa(made: Tensors, training: bool) -> Action:
    """Return causal SDPA without a window, its closest mask."""
    heads_first = tuple(t.transpose(1, 2).contiguous() for t in made)
    attend = partial(torch.nn.functional.scaled_dot_product_attention, is_causal=True)
    return (
        forward_and_backward(attend, heads_first)  # pyright: ignore
        if training
        else partial(attend, *heads_first[:3])
    )


def windows(quick: bool) -> Iterator[dict[str, Any]]:
    """Time sliding windows: nbattn, direct calls, FlexAttention and SDPA in the same rounds."""
    grid = product((64, 128), (512, 1024, 2048, 4096), (8192, 16384, 32768), (False, True))
    for dim, window, length, training in [*grid][:2] if quick else grid:
        made = tensors(length, length, dim)
        mask = Mask.sliding_window(window)
        attend = planned(mask)
        functions = {
            "nbattn": forward_and_backward(attend, made)
            if training
            else partial(attend, *made[:3]),
            "by hand": by_hand((window, 0), made, training),
            "flex": flex(window, made, training),
            "sdpa, causal without a window": sdpa(made, training),
        }
        timings = interleave(functions, clock=clock(device="cuda"), rounds=_ROUNDS)
        seconds = {name: samples.typical for name, samples in timings.items()}
        yield {
            "kind": "window", "head_dim": dim, "window": window, "length": length,
            "training": training, "seconds": seconds,
            "over_by_hand": seconds["nbattn"] / seconds["by hand"] - 1,
        }  # fmt: skip


SHAPES = [
    (7688, 2048), (2048, 7688), (3000, 2048), (16384, 4096), (4096, 16384), (1024, 256),
    (512, 511), (8192, 128), (128, 8192), (2048, 1000), (20000, 3000), (33000, 1000),
]  # fmt: skip
MASKS = {
    "causal": Axis(None, 0, align="top-left"),
    "window 512": Axis(512, 0, align="top-left"),
    "two sides": Axis(700, 300, align="top-left"),
    "left open": Axis(None, 1000, align="top-left"),
}


def regrets(quick: bool) -> Iterator[dict[str, Any]]:
    """Time every strategy of a shape; the regret compares the chosen one with the best."""
    grid = product(SHAPES[:1] if quick else SHAPES, MASKS.items())
    for (queries, keys), (name, axis) in grid:
        made, mask = tensors(queries, keys, 128), Mask(axis)
        shapes = made[0].shape, made[1].shape
        plan = nbattn.plan(mask, *shapes, device="cuda", backend="flash:aten")
        functions: dict[str, Action] = {}
        for candidate in plan.candidates:
            if not candidate.reasons:
                named = {"require": (candidate.strategy, *candidate.traits)}
                functions[candidate.name] = partial(planned(mask, **named), *made[:3])
        timings = interleave(functions, clock=clock(device="cuda"), rounds=_ROUNDS)
        seconds = {label: samples.typical for label, samples in timings.items()}
        yield {
            "kind": "regret", "mask": name, "queries": queries, "keys": keys,
            "chosen": plan.chosen.name, "seconds": seconds,
            "regret": seconds[plan.chosen.name] / min(seconds.values()) - 1,
        }  # fmt: skip


def host(_: bool) -> Iterator[dict[str, Any]]:
    """Time a small call on the host, planned and direct, without waiting for the device."""
    made = tensors(128, 128, 64)
    functions: dict[str, Action] = {
        "nbattn": partial(planned(Mask.sliding_window(64)), *made[:3]),
        "by hand": by_hand((64, 0), made, False),
    }
    seconds: dict[str, float] = {}
    for name, run in functions.items():
        run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(_CPU_CALLS):
            run()
        seconds[name] = (time.perf_counter() - start) / _CPU_CALLS
        torch.cuda.synchronize()
    yield {
        "kind": "host", "seconds": seconds, "over_by_hand": seconds["nbattn"] - seconds["by hand"]
    }  # fmt: skip


def main() -> int:
    """Measure, print a line per row, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a JSON file to write")
    parser.add_argument("--quick", action="store_true", help="a few rows of each kind")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_flash: this machine has no CUDA device.", file=sys.stderr)
        return 2
    rows: list[dict[str, Any]] = []
    for part in (host, windows, regrets):
        try:
            for row in part(options.quick):
                rows.append(row)
                print(json.dumps(row), flush=True)
        except BackendError as error:
            print(f"{part.__name__}: {error}", file=sys.stderr)
            return 1
    values = [row["regret"] for row in rows if row["kind"] == "regret"]
    print(f"worst regret of {len(values)} shapes: {max(values):.1%}")
    if options.output:
        record = {
            "date": machine.now(),
            "machine": machine.machine(),
            "versions": machine.versions() | {"cuda": torch.version.cuda},
            "clock": clock(device="cuda").title,
            "rows": rows,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
