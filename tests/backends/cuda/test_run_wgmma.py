"""Tests of the kernels of warpgroups as a backend of `attention()`, run by the emulator: the pairs
they compute, and values and gradients against float64, as `test_run.py` does for the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dense_attention
import judged_values
import pytest
import support_probes
import torch
from emulator import build
from emulator.launcher import Launcher
from judged_values import FEATURES, MASKS, Feature, Shape
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends.cuda.group_limits import SIZES
from nbattn.kernels import launch
from nbattn.planner import devices, planner
from nbattn.program.device import DEVICES

Count = Callable[[str, int], None]
DEVICE = replace(DEVICES["sm_90"], providers=("cupy",))
ROUTE: dict[str, Any] = {"require": ("wgmma",)}
HALVES = (torch.bfloat16, torch.float16)
TRAINED = SIZES[:4]  # the head sizes that have gradients
# What the quick profile leaves out: others have the same features among more.
DEEP = ("plain", "lse", "sink", "extra keys", "softcap")
TAKEN = [name for name, f in FEATURES.items() if not (f.key_range or f.table or f.slopes)]
pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """CPU tensors are on an H100 with CuPy, and kernels run in the emulator."""
    launcher = Launcher()
    monkeypatch.setattr(devices, "device_info", lambda *_: DEVICE)
    monkeypatch.setattr(launch, "launcher", lambda: launcher)
    planner.forget()
    yield launcher
    planner.forget()


# Supports


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One-hot probes of a width that the kernels take."""

    def width(count: int) -> int:
        return next(n for n in SIZES if n * support_probes.ITEMS >= count)

    monkeypatch.setattr(support_probes, "chunks", width)
    support_probes.one_hot.cache_clear()
    yield
    support_probes.one_hot.cache_clear()


def check_supports(specimens: list[Any], dtype: torch.dtype, cases: Count) -> None:
    """Output and all three gradients, found with one-hot probes."""
    done: Counter[str] = Counter()
    for specimen in specimens:
        done.update(support_probes.check(specimen, ("cuda", ("wgmma",)), dtype))
    for what, count in done.items():
        assert count == len(specimens)
        cases(f"cuda support, wgmma {what}", count)
    assert len(done) == 4


SOME: list[support_probes.Specimen] = [
    (Mask(Axis(2, 2, border="shift", stride=3, dilation=2)), (11,), (11,)),
    (Mask(Axis(2, 1, dilation=3, align="top-left", offset=-5)), (211,), (140,)),
    (Mask(Axis(1, 1, prefix=1), Axis(1, 1, border="wrap")), (6, 7), (6, 7)),
    (Mask(Axis(2, causal=True), Axis(1, 1, border="shift"), Axis(1, 1, border="wrap")),
     (3, 4, 5), (3, 4, 5)),
]  # fmt: skip


@pytest.mark.usefixtures("chunks")
def test_warpgroups_compute_exactly_the_pairs_of_the_mask(cases: Count, emulated: Launcher) -> None:
    check_supports(SOME, torch.bfloat16, cases)
    assert emulated.counts.wgmma > 0


@pytest.mark.deep
@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_warpgroups_compute_exactly_the_pairs_of_every_mask(
    dtype: torch.dtype, cases: Count
) -> None:
    every = [*support_probes.SMALL, *support_probes.LARGE]
    check_supports([one for one in every if _has_maps(one[0])], dtype, cases)


def _has_maps(mask: Mask) -> bool:
    """Whether an argument has room for a map of each residue class of four tensors."""
    return all(axis.dilation <= 6 for axis in mask.axes)


# Values


def fitted(feature: Feature) -> Feature:
    """A feature with head sizes that the kernels take."""
    value_dim = 64 if feature.shape.value_dim == feature.shape.dim else 80
    return feature._replace(shape=feature.shape._replace(dim=64, value_dim=value_dim))


def check_values(label: str, name: str, dtype: torch.dtype) -> None:
    try:
        judged_values.compare(MASKS[label], fitted(FEATURES[name]), dtype, "cuda", **ROUTE)
    except AssertionError as error:
        raise AssertionError(f"{name}, {label}: {error}") from error


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in DEEP])
def test_wgmma_values_of_every_feature(name: str, cases: Count) -> None:
    """Masks and dtypes in turn."""
    number, labels = TAKEN.index(name), list(MASKS)
    check_values(labels[number * 5 % len(labels)], name, HALVES[number % 2])
    cases("cuda values, wgmma", 1)


@pytest.mark.deep
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_wgmma_values_of_every_feature_on_every_mask(
    name: str, dtype: torch.dtype, cases: Count
) -> None:
    for label in MASKS:
        check_values(label, name, dtype)
        cases("cuda values, wgmma", 1)


GRID = (Mask(Axis(2, 2, border="shift", dilation=2), Axis(9, 3)), (9, 20), (9, 20))


