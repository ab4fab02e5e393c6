"""Tests on a GPU that FlashArguments computes the pairs of the real Flash kernels.

`PYTHONPATH=. python -m pytest tests/gpu` runs it without installing anything; providers that are
absent are skipped by name. Probes have no tolerance: zero queries give every key that a row reads
the same weight, so one-hot values show which keys were read, one-hot gradients which queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import flash_oracle
import numpy as np
import pytest
import torch
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends import calls, families
from nbattn.backends.calls import RowTensors
from nbattn.backends.flash.adapters import Kernels
from nbattn.backends.flash.meaning import FlashArguments, WindowArguments
from nbattn.backends.flash.providers import PROVIDERS
from nbattn.planner import devices

Count = Callable[[str, int], None]
pytestmark = pytest.mark.gpu
DEVICE = "cuda"
WIDTH = 64
SHAPES = [
    (1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (5, 3), (7, 2), (2, 7), (12, 12), (4, 12), (12, 4),
    (64, 64), (130, 60), (60, 130), (200, 64), (64, 200), (129, 257), (400, 100),
]  # fmt: skip
STRATEGIES = ("translate", "trim", "split", "virtual-pad", "pack", "pad")


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> str:
    """A provider that this machine can run, forward and backward."""
    name: str = request.param
    shape = (1, 128, 1, WIDTH)
    try:
        nbattn.plan(
            Mask.causal(), shape, dtype="float16", device=DEVICE, backend=f"flash:{name}",
            training=True,
        )  # fmt: skip
    except BackendError as error:
        pytest.skip(error.problem)
    return name


def windows(provider: str, rows: int, keys: int) -> Iterator[tuple[Any, Any, bool]]:
    """Tuples at and around every override."""
    wild = (0, 1, keys - 2, keys - 1, keys, keys + 1, rows - 1, rows, abs(rows - keys))
    sides = {side for side in wild if side >= 0} | ({-3, -1, None} if provider == "fa4" else {-1})
    for left, right in product(sorted(sides, key=str), repeat=2):
        yield left, right, False
        yield left, right, True


def want(call: FlashArguments, rows: int, keys: int) -> np.ndarray:
    window_arguments = call.window
    window = (window_arguments.left, window_arguments.right, window_arguments.causal)
    if call.provider == "fa4":
        return flash_oracle.flash4(rows, keys, *window)
    if call.provider == "fa3":
        return flash_oracle.flash3(rows, keys, *window)
    lengths = (window_arguments.max_queries, window_arguments.max_keys)
    return flash_oracle.flash2(rows, keys, *window, call.entry, *lengths)


def one_hot(count: int, first: int) -> Tensor:
    """`[2, count, 1, WIDTH]`: position `first + c` has a one in column c."""
    probe = torch.zeros(2, count, 1, WIDTH, dtype=torch.float16, device=DEVICE)
    places = torch.arange(first, min(first + WIDTH, count), device=DEVICE)
    probe[:, places, 0, places - first] = 1
    return probe


def probed(call: FlashArguments, rows: int, keys: int) -> tuple[Tensor, Tensor]:
    """Which keys rows attend to, from the outputs and from the gradients of the values."""
    query, key = (
        torch.zeros(2, count, 1, WIDTH, dtype=torch.float16, device=DEVICE)
        for count in (rows, keys)
    )
    forward, backward = [], []
    lse = out = None
    for first in range(0, keys, WIDTH):
        out, lse = Kernels().forward(call, (query, key, one_hot(keys, first)), 1.0, None)
        assert out.isfinite().all()
        forward.append((out != 0)[..., : keys - first])
    assert lse is not None
    assert out is not None
    value = torch.zeros_like(key)
    for first in range(0, rows, WIDTH):
        upward = one_hot(rows, first)
        known = RowTensors(torch.zeros_like(out), lse, upward, None)
        grads = Kernels().backward(call, (query, key, value), known, 1.0, None)
        assert all(grad.isfinite().all() for grad in grads)
        backward.append((grads[2] != 0)[..., : rows - first])
    read, readers = (torch.cat(parts, -1)[:, :, 0].cpu() for parts in (forward, backward))
    assert torch.equal(read[0], read[1])
    counts = lse.exp().round()[0, :, 0].cpu()
    assert torch.equal(counts, read[0].sum(1).float())
    return read[0], readers[0].T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flash_arguments_compute_the_pairs_of_the_kernel(
    provider: str, shape: tuple[int, int], cases: Count
) -> None:
    rows, keys = shape
    for left, right, causal in windows(provider, rows, keys):
        calls = [FlashArguments(provider, "dense", WindowArguments(left, right, causal))]
        if PROVIDERS[provider].varlen:
            longest = max(rows, keys)
            window_arguments = (
                WindowArguments(left, right, causal, rows, most) for most in (longest, longest + 70)
            )
            calls += [FlashArguments(provider, "varlen", one) for one in window_arguments]
        for call in calls:
            allowed = torch.from_numpy(want(call, rows, keys))
            forward, backward = probed(call, rows, keys)
            assert torch.equal(forward, allowed), (call, shape)
            assert torch.equal(backward, allowed), (call, shape)
            cases(f"gpu, {provider} {call.entry}", 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kv_cache_arguments_compute_the_pairs_of_the_kernel(
    provider: str, shape: tuple[int, int], cases: Count
) -> None:
    """Forward only; the cache holds large numbers behind its filling."""
    if not PROVIDERS[provider].kvcache:
        pytest.skip(f"{provider} has no kv-cache entry that is used here")
    rows, keys = shape
    host = flash_oracle.flash3 if provider == "fa3" else flash_oracle.flash2_cache
    query = torch.zeros(2, rows, 1, WIDTH, dtype=torch.float16, device=DEVICE)
    for (left, right, causal), capacity in product(
        windows(provider, rows, keys), (keys, keys + 70, keys + 300)
    ):
        call = FlashArguments(
            provider, "kvcache", WindowArguments(left, right, causal, max_keys=capacity, used=keys)
        )
        key = query.new_full((2, capacity, 1, WIDTH), 1e4)
        key[:, :keys] = 0
        read: list[Tensor] = []
        for first in range(0, keys, WIDTH):
            value = torch.full_like(key, 1e4)
            value[:, :keys] = one_hot(keys, first)
            out, _ = Kernels().forward(call, (query, key, value), 1.0, None)
            read.append((out != 0)[0, :, 0, : keys - first].cpu())
        allowed = torch.from_numpy(host(rows, keys, left, right, causal, capacity))
        assert torch.equal(torch.cat(read, -1), allowed), call
        cases(f"gpu, {provider} kvcache", 1)


MASKS: dict[str, tuple[Mask, int, int]] = {
    "causal, tall": (Mask.causal("top-left"), 700, 200),
    "causal, wide": (Mask.causal("top-left"), 200, 700),
    "window": (Mask.sliding_window(100), 500, 500),
    "two sides": (Mask(Axis(70, 33, align="bottom-right")), 300, 555),
    "shift": (Mask.neighborhood(65), 513, 513),
    "dilated": (Mask(Axis(20, 20, border="shift", dilation=3)), 500, 500),
    "strided": (Mask.neighborhood(64, stride=16), 512, 512),
    "wrap": (Mask(Axis(30, 20, border="wrap")), 400, 400),
    "sinks": (Mask(Axis(50, causal=True, prefix=4)), 400, 400),
    "rows outside": (Mask(Axis(20, 10, offset=-50, align="top-left")), 300, 200),
    "tall, rows outside": (Mask(Axis(150, 0, offset=-20, align="top-left")), 1000, 100),
    "ragged blocks": (Mask(Axis(63, causal=True, stride=64, align="top-left")), 610, 704),
}
Inputs = dict[str, Tensor]


def inputs(
    queries: int, keys: int, dtype: torch.dtype, *, dim: int = 64, value: int = 64
) -> Inputs:
    torch.manual_seed(0)
    made = {
        "query": torch.randn(2, queries, 4, dim, device=DEVICE, dtype=dtype),
        "key": torch.randn(2, keys, 2, dim, device=DEVICE, dtype=dtype),
        "value": torch.randn(2, keys, 2, value, device=DEVICE, dtype=dtype),
    }
    return {name: t.requires_grad_() for name, t in made.items()}


def results(mask: Mask, made: Inputs, **named: Any) -> list[Tensor]:
    """Output and gradients."""
    out = nbattn.attention(**made, mask=mask, **named)
    upward = torch.ones_like(out).cumsum(1).sin()
    return [out, *torch.autograd.grad(out, list(made.values()), upward)]


def judge(found: list[Tensor], low: list[Tensor], exact: list[Tensor]) -> None:
    """At most twice the error of the reference in the same dtype, and a last digit."""
    for one, other, true in zip(found, low, exact, strict=True):
        error = (one.double() - true).abs().max()
        known = (other.double() - true).abs().max()
        assert error <= 2 * known + 4 * torch.finfo(one.dtype).eps * true.abs().max()


@pytest.mark.parametrize("sizes", [(64, 64), (40, 40), (128, 64), (96, 128)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label", MASKS)
def test_flash_values_and_gradients(
    provider: str, label: str, dtype: torch.dtype, sizes: tuple[int, int], cases: Count
) -> None:
    mask, queries, keys = MASKS[label]
    made = inputs(queries, keys, dtype, dim=sizes[0], value=sizes[1])
    double = {name: t.detach().double().requires_grad_() for name, t in made.items()}
    low = results(mask, made, backend="reference")
    exact = results(mask, double, backend="reference")
    taken = 0
    for strategy in STRATEGIES:
        try:
            found = results(mask, made, backend=f"flash:{provider}", require=(strategy,))
        except BackendError:
            continue
        judge(found, low, exact)
        taken += 1
        cases(f"gpu, {provider} {strategy}", 1)
    assert taken


def test_sinks_and_extra_keys(provider: str) -> None:
    mask, queries, keys = MASKS["window"]
    made = inputs(queries, keys, torch.bfloat16)
    made["sink"] = torch.randn(4, device=DEVICE).requires_grad_()
    for name in ("extra_key", "extra_value"):
        made[name] = torch.randn(2, 3, 2, 64, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    double = {name: t.detach().double().requires_grad_() for name, t in made.items()}
    judge(
        results(mask, made, backend=f"flash:{provider}"),
        results(mask, made, backend="reference"),
        results(mask, double, backend="reference"),
    )


def test_key_range_leaves_the_keys_that_it_says(provider: str, cases: Count) -> None:
    """What lies outside is NaN; samples without keys give zeros."""
    if not PROVIDERS[provider].limits.key_range:
        pytest.skip(f"{provider} has no key_range")
    made = inputs(300, 555, torch.bfloat16)
    for ranges in (((0, 400), (100, 555)), ((7, 7), (130, 131)), ((555, 0), (-9, 600))):
        key_range = torch.tensor(ranges, dtype=torch.int32, device=DEVICE)[:, None]
        at = torch.arange(555, device=DEVICE)
        outside = (at < key_range[:, :, 0]) | (at >= key_range[:, :, 1])
        with torch.no_grad():
            for side in ("key", "value"):
                made[side][outside] = float("nan")
        double = {name: t.detach().double().requires_grad_() for name, t in made.items()}
        named = {"key_range": key_range}
        judge(
            results(Mask.full(), made, backend=f"flash:{provider}", **named),
            results(Mask.full(), made, backend="reference", **named),
            results(Mask.full(), double, backend="reference", **named),
        )
        with torch.no_grad():
            for side in ("key", "value"):
                made[side].copy_(torch.randn_like(made[side]))
        cases(f"gpu, {provider} key-range", 1)


# ALiBi

SLOPE = 2.0**-6  # of rows up to 200 keys, float16 weights show every distance


def distances(call: FlashArguments, rows: int, keys: int) -> Iterator[Tensor]:
    """What a slope was multiplied with, from the weights and logsumexps of zero queries: in the
    forward, and in the backward by the gradients of the values; inf where no key was read.
    """
    query, key = (
        torch.zeros(2, count, 1, WIDTH, dtype=torch.float16, device=DEVICE)
        for count in (rows, keys)
    )
    kernels = Kernels(slopes=torch.full((1,), SLOPE, device=DEVICE))
    shown: list[Tensor] = []
    lse = out = None
    for first in range(0, keys, WIDTH):
        out, lse = kernels.forward(call, (query, key, one_hot(keys, first)), 1.0, None)
        shown.append(out[0, :, 0, : keys - first])
    assert lse is not None
    assert out is not None
    of_rows = lse[0, :, 0, None].cpu()
    yield (-(torch.cat(shown, -1).float().cpu().log() + of_rows) / SLOPE).round()
    if not PROVIDERS[call.provider].backward_slopes:
        return
    shown = []
    for first in range(0, rows, WIDTH):
        known = RowTensors(torch.zeros_like(out), lse, one_hot(rows, first), None)
        grads = kernels.backward(call, (query, key, torch.zeros_like(key)), known, 1.0, None)
        shown.append(grads[2][0, :, 0, : rows - first])
    yield (-(torch.cat(shown, -1).float().cpu().log().T + of_rows) / SLOPE).round()


@pytest.mark.parametrize("shape", [s for s in SHAPES if max(s) <= 200], ids=str)
def test_slopes_are_multiplied_with_the_distances_of_the_model(
    provider: str, shape: tuple[int, int], cases: Count
) -> None:
    if not PROVIDERS[provider].limits.alibi_slopes:
        pytest.skip(f"{provider} has no slopes")
    rows, keys = shape
    for (left, right, causal), entry in product(windows(provider, rows, keys), ("dense", "varlen")):
        most = (max(rows, 2), max(rows, keys)) if entry == "varlen" else (None, None)
        window = WindowArguments(left, right, causal, *most, slopes=True)
        call = FlashArguments(provider, entry, window)
        allowed = torch.from_numpy(call.allowed((rows,), (keys,)))
        wanted = torch.from_numpy(call.distances(rows, keys)).float()
        wanted = wanted.masked_fill(~allowed, float("inf"))
        for found in distances(call, rows, keys):
            some = allowed.any(1)
            assert torch.equal(found[some], wanted[some]), call
            cases(f"gpu, {provider} slopes", 1)


@pytest.mark.parametrize("label", ["window", "two sides", "causal, wide"])
def test_slopes_of_every_sample(provider: str, label: str, cases: Count) -> None:
    if not PROVIDERS[provider].limits.alibi_slopes:
        pytest.skip(f"{provider} has no slopes")
    mask, queries, keys = MASKS[label]
    made = inputs(queries, keys, torch.bfloat16)
    slopes = torch.tensor([[0.5, 0.25, 0.125, 0.0625], [0.0, 1.0, 0.03, 0.004]], device=DEVICE)
    if not PROVIDERS[provider].backward_slopes:
        made = {name: t.detach() for name, t in made.items()}
    double = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in made.items()}
    taken = 0
    for strategy in STRATEGIES:
        try:
            found = _with_slopes(
                mask, made, slopes, backend=f"flash:{provider}", require=(strategy,)
            )
        except BackendError:
            continue
        low = _with_slopes(mask, made, slopes, backend="reference")
        judge(found, low, _with_slopes(mask, double, slopes, backend="reference"))
        taken += 1
        cases(f"gpu, {provider} slopes, {strategy}", 1)
    assert taken


def _with_slopes(mask: Mask, made: Inputs, slopes: Tensor, **named: Any) -> list[Tensor]:
    """Output, logsumexp, and gradients if inputs have them."""
    out, lse = nbattn.attention(**made, mask=mask, alibi_slopes=slopes, return_lse=True, **named)
    if not out.requires_grad:
        return [out, lse]
    upward = torch.ones_like(out).cumsum(1).sin()
    return [out, lse, *torch.autograd.grad(out, list(made.values()), upward)]


def test_no_rows_are_copied(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three calls of a shifted window write into one output."""
    mask, queries, keys = MASKS["shift"]
    made = {name: t.detach() for name, t in inputs(queries, keys, torch.bfloat16).items()}
    parts: list[Tensor | None] = []
    place = calls._place
    monkeypatch.setattr(calls, "_place", lambda *given: (parts.append(given[3]), place(*given)))
    found = nbattn.attention(**made, mask=mask, backend=f"flash:{provider}")
    assert parts == [None] * 3
    double = {name: t.double() for name, t in made.items()}
    judge(
        [found],
        [nbattn.attention(**made, mask=mask, backend="reference")],
        [nbattn.attention(**double, mask=mask, backend="reference")],
    )


