"""Tests of the Triton kernels as a backend of `attention()`, run by Triton's interpreter on CPU
tensors: the pairs they compute, and values and gradients against float64.

Planner, operators, backend and kernels are the ones that run on a GPU; only the device is a
stand-in, and the launcher is the interpreter's, which sees accesses outside of tensors. It has no
bfloat16: those tensors are computed in float32, and results are rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import few_examples
import judged_values
import numpy as np
import packed_calls
import parts_of_axes
import pytest
import support_probes
import torch
import triton_interpreter
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from judged_values import FEATURES, MASKS, Feature, Shape
from oracle import masks
from packed_cases import CASES as PACKED
from torch import Tensor
from triton_interpreter import Launcher

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.inputs import Inputs
from nbattn.backends.triton import launch
from nbattn.backends.triton import run as triton
from nbattn.backends.triton.meaning import TritonArguments
from nbattn.backends.triton.tiles import Build, Tiles
from nbattn.geometry import bind
from nbattn.planner import devices, planner
from nbattn.program.device import DEVICES
from nbattn.program.limits import LARGEST, LARGEST_DILATION
from nbattn.program.program import Call, Program, whole

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)

Count = Callable[[str, int], None]
DTYPES = (torch.float16, torch.float32, torch.bfloat16, torch.float64)
DEVICE = replace(DEVICES["sm_90"], providers=("triton",))
SMALL = Tiles((1, 1, 16), (1, 1, 16))
LONG = ("tiles", "causal", "one query")  # masks of many visits


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """CPU tensors are on a device with Triton, and kernels run in the interpreter."""
    launcher = Launcher(check=True)
    monkeypatch.setattr(devices, "device_info", lambda *_: DEVICE)
    monkeypatch.setattr(launch, "launcher", lambda: launcher)
    planner.forget()
    yield launcher
    planner.forget()


def quick(examples: int) -> settings:
    """Without shrinking, which takes minutes."""
    phases = (Phase.explicit, Phase.reuse, Phase.generate)
    many = [HealthCheck.filter_too_much]
    return settings(few_examples.quick(examples), phases=phases, suppress_health_check=many)


# Supports


def check_supports(specimens: list[Any], dtype: torch.dtype, cases: Count) -> None:
    """Output and all three gradients, found with one-hot probes."""
    done: Counter[str] = Counter()
    for specimen in specimens:
        done.update(support_probes.check(specimen, ("triton", ()), dtype))
    for what, count in done.items():
        assert count == len(specimens)
        cases(f"Triton support, {what}", count)
    assert len(done) == 4


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("dtype", "number"), [*zip(DTYPES, (15, 52, 55, 54), strict=True)], ids=str
)
def test_the_kernels_compute_exactly_the_pairs_of_the_mask(
    dtype: torch.dtype, number: int, cases: Count
) -> None:
    check_supports([support_probes.SMALL[number]], dtype, cases)


@pytest.mark.deep
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernels_compute_exactly_the_pairs_of_every_mask(
    dtype: torch.dtype, cases: Count
) -> None:
    check_supports(support_probes.SMALL, dtype, cases)


# Values


def check_values(label: str, feature: Feature, dtype: torch.dtype) -> None:
    try:
        judged_values.compare(MASKS[label], feature, dtype, "triton")
    except AssertionError as error:
        raise AssertionError(f"{label}: {error}") from error


def labels_of(name: str) -> list[str]:
    """The masks that have a feature."""
    return [label for label in MASKS if FEATURES[name].fits(*MASKS[label])]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", FEATURES)
def test_values_of_every_feature(name: str, cases: Count) -> None:
    """Each feature on a mask; masks and dtypes in turn."""
    number = list(FEATURES).index(name)
    labels = [label for label in labels_of(name) if label not in LONG]
    check_values(labels[number % len(labels)], FEATURES[name], DTYPES[number % 4])
    cases("Triton values", 1)


@pytest.mark.deep
@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_values_of_every_feature_on_every_mask(name: str, dtype: torch.dtype, cases: Count) -> None:
    for label in labels_of(name):
        check_values(label, FEATURES[name], dtype)
        cases("Triton values", 1)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((1, 3), torch.float32),
        ((17, 40), torch.float16),
        ((80, 12), torch.float64),
        ((40, 256), torch.bfloat16),
    ],
    ids=str,
)
def test_head_sizes(sizes: tuple[int, int], dtype: torch.dtype, cases: Count) -> None:
    """Channels beside those of a head are neither read nor written."""
    shape = Shape(batch=1, heads=2, key_heads=1, dim=sizes[0], value_dim=sizes[1])
    mask = (Mask(Axis(2, 2, border="shift", dilation=2)), (9,), (9,))
    judged_values.compare(mask, Feature(shape, lse=True), dtype, "triton")
    cases("Triton head sizes", 1)


@quick(6)
@given(masks(), st.sampled_from(DTYPES), st.data())
def test_any_mask_with_any_feature(cases: Count, drawn: Any, dtype: Any, data: Any) -> None:
    mask, queries, keys = drawn
    assume(0 < np.prod(queries) * np.prod(keys) <= 150)
    fitting = [name for name in FEATURES if FEATURES[name].fits(mask, queries, keys)]
    feature = FEATURES[data.draw(st.sampled_from(fitting))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "device_info", lambda *_: DEVICE)
        patch.setattr(launch, "launcher", lambda: Launcher(check=True))
        planner.forget()
        judged_values.compare((mask, queries, keys), feature, dtype, "triton")
    planner.forget()
    cases("Triton values, any mask", 1)


# The family alone: tiles, strides, parts


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


def arguments_of(axes: Any, dtype: torch.dtype, tiles: Tiles = SMALL) -> TritonArguments:
    """All kernels in the same tiles."""
    build = Build(
        str(dtype).removeprefix("torch."), 16, 16, len(axes),
        two_runs=any(axis.spec.prefix for axis in axes),
        circle=any(axis.spec.border == "wrap" for axis in axes),
    )  # fmt: skip
    return TritonArguments(axes, build, tiles, tiles, tiles)


def solved(
    spaces: tuple[Any, Any],
    arguments: TritonArguments,
    made: dict[str, Tensor],
    launcher: Launcher | None = None,
) -> dict[str, Tensor]:
    """Output and gradients on tensors, by the backend alone."""
    program = Program((Call(whole(spaces[0]), whole(spaces[1]), arguments),))
    inputs = Inputs(made["query"], made["key"], made["value"], scale=0.25)
    launcher = launcher or Launcher(check=True)
    out, lse = triton.forward(program, inputs, return_lse=False, launcher=launcher)
    assert lse is not None
    grads = triton.backward(program, inputs, out, lse, made["grad_out"], None, launcher=launcher)
    return {"out": out, "dquery": grads.query, "dkey": grads.key, "dvalue": grads.value}


def judged(mask: tuple[Mask, Any, Any], made: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Against the definition, as other values are."""
    feature, given_tensors = Feature(), {n: t for n, t in made.items() if n != "grad_out"}
    grads, dtype = [made["grad_out"], torch.zeros(())], made["query"].dtype
    exact = judged_values.by_definition(mask, given_tensors, grads, feature)
    lowest = judged_values.best_in_dtype(mask, given_tensors, grads, feature, "tiled")
    more = judged_values.last_digit(given_tensors, feature)
    judged_values.judge(found, lowest, exact, dtype, more)


