"""Tests of the CUDA kernels on a GPU: supports, values, gradients, graphs, streams and devices.

`PYTHONPATH=. python -m pytest tests/gpu` runs it without installing anything. What is compared, and
how, is in `gpu_problems`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import dense_attention
import gpu_problems
import judged_values
import oracle
import pytest
import small_attention
import torch
from gpu_problems import (
    DEVICE,
    FAMILIES,
    FEW_FAMILIES,
    HALVES,
    PROBLEMS,
    guarded,
    needs_hopper,
    random,
    results,
)
from judged_values import Feature, Shape
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import nbattn
from nbattn import BackendError, Mask
from nbattn.kernels import launch

Count = Callable[[str, int], None]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing())),
]
FAR = (1 << 31) // (16 * 64) + 4096  # rows of more than 2^31 elements, of 16 heads of 64
ROOT = Path(__file__).parents[2]
SANITIZER_SECONDS, CHILD_SECONDS = 300, 120
TIMES = 50  # runs with the same bits
judge = partial(gpu_problems.judge, backend="cuda")
ours = partial(gpu_problems.ours, backend="cuda")


@pytest.mark.parametrize(("dtype", "name"), FAMILIES)
@pytest.mark.parametrize("label", PROBLEMS)
def test_the_support_is_the_mask(label: str, dtype: torch.dtype, name: str, cases: Count) -> None:
    problem = PROBLEMS[label]
    allowed = torch.from_numpy(oracle.matrix(problem[0].axes, *problem[1:])).to(DEVICE)
    for found in gpu_problems.supports(problem, dtype, "cuda", require=(name,)):
        assert torch.equal(found, allowed)
    cases("gpu, cuda supports", 4)


@pytest.mark.parametrize(("dtype", "name"), FAMILIES)
@pytest.mark.parametrize("label", PROBLEMS)
def test_cuda_values_and_gradients(label: str, dtype: torch.dtype, name: str, cases: Count) -> None:
    problem = PROBLEMS[label]
    judge(problem, random(problem, dtype), require=(name,))
    cases("gpu, cuda values", 1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "dims", [(16, 16), (24, 40), (32, 32), (72, 72), (96, 128), (128, 128), (192, 64), (256, 256)],
    ids=str,
)  # fmt: skip
def test_head_dims_of_tensor_cores(dims: tuple[int, int], dtype: torch.dtype) -> None:
    for label in ("1-D dilated, remainder", "2-D"):
        judge(PROBLEMS[label], random(PROBLEMS[label], dtype, dims), require=("mma",))


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dims", [(8, 8), (5, 7), (80, 33), (300, 300)], ids=str)
def test_head_dims_without_tensor_cores(dims: tuple[int, int], dtype: torch.dtype) -> None:
    judge(PROBLEMS["2-D"], random(PROBLEMS["2-D"], dtype, dims), require=("simt",))


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
    """Packed projections, heads first, features first, odd offsets: read where they lie."""
    problem = PROBLEMS["2-D"]
    made = random(problem, dtype, heads=2, kv_heads=2)
    attend = ours(problem[0], require=("mma",))  # "wgmma": test_warpgroups.py
    expected = results(attend, made)
    packed = torch.stack([t.detach() for t in made.values()], -3)
    odd = torch.zeros(packed.numel() + 1, dtype=dtype, device=DEVICE)[1:].view(packed.shape)
    odd.copy_(packed)
    firsts = [t.detach().movedim(-2, 1).contiguous().movedim(1, -2) for t in made.values()]
    features = [t.detach().mT.contiguous().mT for t in made.values()]
    for views in (packed.unbind(-3), odd.unbind(-3), firsts, features):
        leaves = [t.detach().requires_grad_() for t in views]
        found = results(attend, dict(zip(made, leaves, strict=True)))
        assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(("dtype", "name"), FEW_FAMILIES)
def test_fifty_times_the_same_bits(dtype: torch.dtype, name: str) -> None:
    made, attend = random(PROBLEMS["2-D"], dtype), ours(PROBLEMS["2-D"][0], require=(name,))
    first = results(attend, made)
    for _ in range(TIMES):
        assert all(map(torch.equal, results(attend, made), first))


@pytest.mark.parametrize(("dtype", "name"), FEW_FAMILIES)
def test_a_cuda_graph_replays_both_passes(dtype: torch.dtype, name: str) -> None:
    mask, route = PROBLEMS["2-D"][0], {"backend": "cuda", "require": (name,)}
    made = {n: t.detach() for n, t in random(PROBLEMS["2-D"], dtype).items()}
    plan = nbattn.plan(
        mask, made["query"].shape, made["key"].shape, dtype=str(dtype)[6:], device=DEVICE,
        training=True, **route,
    )  # fmt: skip
    plan.warmup()

    def run() -> list[Tensor]:
        leaves = {n: t.detach().requires_grad_() for n, t in made.items()}
        out = nbattn.attention(**leaves, mask=mask, **route)
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


def child(script: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """A process of its own; an environment variable of None is absent there."""
    given = {**os.environ, "PYTHONPATH": f"{ROOT}:{Path(small_attention.__file__).parent}"}
    known = {n: value for n, value in {**given, **environment}.items() if value is not None}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=CHILD_SECONDS)


FIRST_BACKWARD = """
import torch, small_attention, nbattn
shape = (1, *small_attention.SPACE, 2, 64)
nbattn.plan(small_attention.MASK, shape, device="cuda", backend="cuda", training=True).warmup()
leaves = [torch.randn(shape, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in "qkv"]

def run():
    out = nbattn.attention(*leaves, small_attention.MASK, backend="cuda")
    return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    captured = run()
graph.replay()
torch.cuda.synchronize()
print(all(map(torch.equal, captured, run())))
"""


def test_the_first_backward_of_a_process_in_a_graph() -> None:
    """Autograd's thread launches for the first time while the capture forbids calls "globally"."""
    done = child(FIRST_BACKWARD)
    assert done.stdout == "True\n", done.stderr[-3000:]


DETERMINISTIC = """
import torch, small_attention
torch.use_deterministic_algorithms(True)
for family in small_attention.DTYPES:
    first, again = (small_attention.attend(family, "cuda") for _ in range(2))
    print(all(map(torch.equal, first, again)))
"""


def test_without_cublas_workspace() -> None:
    """The kernels call no cuBLAS, which torch 2.8 and 2.9 refuse without the variable."""
    done = child(DETERMINISTIC, CUBLAS_WORKSPACE_CONFIG=None)
    assert done.stdout == "True\nTrue\n", done.stderr[-3000:]


def test_error_of_a_kernel_not_loaded_before_a_capture() -> None:
    query = torch.randn(
        1, 40, 1, 248, device=DEVICE, dtype=torch.float16
    )  # a size of no other test
    graph, mask = torch.cuda.CUDAGraph(), Mask.sliding_window(7)
    with torch.cuda.graph(graph):
        doubled = query * 2
        with pytest.raises(BackendError, match=r"warmup\(\)"):
            nbattn.attention(query, query, query, mask, backend="cuda")
    graph.replay()
    assert torch.equal(doubled, query * 2)


@pytest.mark.parametrize(("dtype", "name"), FEW_FAMILIES)
def test_other_streams_and_devices(dtype: torch.dtype, name: str) -> None:
    attend = partial(
        nbattn.attention, mask=PROBLEMS["2-D"][0], backend="cuda", require=(name,)
    )  # fmt: skip
    made = {n: t.detach() for n, t in random(PROBLEMS["2-D"], dtype).items()}
    here = attend(**made)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        there = attend(**made)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(here, there)
    for number in range(1, torch.cuda.device_count()):
        away = {n: t.to(f"cuda:{number}") for n, t in made.items()}
        assert torch.equal(attend(**away).cpu(), here.cpu())


@pytest.mark.parametrize(("dtype", "name"), FEW_FAMILIES)
def test_offsets_beyond_two_to_the_31(dtype: torch.dtype, name: str) -> None:
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
    found = judged_values.run(mask, made, [upward, unused], feature, "cuda", require=(name,))
    rows = tail + window  # the first of them lack keys or readers and are not compared
    last = {name: t[:, -rows:].clone() for name, t in made.items()}
    grads = [upward[:, -rows:].clone(), unused]
    found = {name: t[:, -tail:].clone() for name, t in found.items()}
    del query, key, value, upward, made
    exact = judged_values.by_definition((mask, (rows,), (rows,)), last, grads, feature)
    low = judged_values.best_in_dtype((mask, (rows,), (rows,)), last, grads, feature, "cuda")
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
        return nbattn.attention(query, key, value, mask, backend="cuda")

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


@pytest.mark.parametrize("family", ["mma", "simt", pytest.param("wgmma", marks=needs_hopper)])
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_the_sanitizer_finds_nothing(tool: str, family: str) -> None:
    """Both passes of one small problem. Without torch's cache every tensor is an allocation of its
    own, whose end the tool sees.
    """
    program = shutil.which("compute-sanitizer")
    if program is None:
        pytest.skip("compute-sanitizer is not installed")
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "99", sys.executable,
         small_attention.__file__, family],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=SANITIZER_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert f"{family}: forward and backward ran" in done.stdout