@pytest.mark.parametrize("label", ["causal, tall", "shift", "wrap"])
def test_a_cuda_graph_replays_flash(provider: str, label: str) -> None:
    mask, queries, keys = MASKS[label]
    made = {name: t.detach() for name, t in inputs(queries, keys, torch.bfloat16).items()}

    def run() -> Tensor:
        return nbattn.attention(**made, mask=mask, backend=f"flash:{provider}")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    for t in made.values():
        t.copy_(torch.randn_like(t))
    graph.replay()
    assert torch.equal(out, run())


def test_another_stream_and_device(provider: str) -> None:
    mask, queries, keys = MASKS["shift"]
    made = {name: t.detach() for name, t in inputs(queries, keys, torch.bfloat16).items()}
    here = nbattn.attention(**made, mask=mask, backend=f"flash:{provider}")
    with torch.cuda.stream(torch.cuda.Stream()) as _:
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        there = nbattn.attention(**made, mask=mask, backend=f"flash:{provider}")
        torch.cuda.current_stream().synchronize()
    assert torch.equal(here, there)
    for number in range(1, torch.cuda.device_count()):
        other = {name: t.to(f"cuda:{number}") for name, t in made.items()}
        away = nbattn.attention(**other, mask=mask, backend=f"flash:{provider}")
        assert torch.equal(away.cpu(), here.cpu())


def test_the_planner_knows_the_packages_of_this_machine() -> None:
    info = devices.device_info(torch.device("cuda"))
    assert set(info.providers) == set(families.installed("cuda"))