LARGE: dict[str, tuple[tuple[Mask, Any, Any], Tiles]] = {
    "line": ((Mask(Axis(70, 30, align=0)), (130,), (100,)), Tiles((1, 1, 64), (1, 1, 32))),
    "plane": (
        (Mask(Axis(5, 4, border="shift"), Axis(6, 6, border="wrap")), (11, 14), (11, 14)),
        Tiles((1, 8, 8), (1, 4, 16)),
    ),
    "volume": (
        (Mask(Axis(2, causal=True), Axis(3, 3, dilation=2), Axis(2, 1)), (5, 5, 6), (5, 5, 6)),
        Tiles((2, 4, 4), (4, 4, 4)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_values_of_larger_tiles(name: str, cases: Count) -> None:
    mask, tiles = LARGE[name]
    made = drawn(mask, torch.float32)
    judged(mask, made, solved(mask[1:], arguments_of(bind(*mask), torch.float32, tiles), made))
    cases("Triton larger tiles", 1)


def strided(made: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The same numbers in other memory, with NaN between them."""

    def spread(tensor: Tensor, order: tuple[int, ...], gaps: tuple[int, ...]) -> Tensor:
        sizes = [n * gap for n, gap in zip(tensor.shape, gaps, strict=True)]
        memory = torch.full([sizes[n] for n in order], float("nan"), dtype=tensor.dtype)
        view = memory.permute([order.index(n) for n in range(tensor.dim())])
        view = view[tuple(slice(None, None, gap) for gap in gaps)]
        return view.copy_(tensor)

    heads_first, plain = (0, 3, 1, 2, 4), (0, 1, 2, 3, 4)
    yield "heads first", {n: spread(t, heads_first, (1,) * 5) for n, t in made.items()}
    yield "every second token", {n: spread(t, plain, (1, 2, 3, 1, 1)) for n, t in made.items()}
    yield "every second channel", {n: spread(t, plain, (1, 1, 1, 1, 2)) for n, t in made.items()}
    yield "channels first", {n: spread(t, (4, 0, 3, 1, 2), (1,) * 5) for n, t in made.items()}
    both = torch.cat([made["key"], made["value"]], -1).split(16, -1)
    yield "packed", made | dict(zip(("key", "value"), both, strict=True))
    grad = made["grad_out"][:, :1, :1].expand_as(made["grad_out"])
    yield "one gradient for all", made | {"grad_out": grad}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_any_strides_give_the_same_bits(dtype: torch.dtype, cases: Count) -> None:
    """Tensors are read as they lie; no address beside them is."""
    mask = (Mask(Axis(2, 2), Axis(1, 1, border="shift", dilation=2)), (4, 7), (4, 7))
    arguments = arguments_of(bind(*mask), dtype, Tiles((1, 4, 4), (1, 4, 8)))
    made = drawn(mask, dtype, batch=2)
    plain, steps = solved(mask[1:], arguments, made), set[int]()
    for name, other in strided(made):
        launcher = Launcher(check=True)
        found = solved(mask[1:], arguments, other, launcher)
        wanted = plain
        if name == "one gradient for all":
            wanted = solved(mask[1:], arguments, {n: t.contiguous() for n, t in other.items()})
        for what, tensor in found.items():
            assert tensor.is_contiguous()
            assert torch.equal(tensor, wanted[what]), (name, what)
        steps |= {variant.step for kernel, _, variant in launcher.launched if kernel == "forward"}
        cases("Triton strides", 1)
    assert steps == {1, 16 // dtype.itemsize}


def test_offsets_beyond_32_bits(cases: Count) -> None:
    """Of samples, and inside of one; integers that leave their type are errors."""
    mask = (Mask(Axis(3, 2, align="top-left")), (6,), (20,))
    made = drawn(mask, torch.float16, batch=2)
    plain = solved(mask[1:], arguments_of(bind(*mask), torch.float16), made)
    for axis, step in ((0, (1 << 31) + 16), (1, 1 << 28)):
        strides = list(made["key"].stride())
        strides[axis] = step
        size = 1 + sum((n - 1) * s for n, s in zip(made["key"].shape, strides, strict=True))
        memory = torch.empty(size, dtype=torch.float16)  # pages that are not touched take nothing
        far = memory.as_strided(made["key"].shape, strides).copy_(made["key"])
        launcher = Launcher(overflow=True)
        arguments = arguments_of(bind(*mask), torch.float16)
        found = solved(mask[1:], arguments, made | {"key": far}, launcher)
        for what, tensor in found.items():
            assert torch.equal(tensor, plain[what]), (axis, what)
        cases("Triton far offsets", 1)


@pytest.mark.parametrize("offset", [LARGEST, 3, -LARGEST])
def test_values_at_the_largest_dilation(offset: int) -> None:
    """Offsets of places past the end may leave 32 bits, and are not read."""
    axis = Axis(5, 5, dilation=LARGEST_DILATION, offset=offset, align="top-left")
    mask = (Mask(axis), (3,), (3,))
    made = drawn(mask, torch.float32)
    tiles = Tiles((1, 1, 64), (1, 1, 64))
    judged(mask, made, solved(mask[1:], arguments_of(bind(*mask), torch.float32, tiles), made))


@quick(12)
@given(parts_of_axes.parts())
def test_parts_of_axes(cases: Count, case: parts_of_axes.Case) -> None:
    """Tensors that hold a part of an axis have the values of the block of its matrix."""
    axis, pairs = parts_of_axes.bound(case)
    assume(pairs.size)
    made = drawn((Mask(Axis()), (axis.queries,), (axis.keys,)), torch.float64)
    found = solved(((axis.queries,), (axis.keys,)), arguments_of((axis,), torch.float64), made)
    leaves = [made[name].clone().requires_grad_() for name in ("query", "key", "value")]
    out, _ = judged_values.dense_attention.attend(*leaves, torch.from_numpy(pairs), scale=0.25)
    wanted = (out, *torch.autograd.grad(out, leaves, made["grad_out"]))
    for (what, tensor), exact in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(tensor, exact, rtol=1e-10, atol=1e-11, msg=what)
    cases("Triton parts of axes", 1)


# Packed grids


LONG_GRIDS = ("cross", "dilated", "cube", "plane")
SUMS = ("grad_sink", "grad_extra_key", "grad_extra_value")  # of as many programs as there is room


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.deep if name in LONG_GRIDS else ()) for name in PACKED],
)
def test_all_grids_have_the_bits_of_each_alone(name: str, cases: Count) -> None:
    case = PACKED[name]
    if case.key_grids is None:
        case = replace(case, grids=[size for size in case.grids if np.prod(size) <= 120][:5])
    program = packed_calls.program_of(case, torch.float32, backend="triton", device=DEVICE)
    made = packed_calls.drawn(case, torch.float32)
    options: Any = {"launcher": Launcher(check=True), "nearly": SUMS}
    packed_calls.check(triton, program, case, made, **options)
    cases("Triton packed grids", len(case.grids))


def test_packed_grids_with_dilation_and_groups_have_the_bits_of_each_alone(cases: Count) -> None:
    """Classes, an empty grid, one of one token."""
    mask = Mask(Axis(2, 1, dilation=2), Axis(1, 1, border="shift"))
    case = packed_calls.Case(mask, [(3, 4), (1, 1), (0, 5), (5, 3)], heads=2, kv_heads=1)
    program = packed_calls.program_of(case, torch.float64, backend="triton", device=DEVICE)
    made = packed_calls.drawn(case, torch.float64)
    packed_calls.check(triton, program, case, made, launcher=Launcher(check=True))
    cases("Triton packed grids", len(case.grids))


def test_no_grids_have_no_extra_keys() -> None:
    """No program may read the table of grids."""
    case = packed_calls.Case(Mask(Axis(2, 2)), [], extra=3)
    program = packed_calls.program_of(case, torch.float32, backend="triton", device=DEVICE)
    made = packed_calls.drawn(case, torch.float32)
    found = packed_calls.solved(triton, program, case, made, launcher=Launcher(check=True))
    assert found["grad_extra_key"].shape == (0, 3, 1, 16)


# The rest of a backend


def test_warmup_prepares_what_a_training_step_launches(interpreted: Launcher) -> None:
    mask, shape = Mask.neighborhood((3, 3)), (1, 4, 4, 1, 16)
    plan = nbattn.plan(mask, shape, device=DEVICE, backend="triton", training=True)
    plan.warmup()
    program = plan.chosen.program
    assert program is not None
    query = torch.zeros(shape, dtype=torch.bfloat16)
    inputs = Inputs(query, query, query, scale=1.0)
    out, lse = triton.forward(program, inputs, return_lse=True)
    assert lse is not None
    triton.backward(program, inputs, out, lse, torch.zeros_like(out), None)
    launched = [(kernel, variant) for kernel, _, variant in interpreted.launched]
    assert [kernel for kernel, _ in launched] == ["forward", "delta", "grad_query", "grad_key"]
    assert set(launched) == set(interpreted.loaded)


@pytest.mark.usefixtures("interpreted")
def test_empty_shapes() -> None:
    """No queries, no keys, no samples: zeros and -inf."""
    mask = Mask(Axis(2, 2, align="top-left"), Axis(1, 1))
    for queries, keys, batch in (((0, 3), (4, 3), 2), ((4, 3), (0, 3), 2), ((4, 3), (4, 3), 0)):
        query, key = torch.ones(batch, *queries, 2, 16), torch.ones(batch, *keys, 2, 16)
        leaves = [t.bfloat16().requires_grad_() for t in (query, key, key)]
        out, lse = nbattn.attention(*leaves, mask, backend="triton", return_lse=True)
        assert not out.any()
        assert (lse == -torch.inf).all()
        for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves), strict=True):
            assert grad.shape == leaf.shape
            assert not grad.any()


@pytest.mark.usefixtures("interpreted")
def test_rows_without_keys_leave_gradients_alone() -> None:
    """Whatever comes back for their logsumexp."""
    mask = Mask(Axis(2, causal=True, stride=6))
    torch.manual_seed(0)
    leaves = [torch.randn(1, 20, 1, 16).requires_grad_() for _ in range(3)]
    leaves.append(torch.full((1,), -torch.inf, requires_grad=True))  # a sink without weight
    out, lse = nbattn.attention(*leaves[:3], mask, sink=leaves[3], backend="triton",
                                return_lse=True)  # fmt: skip
    assert lse.isinf().any()
    results = []
    for unread in (0.0, torch.nan, torch.inf):
        upward = torch.where(lse.isinf(), unread, 1.0)
        tensors = (torch.ones_like(out), upward)
        results.append(torch.autograd.grad((out, lse), leaves, tensors, retain_graph=True))
    assert all(grad.isfinite().all() for grad in results[0])
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("softcap", [0.5, 50.0, 1e4, 1e8])
def test_softcaps_of_any_size(softcap: float) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 16, 1, 16).half() for _ in range(3))
    mask = Mask(Axis(9, 4))
    given_options: Any = {"softcap": softcap, "return_lse": True}
    found = nbattn.attention(query, key, value, mask, backend="triton", **given_options)
    wide = (query.double(), key.double(), value.double())
    exact = nbattn.attention(*wide, mask, backend="reference", **given_options)
    assert (found[1].double() - exact[1]).abs().max() < 2e-6
    assert (found[0].double() - exact[0]).abs().max() < 2e-3
