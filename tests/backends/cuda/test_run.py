"""Tests of the CUDA kernels as a backend of `attention()`, run by the emulator on CPU tensors: the
pairs they compute, and values and gradients against float64.

Planner, operators, backend and kernels are the ones that run on a GPU; only the device is a
stand-in, and the launcher is the emulator's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import judged_values
import pytest
import support_probes
import torch
from emulator import build
from emulator.launcher import Launcher
from judged_values import FEATURES, MASKS, Feature, Shape
from torch import Tensor
from work import lines

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.cuda import run as cuda
from nbattn.backends.cuda.meaning import CudaArguments
from nbattn.backends.cuda.tiles import Build, Tiles
from nbattn.backends.inputs import Inputs
from nbattn.geometry import bind
from nbattn.kernels import launch
from nbattn.kernels.variant import Variant
from nbattn.planner import devices, planner
from nbattn.program.device import DEVICES
from nbattn.program.limits import LARGEST, LARGEST_DILATION
from nbattn.program.program import Call, Program, whole

Count = Callable[[str, int], None]
LAUNCH = 120  # lines of Python of a forward that is prepared
HALVES = (torch.bfloat16, torch.float16)
WHOLE = (torch.float32, torch.float64)
DEVICE = replace(DEVICES["sm_90"], providers=("cupy",))
needs_emulator = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """CPU tensors are on a device with CuPy, and kernels run in the emulator."""
    launcher = Launcher()
    monkeypatch.setattr(devices, "device_info", lambda *_: DEVICE)
    monkeypatch.setattr(launch, "launcher", lambda: launcher)
    planner.forget()
    yield launcher
    planner.forget()


def family(dtype: torch.dtype) -> str:
    return "mma" if dtype in HALVES else "simt"


# Supports


def sixteens(count: int) -> int:
    """Chunks that tensor cores take."""
    return max(16, -(-count // support_probes.ITEMS // 8) * 8)


def check_supports(specimens: list[Any], dtype: torch.dtype, cases: Count) -> None:
    """Output and all three gradients, found with one-hot probes."""
    done: Counter[str] = Counter()
    for specimen in specimens:
        done.update(support_probes.check(specimen, ("cuda", (family(dtype),)), dtype))
    for what, count in done.items():
        assert count == len(specimens)
        cases(f"cuda support, {family(dtype)} {what}", count)
    assert len(done) == 4


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One-hot probes of a width that tensor cores take."""
    monkeypatch.setattr(support_probes, "chunks", sixteens)
    support_probes.one_hot.cache_clear()
    yield
    support_probes.one_hot.cache_clear()


@needs_emulator
@pytest.mark.usefixtures("emulated", "chunks")
@pytest.mark.parametrize(("dtype", "first"), [(torch.bfloat16, 0), (torch.float32, 8)], ids=str)
def test_the_kernels_compute_exactly_the_pairs_of_the_mask(
    dtype: torch.dtype, first: int, cases: Count
) -> None:
    """With tensor cores and without in turn: both share the traversal, and few share a build."""
    check_supports(support_probes.SMALL[first::24], dtype, cases)


@needs_emulator
@pytest.mark.deep
@pytest.mark.usefixtures("emulated", "chunks")
@pytest.mark.parametrize("dtype", [*HALVES, *WHOLE], ids=str)
def test_the_kernels_compute_exactly_the_pairs_of_every_mask(
    dtype: torch.dtype, cases: Count
) -> None:
    check_supports([*support_probes.SMALL, *support_probes.LARGE], dtype, cases)


# Values


def fitted(feature: Feature, dtype: torch.dtype) -> Feature:
    """A feature with head sizes that the family takes."""
    if dtype in WHOLE:
        return feature
    value_dim = 16 if feature.shape.value_dim == feature.shape.dim else 24
    return feature._replace(shape=feature.shape._replace(dim=16, value_dim=value_dim))


