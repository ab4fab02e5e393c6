"""Tests of the Triton kernels on a GPU: supports, values, gradients, what is compiled, graphs.

`PYTHONPATH=. python -m pytest tests/gpu/test_triton.py` runs it without installing anything. What
is compared, and how, is in `gpu_problems`; tables, slopes and packed grids in
`test_added_scores.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dense_attention
import gpu_problems
import judged_values
import oracle
import pytest
import small_attention
import torch
from gpu_problems import DEVICE, PROBLEMS, guarded, random, results
from judged_values import Feature, Shape
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import nbattn
from nbattn import Mask, bench, tune
from nbattn.backends.triton import launch, measured_tiles
from nbattn.kernels import launch as cuda_launch

Count = Callable[[str, int], None]
Compiled = list[bool]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing())),
]
FAR = (1 << 31) // (16 * 64) + 4096  # rows of more than 2^31 elements, of 16 heads of 64
ROOT = Path(__file__).parents[2]
SANITIZER_SECONDS, CHILD_SECONDS = 300, 240
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (*HALVES, torch.float32, torch.float64)
hood = Mask.neighborhood
judge = partial(gpu_problems.judge, backend="triton")
ours = partial(gpu_problems.ours, backend="triton")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """One entry for each kernel that is new in this process: whether Triton's cache had it."""
    knobs = pytest.importorskip("triton").knobs.compilation
    found: Compiled = []
    monkeypatch.setattr(knobs, "listener", lambda *, cache_hit, **_: found.append(cache_hit))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", PROBLEMS)
