"""Time Flash on a GPU: planned calls, the provider called directly, other libraries, and the regret
of the chosen strategy.

    PYTHONPATH=. python benchmarks/gpu_flash.py --output FILE.jsonl

One JSON line per row, written when measured; a second run goes on. Needs only a CUDA device and
torch. It has not been run on a GPU yet.
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

import gpu_timing
import torch
from findings import Findings
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import nbattn
from nbattn import Axis, Mask
from nbattn.errors import NbattnError
from nbattn.planner import cost_table
from nbattn.timing import Action

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


Known = Callable[..., bool]


def times(peers: dict[str, Callable[[], Action]]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the seconds of every peer, and the errors of those that fail. Compiled graphs are
    forgotten before each: dynamo keeps few, and then runs without them.
    """
    seconds: dict[str, float] = {}
    errors: dict[str, str] = {}
    for name, peer in peers.items():
        torch.compiler.reset()
        try:
            seconds[name] = gpu_timing.seconds(peer())
        except Exception as error:  # whatever a compiler or a driver raises
            errors[name] = f"{type(error).__name__}: {error}"[:300]
    return seconds, errors


def windows(quick: bool, known: Known) -> Iterator[dict[str, Any]]:
    """Time sliding windows: nbattn first, then direct calls, FlexAttention and SDPA."""
    grid = product((64, 128), (512, 1024, 2048, 4096), (8192, 16384, 32768), (False, True))
    for dim, window, length, training in [*grid][:2] if quick else grid:
        about = {
            "kind": "window", "head_dim": dim, "window": window, "length": length,
            "training": training,
        }  # fmt: skip
        if known(**about):
            continue
        made = tensors(length, length, dim)
        attend = planned(Mask.sliding_window(window))
        ours = forward_and_backward(attend, made) if training else partial(attend, *made[:3])
        seconds, errors = times({
            "nbattn": lambda run=ours: run,
            "by hand": partial(by_hand, (window, 0), made, training),
            "flex": partial(flex, window, made, training),
            "sdpa, causal without a window": partial(sdpa, made, training),
        })  # fmt: skip
        yield {**about, "seconds": seconds, "errors": errors}


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


def regrets(quick: bool, known: Known) -> Iterator[dict[str, Any]]:
    """Time every strategy of a shape; the regret compares the chosen one with the best."""
    grid = product(SHAPES[:1] if quick else SHAPES, MASKS.items())
    for (queries, keys), (name, axis) in grid:
        about = {"kind": "regret", "mask": name, "queries": queries, "keys": keys}
        if known(**about):
            continue
        made, mask = tensors(queries, keys, 128), Mask(axis)
        shapes = made[0].shape, made[1].shape
        plan = nbattn.plan(mask, *shapes, dtype=torch.bfloat16, device="cuda", backend="flash:aten")
        functions: dict[str, Callable[[], Action]] = {}
        for candidate in plan.candidates:
            if not candidate.reasons:
                named = {"require": (candidate.strategy, *candidate.traits)}
                run = partial(planned(mask, **named), *made[:3])
                functions[candidate.name] = lambda run=run: run
        seconds, errors = times(functions)
        chosen = seconds.get(plan.chosen.name)
        yield {
            **about, "chosen": plan.chosen.name, "seconds": seconds, "errors": errors,
            "request": json.loads(cost_table.key(plan.request)),
            "regret": None if chosen is None else chosen / min(seconds.values()) - 1,
        }  # fmt: skip


def sdpa_kernels(_: bool, known: Known) -> Iterator[dict[str, Any]]:
    """Name the kernel that SDPA takes for causal masks with two lengths, and its rate."""
    for queries, keys, dim in ((4096, 4096, 128), (4096, 8192, 128), (8192, 4096, 128)):
        about = {"kind": "sdpa kernel", "queries": queries, "keys": keys, "head_dim": dim}
        if known(**about):
            continue
        run = sdpa(tensors(queries, keys, dim), False)
        seconds, errors = times({"sdpa": lambda run=run: run})
        row = {**about, "seconds": seconds, "errors": errors}
        yield row if errors else {**row, "kernels": gpu_timing.by_kernel(run)}


def host(_: bool, known: Known) -> Iterator[dict[str, Any]]:
    """Time a small call on the host, planned and direct, without waiting for the device."""
    if known(kind="host"):
        return
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


def main(words: list[str] | None = None) -> int:
    """Measure until all is known or the time is up; 3 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a file of JSON lines, which is continued")
    parser.add_argument("--quick", action="store_true", help="a few rows of each kind")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after this time")
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("gpu_flash: this machine has no CUDA device.", file=sys.stderr)
        return 2
    end, found = time.monotonic() + options.seconds, Findings(options.output)
    for part in (host, sdpa_kernels, regrets, windows):
        try:
            for row in part(options.quick, found.known):
                found.add(row)
                if time.monotonic() > end:
                    print("gpu_flash: the time is up; the next run goes on.", file=sys.stderr)
                    return 3
        except NbattnError as error:
            found.add({"kind": part.__name__, "error": str(error)[:500]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