def check_sizes(head_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    shape = Shape(batch=1, heads=2, key_heads=1, dim=head_dim, value_dim=value_dim)
    if max(head_dim, value_dim) in TRAINED:
        return judged_values.compare(GRID, Feature(shape, lse=True), dtype, "cuda", **ROUTE)
    made = judged_values.tensors(GRID, Feature(shape), dtype)
    pairs = judged_values.pairs_of(GRID, Feature(shape), made["query"].device)
    found = nbattn.attention(**made, mask=GRID[0], backend="cuda", **ROUTE)
    assert isinstance(found, Tensor)
    low, _ = dense_attention.attend(**made, **pairs)
    exact, _ = dense_attention.attend(**{n: t.double() for n, t in made.items()}, **pairs)
    dense_attention.judge("out", found, low, exact, torch.finfo(dtype).eps)
    return None


@pytest.mark.parametrize("sizes", [(128, 128), (96, 80), (192, 256)])
def test_wgmma_head_sizes(sizes: tuple[int, int], cases: Count) -> None:
    check_sizes(*sizes, HALVES[sum(sizes) // 16 % 2])
    cases("cuda head sizes, wgmma", 1)


@pytest.mark.deep
@pytest.mark.parametrize("head_dim", SIZES)
@pytest.mark.parametrize("value_dim", SIZES)
def test_every_wgmma_head_size(head_dim: int, value_dim: int, cases: Count) -> None:
    check_sizes(head_dim, value_dim, torch.bfloat16)
    cases("cuda head sizes, wgmma", 1)


# Repetition, and what is refused


def test_the_order_of_warps_and_copies_changes_no_bit(
    cases: Count, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks, threads, copies and products in random order, and all accesses checked."""
    feature = Feature(Shape(batch=1, heads=2, key_heads=1, dim=64, value_dim=64, extra=3))
    mask = (Mask(Axis(150, 40, dilation=2)), (300,), (300,))
    made = judged_values.tensors(mask, feature, torch.bfloat16)
    grads = judged_values.upstream(mask, feature.shape, torch.bfloat16)
    plain = judged_values.run(mask[0], made, grads, feature, "cuda", **ROUTE)
    for launcher in (Launcher("random", seed=1), Launcher("random", seed=2), Launcher("check")):
        monkeypatch.setattr(launch, "launcher", lambda own=launcher: own)
        found = judged_values.run(mask[0], made, grads, feature, "cuda", **ROUTE)
        for what, tensor in plain.items():
            assert torch.equal(tensor, found[what]), what
            cases("cuda outputs repeated, wgmma", 1)


def test_what_warpgroups_do_not_take_the_other_kernels_serve(emulated: Launcher) -> None:
    query = torch.randn(1, 40, 2, 64).bfloat16()
    mask, ranges = Mask(Axis(5, 3)), torch.tensor([[[3, 30]]], dtype=torch.int32)
    with pytest.raises(BackendError, match="a tensor map copies whole boxes"):
        nbattn.attention(query, query, query, mask, key_range=ranges, backend="cuda", **ROUTE)
    nbattn.attention(query, query, query, mask, key_range=ranges, backend="cuda")
    assert emulated.counts.wgmma == 0
    assert emulated.counts.mma > 0


def gradients(query: Tensor, key: Tensor, mask: Mask, grad_out: Tensor) -> list[Tensor]:
    query, key = (tensor.requires_grad_() for tensor in (query, key))
    out = nbattn.attention(query, key, key, mask, backend="cuda", **ROUTE)
    assert isinstance(out, torch.Tensor)
    return list(torch.autograd.grad(out, (query, key), grad_out))


@pytest.mark.parametrize("sizes", [(0, 9, 9), (2, 0, 0), (2, 0, 9), (2, 9, 0)], ids=str)
def test_gradients_of_no_elements(sizes: tuple[int, int, int]) -> None:
    """A gradient of the output without elements is contiguous with strides of 0, too."""
    batch, queries, keys = sizes
    query, key = (torch.randn(batch, n, 2, 64).bfloat16() for n in (queries, keys))
    grad_out = torch.ones((), dtype=torch.bfloat16).expand(query.shape)
    for grad in gradients(query, key, Mask(Axis(2, 2, align="top-left")), grad_out):
        assert not grad.any()


def test_a_gradient_is_copied_where_the_kernels_tiles_would_need_more_maps() -> None:
    """Samples inside tokens leave no room for residues, and 8 positions are too far for a box."""
    query, key = (torch.randn(2, n, 1, 64).bfloat16() for n in (16, 19))
    grad_out = torch.randn(16, 2, 1, 64).bfloat16().transpose(0, 1)
    mask = Mask(Axis(2, 2, dilation=8, align="top-left"))
    found = gradients(query, key, mask, grad_out)
    for one, other in zip(found, gradients(query, key, mask, grad_out.contiguous()), strict=True):
        assert torch.equal(one, other)
