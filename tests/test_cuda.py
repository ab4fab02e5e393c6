"""The CUDA kernels as a backend of `attention()`, run by the emulator on CPU tensors: which pairs they
compute, and values and gradients against float64.

Planner, operators, backend and kernels are the ones that run on a GPU; only the device is a stand-in
and the launcher is the emulator's.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import test_support
import test_values
import torch
from emulator import build
from emulator.launcher import Launcher
from test_values import FEATURES, MASKS, Feature, Shape
from torch import Tensor

import nbattn
from nbattn import Axis, BackendError, Mask, functional
from nbattn.backends import cuda
from nbattn.backends.contract import Inputs
from nbattn.dialects.cuda import Window
from nbattn.dialects.cuda_tiles import Build, Tiles
from nbattn.dialects.device import DEVICES
from nbattn.geometry import bind
from nbattn.kernels import launch
from nbattn.kernels.variant import Variant
from nbattn.planner import dispatch
from nbattn.planner.programs import Call, Program, whole

Count = Callable[[str, int], None]
HALVES = (torch.bfloat16, torch.float16)
WHOLE = (torch.float32, torch.float64)
DEVICE = replace(DEVICES["sm_90"], providers=("cupy",))
needs_emulator = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launcher]:
    """CPU tensors are on a device with CuPy, and kernels run in the emulator."""
    launcher = Launcher()
    monkeypatch.setattr(dispatch, "device_info", lambda *_: DEVICE)
    monkeypatch.setattr(launch, "launcher", lambda: launcher)
    functional.forget()
    yield launcher
    functional.forget()


def family(dtype: torch.dtype) -> str:
    return "mma" if dtype in HALVES else "simt"


# Supports


def sixteens(count: int) -> int:
    """Chunks that tensor cores take."""
    return max(16, -(-count // test_support.ITEMS // 8) * 8)


def check_supports(specimens: list[Any], dtype: torch.dtype, cases: Count) -> None:
    """Output and all three gradients, found with one-hot probes."""
    done: Counter[str] = Counter()
    for specimen in specimens:
        done.update(test_support.check(specimen, ("cuda", (family(dtype),)), dtype))
    for what, count in done.items():
        assert count == len(specimens)
        cases(f"cuda support, {family(dtype)} {what}", count)
    assert len(done) == 4


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One-hot probes of a width that tensor cores take."""
    monkeypatch.setattr(test_support, "chunks", sixteens)
    test_support.one_hot.cache_clear()
    yield
    test_support.one_hot.cache_clear()


@needs_emulator
@pytest.mark.usefixtures("emulated", "chunks")
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_the_kernels_compute_exactly_the_pairs_of_the_mask(
    dtype: torch.dtype, cases: Count
) -> None:
    check_supports(test_support.SMALL[::3], dtype, cases)


@needs_emulator
@pytest.mark.deep
@pytest.mark.usefixtures("emulated", "chunks")
@pytest.mark.parametrize("dtype", (*HALVES, *WHOLE), ids=str)
def test_the_kernels_compute_exactly_the_pairs_of_every_mask(
    dtype: torch.dtype, cases: Count
) -> None:
    check_supports([*test_support.SMALL, *test_support.LARGE], dtype, cases)


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
        test_values.compare(
            masks[label], fitted(feature, dtype), dtype, "cuda", require=(family(dtype),)
        )
    except AssertionError as error:
        raise AssertionError(f"{label}: {error}") from error


@needs_emulator
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", FEATURES)
def test_values_of_every_feature(name: str, cases: Count) -> None:
    """Each feature on a few masks, every mask with some features; dtypes in turn."""
    number = list(FEATURES).index(name)
    for step, label in enumerate(list(MASKS)[number % 4 :: 4]):
        dtype = (torch.bfloat16, torch.float32, torch.float16, torch.float64)[(number + step) % 4]
        check_values(label, FEATURES[name], dtype)
        cases(f"cuda values, {family(dtype)}", 1)


@needs_emulator
@pytest.mark.deep
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", (*HALVES, *WHOLE), ids=str)
@pytest.mark.parametrize("name", FEATURES)
def test_values_of_every_feature_on_every_mask(name: str, dtype: torch.dtype, cases: Count) -> None:
    for label in MASKS:
        check_values(label, FEATURES[name], dtype)
        cases(f"cuda values, {family(dtype)}", 1)