def check_values(
    label: str, feature: Feature, dtype: torch.dtype, masks: dict[str, Any] = MASKS
) -> None:
    try:
        judged_values.compare(
            masks[label], fitted(feature, dtype), dtype, "cuda", require=(family(dtype),)
        )
    except AssertionError as error:
        raise AssertionError(f"{label}: {error}") from error


def labels_of(name: str) -> list[str]:
    """The masks that have a feature."""
    return [label for label in MASKS if FEATURES[name].fits(*MASKS[label])]


@needs_emulator
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", FEATURES)
def test_cuda_values_of_every_feature(name: str, cases: Count) -> None:
    """Each feature on a mask, with tensor cores or without; masks and dtypes in turn."""
    number, labels = list(FEATURES).index(name), labels_of(name)
    dtype = (HALVES, WHOLE)[number % 2][number // 2 % 2]
    check_values(labels[number % len(labels)], FEATURES[name], dtype)
    cases(f"cuda values, {family(dtype)}", 1)


@needs_emulator
@pytest.mark.deep
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [*HALVES, *WHOLE], ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_values_of_every_feature_on_every_mask(name: str, dtype: torch.dtype, cases: Count) -> None:
    for label in labels_of(name):
        check_values(label, FEATURES[name], dtype)
        cases(f"cuda values, {family(dtype)}", 1)


SIZES = ((24, 40), (80, 48), (128, 128), (64, 192), (256, 256))  # 16 is that of every feature
GRID: dict[str, Any] = {
    "2-D": (Mask(Axis(2, 2, border="shift", dilation=2), Axis(3, 1)), (9, 7), (9, 7)),
    "1-D": (Mask(Axis(20, 9)), (70,), (70,)),
}


def check_sizes(sizes: tuple[int, int], dtype: torch.dtype, label: str = "2-D") -> None:
    shape = Shape(batch=1, heads=2, key_heads=1, dim=sizes[0], value_dim=sizes[1])
    route = {"require": (family(dtype),)}
    judged_values.compare(GRID[label], Feature(shape, lse=True), dtype, "cuda", **route)


@needs_emulator
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("sizes", SIZES)
def test_head_sizes(sizes: tuple[int, int], cases: Count) -> None:
    """Padded fragments, and gradients of wide heads in two launches."""
    check_sizes(sizes, HALVES[sum(sizes) // 8 % 2])
    cases("cuda head sizes", 1)


@needs_emulator
@pytest.mark.deep
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("size", range(16, 257, 8))
def test_every_head_size(size: int, cases: Count) -> None:
    for sizes in ((size, size), (size, 64), (64, size)):
        for label in GRID:
            check_sizes(sizes, torch.bfloat16, label)
            cases("cuda head sizes", 1)


@needs_emulator
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("sizes", [(1, 3), (20, 70), (130, 36), (512, 512)])
def test_head_sizes_without_tensor_cores(sizes: tuple[int, int], cases: Count) -> None:
    check_sizes(sizes, WHOLE[sum(sizes) % 4 // 2])
    cases("cuda head sizes", 1)


@needs_emulator
def test_half_precision_without_tensor_cores(emulated: Launcher) -> None:
    """By name, and where heads are of odd sizes."""
    made = [torch.randn(1, 9, 2, 12).bfloat16() for _ in range(3)]
    wanted = nbattn.attention(*made, Mask.sliding_window(2), backend="reference")
    found = nbattn.attention(*made, Mask.sliding_window(2), backend="cuda")
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    assert emulated.counts.mma == 0


# Tiles, strides, repetition


def solved(
    mask: tuple[Mask, Any, Any],
    window: CudaArguments,
    made: dict[str, Tensor],
    launcher: Any = None,
) -> dict[str, Tensor]:
    """Output and gradients of one window on tensors, by the backend alone."""
    program = Program((Call(whole(mask[1]), whole(mask[2]), window),))
    named = {n: made.get(n) for n in ("sink", "key_range", "extra_key", "extra_value")}
    inputs = Inputs(
        made["query"], made["key"], made["value"], **named,
        scale=made["query"].shape[-1] ** -0.5, softcap=None,
    )  # fmt: skip
    launcher = launcher or Launcher()
    out, lse = cuda.forward(program, inputs, return_lse=False, launcher=launcher)
    assert lse is not None
    grad = made["grad_out"]
    grads = cuda.backward(program, inputs, out, lse, grad, None, launcher=launcher)
    return {"out": out, "dquery": grads.query, "dkey": grads.key, "dvalue": grads.value}


def judged(mask: tuple[Mask, Any, Any], made: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Against the definition, as other values are."""
    feature = Feature()
    given = {name: t for name, t in made.items() if name != "grad_out"}
    grads = [made["grad_out"], torch.zeros(())]
    dtype = made["query"].dtype
    exact = judged_values.by_definition(mask, given, grads, feature)
    lowest = judged_values.best_in_dtype(mask, given, grads, feature, "tiled")
    judged_values.judge(found, lowest, exact, dtype, judged_values.last_digit(given, feature))


def drawn(
    mask: tuple[Mask, Any, Any], dtype: torch.dtype, size: int = 16, batch: int = 1
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(space: tuple[int, ...], heads: int) -> Tensor:
        shape = (batch, *space, heads, size)
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    _, queries, keys = mask
    return {
        "query": normal(queries, 2), "key": normal(keys, 1), "value": normal(keys, 1),
        "grad_out": normal(queries, 2),
    }  # fmt: skip


BIG: dict[str, tuple[tuple[Mask, Any, Any], Tiles]] = {
    "four warps of two row blocks": (
        (Mask(Axis(70, 30, align=0)), (300,), (260,)), Tiles((1, 1, 128), (1, 1, 64), 4, 2, 2),
    ),
    "three stages": (
        (Mask(Axis(100, 0)), (200,), (200,)), Tiles((1, 1, 32), (1, 1, 32), 2, 1, 3),
    ),
    "plane": (
        (Mask(Axis(5, 4, border="shift"), Axis(6, 6, border="wrap")), (20, 22), (20, 22)),
        Tiles((1, 8, 16), (1, 4, 16), 4, 2, 2),
    ),
    "volume": (
        (Mask(Axis(2, causal=True), Axis(3, 3, dilation=2), Axis(2, 1)), (5, 9, 8), (5, 9, 8)),
        Tiles((2, 8, 8), (4, 4, 4), 4, 2, 2),
    ),
    "eight warps": (
        (Mask(Axis()), (130,), (200,)), Tiles((1, 1, 128), (1, 1, 16), 8, 1, 2),
    ),
}  # fmt: skip


@needs_emulator
@pytest.mark.parametrize("name", BIG)
def test_values_of_large_tiles(name: str, cases: Count) -> None:
    """Tiles that the planner takes where there is work for a whole device."""
    mask, tiles = BIG[name]
    axes_of_mask = bind(*mask)
    two = any(bound_axis.spec.border == "wrap" for bound_axis in axes_of_mask)
    window = CudaArguments(axes_of_mask, Build("bfloat16", 16, 16, two), tiles, tiles, tiles)
    made = drawn(mask, torch.bfloat16)
    judged(mask, made, solved(mask, window, made))
    cases("cuda large tiles", 1)


@needs_emulator
@pytest.mark.parametrize("offset", [LARGEST, 3, -LARGEST])
def test_positions_of_the_largest_dilation_fit_32_bits(offset: int) -> None:
    """Those past the end of the largest tile, too: a launch checks every sum and product."""
    axis = Axis(5, 5, dilation=LARGEST_DILATION, offset=offset, align="top-left")
    mask = (Mask(axis), (3,), (3,))
    tiles = Tiles((1, 1, 128), (1, 1, 64), 4, 2, 2)
    window = CudaArguments(bind(*mask), Build("bfloat16", 16, 16), tiles, tiles, tiles)
    made = drawn(mask, torch.bfloat16)
    judged(mask, made, solved(mask, window, made, Launcher("check")))


def _frames(tensor: Tensor, hop: int, axis: int) -> Tensor:
    """Rows that overlap in memory: the next place of an axis is `hop` numbers on."""
    strides = list(tensor.stride())
    strides[axis] = hop
    return tensor.flatten().as_strided(tensor.shape, strides)


def strided(made: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same numbers in other memory, with NaN between them."""

    def spread(tensor: Tensor, order: tuple[int, ...], gaps: tuple[int, ...]) -> Tensor:
        sizes = [n * gap for n, gap in zip(tensor.shape, gaps, strict=True)]
        memory = torch.full([sizes[n] for n in order], float("nan"), dtype=tensor.dtype)
        view = memory.permute([order.index(n) for n in range(tensor.dim())])
        view = view[tuple(slice(None, None, gap) for gap in gaps)]
        return view.copy_(tensor)

    def moved(tensor: Tensor) -> Tensor:
        memory = tensor.new_full((tensor.numel() + 1,), float("nan"))
        return memory[1:].view(tensor.shape).copy_(tensor)

    heads_first, gap = (0, 3, 1, 2, 4), (1, 1, 1, 1, 1)
    yield "heads first", {n: spread(t, heads_first, gap) for n, t in made.items()}
    yield (
        "every second token",
        {n: spread(t, (0, 1, 2, 3, 4), (1, 2, 3, 1, 1)) for n, t in made.items()},
    )
    yield (
        "every second channel",
        {n: spread(t, (0, 1, 2, 3, 4), (1, 1, 1, 1, 2)) for n, t in made.items()},
    )
    yield "channels first", {n: spread(t, (4, 0, 3, 1, 2), gap) for n, t in made.items()}
    yield "two bytes later", {n: moved(t) for n, t in made.items()}
    yield (
        "packed",
        made
        | dict(
            zip(
                ("key", "value"),
                torch.cat([made["key"], made["value"]], -1).split(16, -1),
                strict=True,
            )
        ),
    )
    for name, hop, axis in (("frames", 1, 1), ("frames of 8", 8, 1), ("frames of heads", 1, -2)):
        yield name, {n: _frames(t, hop, axis) for n, t in made.items()}
    yield (
        "one gradient for all",
        made | {"grad_out": made["grad_out"][:, :1, :1].expand_as(made["grad_out"])},
    )


@needs_emulator
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_any_strides_give_the_same_bits(dtype: torch.dtype, cases: Count) -> None:
    """Tensors are read as they lie, 16 bytes at a time where they may be."""
    mask = (Mask(Axis(2, 2), Axis(3, 1, border="shift", dilation=2)), (7, 9), (7, 9))
    kind = Tiles((1, 4, 4), (1, 4, 8), 1, 1, 2) if dtype in HALVES else Tiles((1, 2, 4), (1, 4, 8))
    window = CudaArguments(bind(*mask), Build(str(dtype)[6:], 16, 16), kind, kind, kind)
    made = drawn(mask, dtype, batch=2)
    plain = solved(mask, window, made)
    for name, other in strided(made):
        found = solved(mask, window, other)
        wanted = plain
        if name.startswith(("one gradient", "frames")):  # other numbers than the plain ones
            wanted = solved(mask, window, {n: t.contiguous() for n, t in other.items()})
        for what, tensor in found.items():
            assert tensor.is_contiguous()
            assert torch.equal(tensor, wanted[what]), (name, what)
        cases("cuda strides", 1)


@needs_emulator
def test_an_axis_of_one_position_may_have_any_stride(emulated: Launcher, cases: Count) -> None:
    """No address depends on it, also where a tile is longer than the axis."""
    mask = Mask.sliding_window(9, 0, align="bottom-right")
    torch.manual_seed(0)
    query = torch.randn(2, 1, 1, 16).half()
    key, value = (torch.randn(2, 12, 1, 16).half() for _ in "kv")
    wanted = nbattn.attention(query, key, value, mask, backend="reference")
    for step in (0, 1, 19, 1 << 40):
        moved = query.as_strided(query.shape, (16, step, 16, 1)).requires_grad_()
        found = nbattn.attention(moved, key, value, mask, backend="cuda", require=("mma",))
        torch.testing.assert_close(found, wanted, rtol=4e-3, atol=4e-3)
        found.backward(torch.ones_like(found).as_strided(found.shape, (16, step, 16, 1)))
        cases("cuda strides", 1)
    assert emulated.counts.launches > 4


@needs_emulator
def test_sixteen_bytes_are_copied_only_where_they_may_be() -> None:
    """The constant of the variant follows pointers and strides."""
    mask = (Mask(Axis(2, 2), Axis(3, 1)), (7, 9), (7, 9))
    tiles = Tiles((1, 4, 4), (1, 4, 8), 1, 1, 2)
    window = CudaArguments(bind(*mask), Build("float16", 16, 16), tiles)
    made = drawn(mask, torch.float16)
    vectors: dict[str, int] = {}
    for name, other in strided(made):
        taken = Recorder()
        inputs = Inputs(other["query"], other["key"], other["value"])
        program = Program((Call(whole(mask[1]), whole(mask[2]), window),))
        _, lse = cuda.forward(program, inputs, return_lse=False, launcher=taken)
        assert lse is None
        vectors[name] = dict(taken.variants[0].constants)["NB_VECTOR"]
    assert vectors == {
        "heads first": 1, "every second token": 1, "every second channel": 0,
        "channels first": 0, "two bytes later": 0, "packed": 1, "one gradient for all": 1,
        "frames": 0, "frames of 8": 1, "frames of heads": 0,
    }  # fmt: skip


class Recorder:
    """A launcher that launches nothing."""

    def __init__(self) -> None:
        self.variants: list[Variant] = []
        self.loaded: list[Variant] = []

    def launch(self, variant: Variant, *_: Any) -> None:
        self.variants.append(variant)

    def load(self, variant: Variant) -> None:
        self.loaded.append(variant)


@needs_emulator
def test_the_order_of_blocks_and_threads_changes_no_bit(cases: Count) -> None:
    """Nothing is added by several blocks: ten random orders, and copies that land early or late."""
    mask = (Mask(Axis(20, 9, prefix=3, align="top-left")), (70,), (75,))
    tiles = Tiles((1, 1, 32), (1, 1, 32), 2, 1, 2)
    window = CudaArguments(bind(*mask), Build("bfloat16", 16, 16, True), tiles, tiles, tiles)
    made = drawn(mask, torch.bfloat16)
    plain = solved(mask, window, made)
    for launcher in (Launcher("eager"), *(Launcher("random", seed) for seed in range(1, 10))):
        for what, tensor in solved(mask, window, made, launcher).items():
            assert torch.equal(tensor, plain[what]), what
        cases("cuda repetitions", 1)


# The rest of a backend


def test_warmup_prepares_what_a_training_step_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Recorder()
    monkeypatch.setattr(launch, "launcher", lambda: taken)
    mask, shape = Mask.neighborhood((7, 7)), (2, 20, 20, 4, 192)
    plan = nbattn.plan(mask, shape, device=DEVICE, backend="cuda", training=True)
    plan.warmup()
    query = torch.zeros(shape, dtype=torch.bfloat16)
    inputs = Inputs(query, query, query, scale=1.0)
    program = plan.chosen.program
    assert program is not None
    out, lse = cuda.forward(program, inputs, return_lse=True, launcher=taken)
    assert lse is not None
    cuda.backward(program, inputs, out, lse, torch.zeros_like(out), None, launcher=taken)
    entries = ["nb_fwd_mma", "nb_delta", "nb_dq_mma", "nb_dkdv_mma", "nb_dkdv_mma"]
    assert [one.entry for one in taken.variants] == entries
    assert set(taken.variants) == set(taken.loaded)
    assert len(taken.loaded) == 5
    taken.loaded.clear()
    nbattn.plan(mask, shape, device=DEVICE, backend="cuda").warmup()
    assert [one.entry for one in taken.loaded] == ["nb_fwd_wgmma"]  # wide heads have no gradients


def test_error_without_cupy_names_what_to_install() -> None:
    bare = replace(DEVICES["sm_90"], providers=())
    with pytest.raises(BackendError) as error:
        nbattn.plan(Mask.causal(), (1, 8, 2, 64), device=bare, backend="cuda")
    assert "cuda/window: needs CuPy and NVRTC" in str(error.value)
    assert 'pip install "cupy-cuda13x>=14.2,<15"' in str(error.value)


@needs_emulator
def test_empty_shapes(emulated: Launcher) -> None:
    """No queries, no keys, no samples: zeros, -inf, and no launch without blocks."""
    mask = Mask(Axis(2, 2, align="top-left"), Axis(1, 1))
    for queries, keys, batch in (((0, 3), (4, 3), 2), ((4, 3), (0, 3), 2), ((4, 3), (4, 3), 0)):
        query, key = torch.ones(batch, *queries, 2, 16), torch.ones(batch, *keys, 2, 16)
        leaves = [t.bfloat16().requires_grad_() for t in (query, key, key)]
        out, lse = nbattn.attention(*leaves, mask, backend="cuda", return_lse=True)
        assert not out.any()
        assert (lse == -torch.inf).all()
        for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()


@needs_emulator
def test_a_decode_step_and_a_plan_that_runs(emulated: Launcher) -> None:
    mask, generator = Mask.from_transformers(30), torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(1, n, h, 64, generator=generator).half() for n, h in ((1, 8), (75, 2), (75, 2))
    )
    plan = nbattn.plan(mask, query.shape, key.shape, dtype=torch.float16, backend="cuda")
    assert isinstance(plan.chosen.program.calls[0].arguments, CudaArguments)
    assert math.prod(plan.chosen.program.calls[0].arguments.forward.rows) == 16
    wanted = nbattn.attention(query, key, value, mask, backend="reference")
    torch.testing.assert_close(plan.run(query, key, value), wanted, rtol=4e-3, atol=4e-3)
    assert emulated.counts.launches == 1


def test_a_forward_takes_few_lines_of_the_host() -> None:
    """What a forward does besides torch's allocations and the driver: all else is cached."""
    plan = nbattn.plan(Mask.neighborhood((7, 7)), (2, 20, 20, 4, 64), device=DEVICE, backend="cuda")
    query = torch.zeros(2, 20, 20, 4, 64, dtype=torch.bfloat16)
    inputs = Inputs(query, query, query, scale=0.125)
    program, taken = plan.chosen.program, Recorder()
    assert program is not None
    run = partial(cuda.forward, program, inputs, return_lse=False, launcher=taken)
    run()
    assert lines(run) <= LAUNCH
    assert len(taken.variants) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_rows_without_keys_leave_gradients_alone(emulated: Launcher, dtype: torch.dtype) -> None:
    """Whatever comes back for their logsumexp."""
    mask = Mask(Axis(2, causal=True, stride=6))
    torch.manual_seed(0)
    leaves = [torch.randn(1, 40, 1, 16).to(dtype).requires_grad_() for _ in range(3)]
    leaves.append(torch.full((1,), -torch.inf, requires_grad=True))  # a sink without weight
    out, lse = nbattn.attention(*leaves[:3], mask, sink=leaves[3], backend="cuda", return_lse=True)
    assert lse.isinf().any()
    results = []
    for unread in (0.0, torch.nan, torch.inf):
        upward = torch.where(lse.isinf(), unread, 1.0)
        given = (torch.ones_like(out), upward)
        results.append(torch.autograd.grad((out, lse), leaves, given, retain_graph=True))
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.parametrize("softcap", [0.5, 50.0, 1e4, 1e8])
def test_softcaps_of_any_size(emulated: Launcher, softcap: float) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 40, 2, 16).half() for _ in range(3))
    mask = Mask(Axis(9, 4))
    found = nbattn.attention(
        query, key, value, mask, softcap=softcap, backend="cuda", return_lse=True
    )
    exact = nbattn.attention(
        query.double(), key.double(), value.double(), mask, softcap=softcap, backend="reference",
        return_lse=True,
    )  # fmt: skip
    assert (found[1].double() - exact[1]).abs().max() < 2e-6
    assert (found[0].double() - exact[0]).abs().max() < 2e-3


# Packed query heads: rows of one tile

PACKED: dict[str, tuple[Mask, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "decode": (Mask.sliding_window(40, 0, align="bottom-right"), (1,), (130,), {}),
    "few queries": (Mask(Axis(causal=True, align="bottom-right", prefix=3)), (5,), (70,), {}),
    "a plane": (Mask(Axis(2, 2, border="shift"), Axis(3, 1)), (3, 4), (3, 4), {}),
    "a sink and extra keys": (Mask(Axis(9, causal=True)), (21,), (21,), {"extra": 3, "sink": True}),
    "padding": (Mask(Axis()), (2,), (50,), {"ranges": True}),
}


@needs_emulator
@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_packed_heads_give_the_values_of_heads_apart(
    emulated: Launcher, name: str, dtype: torch.dtype, cases: Count
) -> None:
    """By the ratio rule against float64, and every head's own sink."""
    mask, queries, keys, more = PACKED[name]
    torch.manual_seed(0)
    query = torch.randn(2, *queries, 6, 32).to(dtype)
    key, value = (torch.randn(2, *keys, 2, 32).to(dtype) for _ in range(2))
    given: dict[str, Any] = {}
    if "extra" in more:
        given["extra_key"], given["extra_value"] = (
            torch.randn(2, 3, 2, 32).to(dtype) for _ in "kv"
        )
        given["sink"] = torch.randn(6)
    if "ranges" in more:
        given["key_range"] = torch.tensor([[[0, 50]], [[7, 31]]]).int()
    plan = nbattn.plan(
        mask, query.shape, key_shape=key.shape, dtype=dtype, backend="cuda",
        require=(family(dtype),), extra_keys=3 * ("extra" in more), sink="sink" in more,
        key_range="ranges" in more, return_lse=True,
    )  # fmt: skip
    program = plan.chosen.program
    assert program is not None
    call = program.calls[0]
    assert isinstance(call.arguments, CudaArguments)
    tiles = Tiles((4, 2, 8), (1, 4, 16) if len(queries) == 2 else (1, 1, 64), 4, 1, 2)
    if family(dtype) == "simt":
        tiles = Tiles((4, 1, 4), (1, 2, 16) if len(queries) == 2 else (1, 1, 32))
    outputs = []
    for packed in (1, 3):
        arguments = replace(call.arguments, forward=tiles, packed=packed)
        one = Program((replace(call, arguments=arguments),))
        inputs = Inputs(
            query, key, value, given.get("sink"), given.get("key_range"),
            given.get("extra_key"), given.get("extra_value"), scale=32**-0.5,
        )  # fmt: skip
        outputs.append(cuda.forward(one, inputs, return_lse=True))
    wide = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    exact = nbattn.attention(
        query.double(), key.double(), value.double(), mask, backend="reference", **wide
    )
    eps = torch.finfo(dtype).eps
    for out, lse in outputs:
        assert lse is not None
        assert torch.equal(lse.isinf(), outputs[0][1].isinf())
        torch.testing.assert_close(out.double(), exact, rtol=8 * eps, atol=8 * eps)
    assert torch.allclose(outputs[0][1], outputs[1][1], rtol=1e-5, atol=1e-5)
    cases("cuda packed heads", 1)
