"""Tests of the CUDA kernels of warpgroups on a GPU: all that they take and refuse, and tensor maps
under changing addresses, streams and graphs. Masks are tried in `test_kernels.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gpu_problems
import judged_values
import pytest
import torch
from gpu_problems import DEVICE, HALVES, PROBLEMS, guarded, needs_hopper, ours, random, results
from judged_values import FEATURES, MASKS, Feature
from torch import Tensor

import nbattn
from nbattn import BackendError, Mask, tune
from nbattn.backends.cuda.group_limits import SIZES
from nbattn.bench import TOLERANCE, Effort, disagreement
from nbattn.kernels import launch, tensor_maps

Count = Callable[[str, int], None]
pytestmark = [
    pytest.mark.gpu,
    needs_hopper,
    pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing())),
]
SIDE = 112  # of a grid that fills a GPU several times
TIMES = 20  # runs with the same bits
EFFORT = Effort(rounds=1, seconds=2.0)
ROUTE: dict[str, Any] = {"backend": "cuda", "require": ("wgmma",)}
judge = partial(gpu_problems.judge, backend="cuda", require=("wgmma",))
attend = partial(nbattn.attention, **ROUTE)
TAKEN = [name for name, f in FEATURES.items() if not (f.key_range or f.table or f.slopes)]
Made = dict[str, Tensor]


def on_device(made: Made) -> Made:
    return {name: tensor.to(DEVICE) for name, tensor in made.items()}


def both_passes(mask: Mask, made: Made, **route: Any) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    leaves = [t.detach().requires_grad_() for t in made.values()]
    out = nbattn.attention(*leaves, mask, **(route or ROUTE))
    return [out.detach(), *torch.autograd.grad(out, leaves, out.detach().sin())]


def plain(dtype: torch.dtype = torch.bfloat16, label: str = "2-D") -> tuple[Mask, Made]:
    made = random(PROBLEMS[label], dtype)
    return PROBLEMS[label][0], {name: t.detach() for name, t in made.items()}


# Features


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_values_of_every_feature(name: str, dtype: torch.dtype, cases: Count) -> None:
    """On two small masks each, in turn."""
    feature = FEATURES[name]
    value_dim = 64 if feature.shape.value_dim == feature.shape.dim else 80
    feature = feature._replace(shape=feature.shape._replace(dim=64, value_dim=value_dim))
    labels = list(MASKS)
    for number in (TAKEN.index(name), TAKEN.index(name) + len(TAKEN)):
        place = MASKS[labels[number * 5 % len(labels)]]
        made = on_device(judged_values.tensors(place, feature, dtype))
        grads = [t.to(DEVICE) for t in judged_values.upstream(place, feature.shape, dtype)]
        judged_values.judge(
            judged_values.run(place[0], made, grads, feature, **ROUTE),
            judged_values.best_in_dtype(place, made, grads, feature, "cuda"),
            judged_values.by_definition(place, made, grads, feature),
            dtype,
            judged_values.last_digit(made, feature),
        )
        cases("gpu, wgmma features", 1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dims", [(64, 80), (80, 64), (96, 96), (128, 128), (128, 96)], ids=str)
def test_head_dims_with_gradients(dims: tuple[int, int], dtype: torch.dtype) -> None:
    for label in ("1-D dilated, remainder", "2-D"):
        judge(PROBLEMS[label], random(PROBLEMS[label], dtype, dims))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("dims", [(192, 64), (128, 256), (256, 256)], ids=str)
def test_head_dims_of_the_forward(dims: tuple[int, int], dtype: torch.dtype) -> None:
    assert max(dims) in SIZES
    mask, *place = PROBLEMS["2-D"]
    made = {n: t.detach() for n, t in random((mask, *place), dtype, dims).items()}
    feature = Feature(lse=True)
    found, lse = attend(**made, mask=mask, return_lse=True)
    low = nbattn.attention(**made, mask=mask, backend="reference", return_lse=True)
    wide = {name: tensor.double() for name, tensor in made.items()}
    exact = nbattn.attention(**wide, mask=mask, backend="reference", return_lse=True)
    named = (dict(zip(("out", "lse"), pair, strict=True)) for pair in ((found, lse), low, exact))
    ours_of, low_of, exact_of = named
    judged_values.judge(
        ours_of, low_of, exact_of | {"terms": {}}, dtype, judged_values.last_digit(made, feature)
    )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("label", ["1-D wrap", "2-D", "2-D cross", "3-D video", "1-D sinks"])
@pytest.mark.parametrize("extra", [0, 1, 70])
def test_everything_at_once(label: str, extra: int, dtype: torch.dtype) -> None:
    """Softcap, sink, extra keys, a scale, grouped heads."""
    made = random(PROBLEMS[label], dtype, heads=6, kv_heads=2)
    made["sink"] = torch.randn(6, device=DEVICE).requires_grad_()
    if extra:
        for name in ("extra_key", "extra_value"):
            made[name] = guarded(torch.randn(2, extra, 2, 64).to(dtype)).requires_grad_()
    judge(PROBLEMS[label], made, softcap=3.0, scale=0.2)


def test_what_is_refused_the_other_kernels_serve() -> None:
    """Features before heads, and keys with ranges."""
    mask, made = plain()
    expected = nbattn.attention(**made, mask=mask, backend="cuda", require=("mma",))
    moved = made | {"query": made["query"].mT.contiguous().mT}
    ranges = torch.tensor([[[0, n] for n in (28, 28)]] * 2, dtype=torch.int32, device=DEVICE)
    for given, why in (
        (moved, "strides that tensor maps"),
        (made | {"key_range": ranges}, "boxes"),
    ):
        with pytest.raises(BackendError, match=why):
            attend(**given, mask=mask)
        found = nbattn.attention(**given, mask=mask, backend="cuda")
        assert disagreement([found], [expected]) < TOLERANCE["bfloat16"]


# Layouts, addresses and tensor maps


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_layouts_that_maps_can_say(dtype: torch.dtype) -> None:
    """Packed projections and heads before tokens are read where they lie; what does not begin at a
    multiple of 16 bytes is copied.
    """
    problem = PROBLEMS["2-D"]
    made = random(problem, dtype, heads=2, kv_heads=2)
    of_mask = ours(problem[0], **ROUTE)
    expected = results(of_mask, made)
    packed = torch.stack([t.detach() for t in made.values()], -3)
    firsts = [t.detach().movedim(-2, 1).contiguous().movedim(1, -2) for t in made.values()]
    odd = torch.zeros(packed.numel() + 1, dtype=dtype, device=DEVICE)[1:].view(packed.shape)
    odd.copy_(packed)
    for views in (packed.unbind(-3), firsts, odd.unbind(-3)):
        leaves = [t.detach().requires_grad_() for t in views]
        found = results(of_mask, dict(zip(made, leaves, strict=True)))
        assert all(map(torch.equal, found, expected))


def test_the_same_numbers_at_new_addresses() -> None:
    mask, made = plain()
    expected, kept = both_passes(mask, made), []
    for _ in range(3):
        moved = {name: guarded(t.cpu()) for name, t in made.items()}
        kept.append(moved)  # so that no address comes again
        assert all(map(torch.equal, both_passes(mask, moved), expected))


def test_other_shapes_at_the_same_address() -> None:
    """The maps of what lay there before are of other sizes."""
    memory = torch.randn(3, 1 << 18, device=DEVICE).bfloat16()
    for space in ((28, 28), (9, 50), (40, 11), (28, 28)):
        count = space[0] * space[1] * 2 * 64
        views = [row[:count].view(1, *space, 2, 64) for row in memory]
        mask = Mask.neighborhood((5, 7))
        found = both_passes(mask, dict(zip(("query", "key", "value"), views, strict=True)))
        apart = {n: t.clone() for n, t in zip(("query", "key", "value"), views, strict=True)}
        assert all(map(torch.equal, both_passes(mask, apart), found))
        exact = nbattn.attention(*(t.double() for t in views), mask, backend="reference")
        assert disagreement([found[0]], [exact]) < TOLERANCE["bfloat16"]


def test_a_second_launch_encodes_no_map_and_reads_the_new_numbers() -> None:
    mask, made = plain()
    first = attend(**made, mask=mask)
    before = tensor_maps.encode.cache_info().misses
    for tensor in made.values():
        tensor.mul_(-0.5)
    second = attend(**made, mask=mask)
    assert tensor_maps.encode.cache_info().misses == before
    assert not torch.equal(first, second)
    apart = {name: tensor.clone() for name, tensor in made.items()}
    assert torch.equal(attend(**apart, mask=mask), second)


# Graphs and streams


def test_a_graph_whose_maps_are_encoded_in_the_capture() -> None:
    """Loaded kernels, tensors that no launch had before, and new numbers for the replays."""
    mask, made = plain(torch.float16)
    nbattn.plan(
        mask, made["query"].shape, made["key"].shape, dtype="float16", device=DEVICE, training=True,
        **ROUTE,
    ).warmup()  # fmt: skip
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both_passes(mask, made)
    for seed in (1, 2):
        torch.manual_seed(seed)
        for tensor in made.values():
            tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        assert all(map(torch.equal, captured, both_passes(mask, made)))


def test_one_graph_with_several_launches_of_one_kernel() -> None:
    """Every launch has its own argument, and so its own maps."""
    mask, made = plain()
    other = {name: tensor.roll(1, 0).clone() for name, tensor in made.items()}
    expected = [both_passes(mask, made), both_passes(mask, other)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [both_passes(mask, one) for one in (made, other, made)]
    graph.replay()
    for found, wanted in zip(captured, (*expected, expected[0]), strict=True):
        assert all(map(torch.equal, found, wanted))


def test_streams_at_the_same_time() -> None:
    """Each with its own tensors; the others' launches run between its own."""
    mask, made = plain(label="1-D dilated, remainder")
    inputs = [{n: (t * (1 + step)).clone() for n, t in made.items()} for step in range(4)]
    expected = [both_passes(mask, one) for one in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    found: list[list[list[Tensor]]] = [[] for _ in inputs]
    for _ in range(TIMES):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[number].append(both_passes(mask, inputs[number]))
    torch.cuda.synchronize()
    for several, wanted in zip(found, expected, strict=True):
        for one in several:
            assert all(map(torch.equal, one, wanted))


# A grid that fills a GPU


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("stride", [1, 8])
def test_large_grids_agree_with_the_kernels_of_warps(stride: int, dim: int) -> None:
    """More blocks than a GPU holds, and many visits of each; every run gives the same bits."""
    torch.manual_seed(0)
    mask = Mask.neighborhood((min(40, SIDE), min(40, SIDE)), stride=stride)
    made = {
        n: torch.randn(1, SIDE, SIDE, 4, dim).bfloat16().to(DEVICE)
        for n in ("query", "key", "value")
    }
    first = both_passes(mask, made)
    others = both_passes(mask, made, backend="cuda", require=("mma",))
    assert disagreement(first, others) < TOLERANCE["bfloat16"]
    for _ in range(TIMES):
        assert all(map(torch.equal, both_passes(mask, made), first))


def test_tiles_of_every_kernel_are_measured() -> None:
    """As `nbattn tune` does, beside those of warps; a tile whose results differ has no time."""
    mask = Mask.neighborhood((7, 7))
    plan = nbattn.plan(mask, (1, 32, 32, 2, 64), device=DEVICE, training=True, backend="cuda")
    found = tune.tiles(plan, effort=EFFORT)
    for kernel in ("fwd", "dq", "dkdv"):
        names = [name for name in found if name.startswith(f"{kernel} ")]
        assert len([name for name in names if "g" in name.split()[-1]]) > 1
        assert len([name for name in names if "w" in name.split()[-1]]) > 1
    assert all(0 < seconds < 1 for seconds in found.values())
