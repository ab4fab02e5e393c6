"""Tests of what is told of plans that run: a line each, and one warning where a package is
missing.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import nbattn
from nbattn import Mask
from nbattn.backends import families
from nbattn.backends.cuda import meaning as cuda_meaning
from nbattn.packages import install_triton
from nbattn.planner import devices, notices, planner
from nbattn.program.device import DEVICES
from nbattn.program.limits import Reason

MASK = Mask.neighborhood((7, 7))
LARGE = (8, 56, 56, 2, 32)


@pytest.fixture(autouse=True)
def nothing_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_GIVEN", set())
    planner.forget()


def without_packages(name: str) -> Any:
    return replace(DEVICES[name], providers=())


def told(name: str, mask: Mask = MASK, shape: tuple[int, ...] = LARGE, **options: Any) -> list[str]:
    """The warnings of a new plan for a device without optional packages."""
    options = {"device": without_packages(name), "dtype": "float32"} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notices.tell(nbattn.plan(mask, shape, **options))
    assert all(one.category is UserWarning and one.filename == __file__ for one in caught)
    return [str(one.message) for one in caught]


@pytest.mark.parametrize(
    ("name", "dtype", "text"),
    [
        ("sm_90", "bfloat16", "CuPy and NVRTC are missing. cuda/window+mma would be "),
        ("sm_75", "float32", "CuPy and NVRTC are missing. cuda/window+simt would be "),
        ("cpu", "float32", "a C++ compiler is missing. native/window would be "),
    ],
    ids=["mma", "simt", "native"],
)
def test_the_tile_loop_for_want_of_a_package_is_told_once(name: str, dtype: str, text: str) -> None:
    (message,) = told(name, dtype=dtype)
    package = "c++" if name == "cpu" else "cupy"
    assert message.startswith(f"nbattn computes {MASK!r} by its loop over tiles in plain torch, ")
    assert text in message
    assert message.endswith(families.install(package))
    plans = [
        nbattn.plan(MASK, LARGE, dtype=dtype, device=device)
        for device in (without_packages(name), DEVICES[name])
    ]
    slow, fast = (plan.chosen.cost.estimate for plan in plans if plan.chosen.cost)
    assert f"would be {slow / fast:.3g}x as fast, by estimates" in message
    assert told(name, shape=(8, 28, 28, 2, 32), dtype=dtype) == []


@pytest.mark.parametrize("name", ["gfx942", "gfx1100", "xe"])
def test_the_tile_loop_on_gpus_of_others_is_for_want_of_triton(name: str) -> None:
    (message,) = told(name, dtype="bfloat16")
    start = f"nbattn computes {MASK!r} by its loop over tiles in plain torch, because Triton is"
    assert message.startswith(f"{start} missing. triton/window would be ")
    assert message.endswith(f"x as fast, by estimates: {install_triton(DEVICES[name].kind)}")
    assert told(name, device=DEVICES[name]) == []


@pytest.mark.parametrize("name", ["sm_90", "rtx_4090"])
def test_triton_on_nvidia_is_told_of_the_faster_kernels(name: str) -> None:
    """Not where they are, nor where Triton was asked for."""
    here = replace(DEVICES[name], providers=("triton",))
    assert told(name, device=here, backend="triton") == []
    (message,) = told(name, dtype="bfloat16", device=here)
    start = f"nbattn computes {MASK!r} by its Triton kernels, because CuPy and NVRTC are missing."
    assert message.startswith(f"{start} cuda/window+mma would be ")
    assert message.endswith(families.install("cupy"))
    assert told(name, dtype="bfloat16", device=here) == []  # once
    assert len(told(name, dtype="bfloat16")) == 1  # but of the tile loop, too
    assert told(name, device=DEVICES[name]) == []


def test_the_first_package_that_helps_is_the_only_one_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda_meaning, "absent", lambda needs: [Reason("device", "no")])
    (message,) = told("sm_90", dtype="bfloat16")
    assert "because Triton is missing. triton/window would be" in message


@pytest.mark.parametrize(
    ("name", "mask", "options"),
    [
        ("sm_90", MASK, {"backend": "tiled"}),  # was requested
        ("sm_90", MASK, {"device": DEVICES["sm_90"]}),  # has the packages, runs other kernels
        ("sm_90", MASK, {"device": DEVICES["sm_90"], "require": ("tiled",)}),
        ("sm_90", MASK, {"require": ("tiled",)}),  # the packages would change nothing
        ("sm_90", Mask.full(2), {}),  # another backend runs
    ],
)
def test_other_plans_are_not_told(name: str, mask: Mask, options: dict[str, Any]) -> None:
    assert told(name, mask, **options) == []


def test_a_package_that_gives_little_is_not_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "_WORTH", 1e9)
    assert told("sm_90") == []


def test_a_call_warns_at_its_own_line_and_later_calls_plan_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(families, "installed", lambda kind: ())
    devices._data.cache_clear()
    query = torch.randn(1, 32, 32, 2, 16)
    layer = nbattn.NeighborhoodAttention(32, 2, MASK)
    try:
        with pytest.warns(UserWarning, match=r"a C\+\+ compiler is missing") as caught:
            layer(torch.randn(1, 32, 32, 32))
        assert [one.filename for one in caught] == [__file__]
        monkeypatch.setattr(notices, "_gain", None)  # would fail
        for size in (32, 32, 24):
            nbattn.attention(query[:, :size], query[:, :size], query[:, :size], MASK)
    finally:
        devices._data.cache_clear()
        planner.forget()


# Logging


def test_each_new_call_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "nbattn")
    query = torch.randn(1, 9, 2, 8, requires_grad=True)
    mask = Mask.sliding_window(3)
    for _ in range(3):
        nbattn.attention(query, query, query, mask).sum().backward()
        nbattn.attention(query, query, query, mask, backend="tiled")
        with FlopCounterMode(display=False):  # by the operator
            nbattn.attention(*[query.detach()] * 3, mask, backend="tiled")
    lines = [record.getMessage() for record in caplog.records if record.name == "nbattn"]
    plans = [
        nbattn.plan(mask, query.shape, dtype="float32", device="cpu", training=True),
        nbattn.plan(
            mask, query.shape, dtype="float32", device="cpu", backend="tiled", training=True
        ),
        nbattn.plan(mask, query.shape, dtype="float32", device="cpu", backend="tiled"),
    ]
    assert lines == [f"{p.chosen.name}: {p.chosen.cost}, for {p.request!r}" for p in plans]
    assert not any(isinstance(handler, logging.StreamHandler) for handler in notices.LOG.handlers)


def test_a_candidate_that_runs_instead_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = nbattn.plan(MASK, LARGE, dtype="float32", device="cpu")
    other = plan.candidates[1]
    notices.tell_of_another(plan, other, "because")  # logging is off
    caplog.set_level(logging.DEBUG, "nbattn")
    for candidate in (plan.chosen, other, other):
        notices.tell_of_another(plan, candidate, "because")
    assert caplog.messages == [f"{other.name} instead of {plan.chosen.name}: because"]