def test_the_support_is_the_mask(label: str, dtype: torch.dtype, cases: Count) -> None:
    problem = PROBLEMS[label]
    allowed = torch.from_numpy(oracle.matrix(problem[0].axes, *problem[1:])).to(DEVICE)
    for found in gpu_problems.supports(problem, dtype, "triton"):
        assert torch.equal(found, allowed)
    cases("gpu, triton supports", 4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", PROBLEMS)
def test_triton_values_and_gradients(label: str, dtype: torch.dtype, cases: Count) -> None:
    problem = PROBLEMS[label]
    judge(problem, random(problem, dtype))
    cases("gpu, triton values", 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "dims", [(8, 8), (5, 7), (16, 16), (24, 40), (80, 33), (96, 128), (192, 64), (256, 256)],
    ids=str,
)  # fmt: skip
def test_head_dims(dims: tuple[int, int], dtype: torch.dtype) -> None:
    for label in ("1-D dilated, remainder", "2-D"):
        judge(PROBLEMS[label], random(PROBLEMS[label], dtype, dims))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("label", ["1-D wrap", "2-D", "2-D cross", "3-D video", "1-D sinks"])
@pytest.mark.parametrize("extra", [0, 1, 70])
def test_everything_at_once(label: str, extra: int, dtype: torch.dtype) -> None:
    """Softcap, sink, key_range, extra keys, a scale, grouped heads."""
    problem = PROBLEMS[label]
    made = random(problem, dtype, heads=6, kv_heads=2)
    made["sink"] = torch.randn(6, device=DEVICE).requires_grad_()
    if extra:
        for name in ("extra_key", "extra_value"):
            made[name] = guarded(torch.randn(2, extra, 2, 64).to(dtype)).requires_grad_()
    ranges = [[[0, n] for n in problem[2]], [[n // 3, max(n // 3, n - 2)] for n in problem[2]]]
    made["key_range"] = torch.tensor(ranges, dtype=torch.int32, device=DEVICE)
    outside = ~dense_attention.inside(made["key_range"], problem[2]).reshape(2, *problem[2])
    with torch.no_grad():
        made["key"][outside] = made["value"][outside] = float("nan")
    judge(problem, made, softcap=3.0, scale=0.2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_strides_of_every_kind(dtype: torch.dtype) -> None:
    """Packed projections, heads first, features first, odd offsets: read where they lie. Other
    steps of strides are other kernels, which may sum in another order.
    """
    problem = PROBLEMS["2-D"]
    made = random(problem, dtype, heads=2, kv_heads=2)
    packed = torch.stack([t.detach() for t in made.values()], -3)
    odd = torch.zeros(packed.numel() + 1, dtype=dtype, device=DEVICE)[1:].view(packed.shape)
    odd.copy_(packed)
    firsts = [t.detach().movedim(-2, 1).contiguous().movedim(1, -2) for t in made.values()]
    features = [t.detach().mT.contiguous().mT for t in made.values()]
    for views in (packed.unbind(-3), odd.unbind(-3), firsts, features):
        leaves = [t.detach().requires_grad_() for t in views]
        judge(problem, dict(zip(made, leaves, strict=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_fifty_times_the_same_bits(dtype: torch.dtype) -> None:
    made = random(PROBLEMS["2-D"], dtype)
    first = results(ours(PROBLEMS["2-D"][0]), made)
    for _ in range(50):
        assert all(map(torch.equal, results(ours(PROBLEMS["2-D"][0]), made), first))


def test_tf32_only_where_torch_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """True float32 by default; with the switch the products lose digits."""
    problem = PROBLEMS["2-D"]
    made = random(problem, torch.float32)
    exact = results(ours(problem[0]), made)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    rounded = results(ours(problem[0]), made)
    error = float((rounded[0] - exact[0]).norm() / exact[0].norm())
    assert 1e-6 < error < 1e-2


@pytest.mark.skipif(cuda_launch.missing() is not None, reason=str(cuda_launch.missing()))
@pytest.mark.parametrize(
    ("mask", "space"),
    [
        (hood((33, 33)), (128, 128)),
        (hood((9, 9), dilation=6), (120, 128)),
        (hood((3, 9, 9)), (12, 40, 48)),
        (hood(1024), (16384,)),
    ],
    ids=["2-D", "2-D dilated", "3-D", "1-D"],
)
def test_both_families_agree_where_no_matrix_fits(mask: Mask, space: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    shape = (1, *space, 4, 128)
    leaves = [
        torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).requires_grad_() for _ in "qkv"
    ]
    made = dict(zip(("query", "key", "value"), leaves, strict=True))
    found = results(ours(mask), made)
    expected = results(gpu_problems.ours(mask, "cuda"), made)
    assert bench.disagreement(found, expected) <= bench.TOLERANCE["bfloat16"]


def test_a_second_run_compiles_nothing(compiled: Compiled) -> None:
    """Sizes of no other test."""
    mask = hood((7, 7))
    shape = (2, 26, 30, 4, 40)
    leaves = [torch.randn(shape, device=DEVICE).half().requires_grad_() for _ in "qkv"]
    made = dict(zip(("query", "key", "value"), leaves, strict=True))
    results(ours(mask), made)
    assert len(compiled) == 4, "forward, delta, and the gradients of queries and of keys"
    results(ours(mask), made)
    assert len(compiled) == 4


def test_lengths_and_windows_compile_nothing_new(compiled: Compiled) -> None:
    """Only another tile does, or another form of the mask: no call tries several tiles."""
    masks = (hood(255), hood(301), hood(127, dilation=3), hood(256, stride=32))
    tiles = {name: set[object]() for name in measured_tiles.FIELDS.values()}
    for mask, length in itertools.product(masks, (4096, 4097, 5000, 6001, 8192)):
        made = random((mask, (length,), (length,)), torch.float16)
        results(ours(mask), made)
        plan = nbattn.plan(
            mask, made["query"].shape, made["key"].shape, dtype=torch.float16, device=DEVICE,
            backend="triton", training=True,
        )  # fmt: skip
        assert plan.chosen.program is not None
        arguments: Any = plan.chosen.program.calls[0].arguments
        for name, used in tiles.items():
            used |= {getattr(arguments, name)} - {None}
    assert len(compiled) <= 1 + sum(map(len, tiles.values())), tiles


def test_warmup_compiles_what_both_passes_launch(compiled: Compiled) -> None:
    mask, shape = hood((5, 5)), (1, 24, 28, 2, 48)
    plan = nbattn.plan(
        mask, shape, dtype=torch.bfloat16, device=DEVICE, backend="triton", training=True
    )
    plan.warmup()
    assert len(compiled) == 4
    leaves = [torch.randn(shape, device=DEVICE).bfloat16().requires_grad_() for _ in "qkv"]
    out = nbattn.attention(*leaves, mask, backend="triton")
    torch.autograd.grad(out.sum(), leaves)
    assert len(compiled) == 4


def child(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    path = f"{ROOT}:{Path(small_attention.__file__).parent}"
    known = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=CHILD_SECONDS)


COUNTED = """
import json, small_attention, triton
found = []
triton.knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
small_attention.attend("triton", "cuda")
print(json.dumps(found))
"""


def test_a_second_process_takes_kernels_from_the_cache(tmp_path: Path) -> None:
    runs = [child(COUNTED, TRITON_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    first, second = (json.loads(run.stdout or run.stderr[-3000:]) for run in runs)
    assert first == [False] * 4
    assert second == [True] * 4


def test_a_cuda_graph_replays_both_passes() -> None:
    mask = PROBLEMS["2-D"][0]
    made = {n: t.detach() for n, t in random(PROBLEMS["2-D"], torch.bfloat16).items()}

    def run() -> list[Tensor]:
        leaves = {n: t.detach().requires_grad_() for n, t in made.items()}
        out = nbattn.attention(**leaves, mask=mask, backend="triton")
        return [out, *torch.autograd.grad(out.sum(), list(leaves.values()))]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for t in made.values():
        t.copy_(torch.randn_like(t))
    graph.replay()
    assert all(map(torch.equal, captured, run()))


def test_other_streams_and_devices() -> None:
    mask = PROBLEMS["2-D"][0]
    made = {n: t.detach() for n, t in random(PROBLEMS["2-D"], torch.bfloat16).items()}
    here = nbattn.attention(**made, mask=mask, backend="triton")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        there = nbattn.attention(**made, mask=mask, backend="triton")
        torch.cuda.current_stream().synchronize()
    assert torch.equal(here, there)
    for number in range(1, torch.cuda.device_count()):
        away = {n: t.to(f"cuda:{number}") for n, t in made.items()}
        assert torch.equal(nbattn.attention(**away, mask=mask, backend="triton").cpu(), here.cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_offsets_beyond_two_to_the_31(dtype: torch.dtype) -> None:
    """The last rows of tensors of more than 2^31 elements, against float64 on those rows alone."""
    heads, dim, window, tail = 16, 64, 63, 256
    if torch.cuda.mem_get_info()[0] < 9 * FAR * heads * dim * dtype.itemsize:
        pytest.skip("the device has too little free memory")
    mask, feature = Mask.sliding_window(window), Feature(Shape(1, heads, heads, dim, dim))
    torch.manual_seed(0)
    query, key, value, upward = (
        torch.randn(1, FAR, heads, dim, device=DEVICE, dtype=dtype) for _ in range(4)
    )
    made = {"query": query, "key": key, "value": value}
    unused = torch.zeros((), device=DEVICE)
    found = judged_values.run(mask, made, [upward, unused], feature, "triton")
    rows = tail + window  # the first of them lack keys or readers and are not compared
    last = {name: t[:, -rows:].clone() for name, t in made.items()}
    grads = [upward[:, -rows:].clone(), unused]
    found = {name: t[:, -tail:].clone() for name, t in found.items()}
    del query, key, value, upward, made
    exact = judged_values.by_definition((mask, (rows,), (rows,)), last, grads, feature)
    low = judged_values.best_in_dtype((mask, (rows,), (rows,)), last, grads, feature, "triton")
    judged_values.judge(
        found,
        {name: t[:, -tail:] for name, t in low.items()},
        {name: t if name == "terms" else t[:, -tail:] for name, t in exact.items()},
        dtype,
        judged_values.last_digit(last, feature),
    )


def test_compiled_checkpointed_and_under_autocast() -> None:
    mask = PROBLEMS["2-D"][0]
    made = random(PROBLEMS["2-D"], torch.float32)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nbattn.attention(query, key, value, mask, backend="triton")

    plain = attend(*made.values())
    compiled = torch.compile(attend, fullgraph=True)(*made.values())
    assert torch.equal(compiled, plain)
    plain_gradients = torch.autograd.grad(plain.sum(), list(made.values()))
    again = checkpoint(attend, *made.values(), use_reentrant=False)
    for one, other in zip(
        torch.autograd.grad(again.sum(), list(made.values())), plain_gradients, strict=True
    ):
        assert torch.equal(one, other)
    with torch.autocast("cuda", torch.bfloat16):
        half = attend(*made.values())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, attend(*(t.bfloat16() for t in made.values())))


def test_tiles_of_every_kernel_are_measured() -> None:
    """As `nbattn tune` does; a tile that computes something else would have no time."""
    plan = nbattn.plan(
        hood((7, 7)), (1, 32, 32, 2, 64), dtype=torch.bfloat16, device=DEVICE, training=True,
        relative_bias=True, extra_keys=3, backend="triton",
    )  # fmt: skip
    found = tune.tiles(plan, effort=bench.Effort(rounds=1, seconds=2.0))
    for kernel in measured_tiles.FIELDS:
        measured = [name for name in found if name.startswith(f"{kernel} ")]
        assert len(measured) > (kernel != "dextra"), "few extra keys have one tile"
    assert all(0 < seconds < 1 for seconds in found.values())


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_the_sanitizer_finds_nothing(tool: str) -> None:
    """Both passes of one small problem. Without torch's cache every tensor is an allocation of its
    own, whose end the tool sees.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "99", sys.executable,
         small_attention.__file__, "triton"],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=SANITIZER_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "triton: forward and backward ran" in done.stdout
