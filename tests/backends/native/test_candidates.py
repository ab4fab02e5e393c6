"""Tests of when the native kernels are a candidate, and of the reasons when they are not."""

from dataclasses import replace

import pytest
from small_requests import request_for

import nbattn
from nbattn import Axis, BackendError, Mask
from nbattn.backends import families
from nbattn.backends.native import candidates
from nbattn.geometry import Held
from nbattn.planner import devices
from nbattn.program import device, limits
from nbattn.program.candidate import Candidate
from nbattn.program.request import Request

CPU = device.DEVICES["cpu"]


def offered(request: Request) -> Candidate:
    (candidate,) = candidates.candidates(request, request.axes())
    return candidate


def test_one_candidate_with_a_kernel_per_pass() -> None:
    request = request_for(Mask.neighborhood((5, 5)), (12, 14))
    inference, training = offered(request), offered(replace(request, training=True))
    assert inference.name == training.name == "native/window"
    assert inference.reasons == ()
    halves = offered(replace(request, training=True, dtype="bfloat16"))
    for candidate, kernels in (
        (inference, set()),
        (training, {"grad_all"}),
        (halves, {"grad_query", "grad_key"}),
    ):
        assert candidate.program is not None
        (call,) = candidate.program.calls
        assert call.query.covers((12, 14))
        names = ("grad_query", "grad_key", "grad_all")
        assert {name for name in names if getattr(call.arguments, name) is not None} == kernels


def test_tables_that_are_too_large_are_refused() -> None:
    for left, entries in ((127, 511 * 513), (128, 513**2)):
        mask = Mask(Axis(left, 128), Axis(128, 128))
        request = replace(request_for(mask, (16, 16)), relative_bias=True)
        reasons = [reason.text for reason in offered(request).reasons]
        refusal = f"takes tables of 262144 entries a head, not {entries}"
        assert reasons == ([refusal] if entries > 262144 else [])


def test_without_a_compiler_it_is_refused_with_the_way_to_get_one() -> None:
    bare = replace(CPU, providers=())
    with pytest.raises(BackendError) as error:
        nbattn.plan(Mask.neighborhood(5), (1, 64, 2, 16), device=bare, backend="native")
    assert error.value.problem.splitlines() == [
        "native cannot run this:",
        "  native/window: needs a C++ compiler, and found none: g++ 10 or clang 14 or newer by the "
        'system\'s package manager, or pip install "ziglang>=0.13"',
    ]
    plan = nbattn.plan(Mask.neighborhood(5), (1, 64, 2, 16), device=bare)
    assert plan.chosen.backend != "native"
    assert 'pip install "ziglang>=0.13": native/window' in plan.explain()
    assert "assumes a C++ compiler" not in plan.explain()
    assert (
        "assumes a C++ compiler"
        in nbattn.plan(Mask.neighborhood(5), (1, 64, 2, 16), device="cpu").explain()
    )


def test_this_machine_has_it_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for missing, providers in ((None, ("c++",)), ("no compiler", ())):
        monkeypatch.setattr(families, "_function", lambda _, missing=missing: lambda: missing)
        devices._data.cache_clear()
        try:
            assert devices.device_info(torch.device("cpu")).providers == providers
            assert devices.device_info("cpu").providers == ("c++",)
        finally:
            devices._data.cache_clear()


def test_other_devices_and_sizes_are_refused() -> None:
    request = request_for(Mask.neighborhood(5), 64)
    gpu = offered(replace(request, device=device.DEVICES["sm_90"]))
    assert [reason.text for reason in gpu.reasons] == ["runs on cpu, not on sm_90"]
    own = device.other("mps")
    assert [r.limit for r in offered(replace(request, device=own)).reasons] == ["device"]
    long = request_for(Mask.causal("bottom-right"), 1, limits.LARGEST + 1)
    assert [r.limit for r in offered(long).reasons] == ["size"]
    assert offered(request_for(Mask.causal("bottom-right"), 2, limits.LARGEST)).reasons == ()
    wide = Axis(1, 1, dilation=limits.LARGEST_DILATION + 1)
    (reason,) = offered(request_for(Mask(wide), 64)).reasons
    assert reason.text == "takes dilation up to 8388608 on axis 0, not 8388609"


def test_a_part_of_a_long_axis_is_refused_by_the_whole_length() -> None:
    held = Held(0, limits.LARGEST + 1, 0, limits.LARGEST + 1)
    request = request_for(Mask.causal(), 4, 4, held=(held,))
    assert [reason.limit for reason in offered(request).reasons] == ["size", "size"]


def test_another_backend_is_requested() -> None:
    candidate = offered(request_for(Mask.neighborhood(5), 64, backend="tiled"))
    assert candidate.program is None
    assert candidate.reasons == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_it_takes_all_that_attention_takes(dtype: str) -> None:
    every = {
        "extra_keys": 3, "softcap": True, "sink": True, "key_range": True, "return_lse": True,
        "training": True, "deterministic": True, "value_dim": 5, "layout": "strided",
    }  # fmt: skip
    request = request_for(Mask(Axis(3, 0, prefix=2), Axis(2, 2)), (9, 8), dtype=dtype, **every)
    assert offered(request).reasons == ()
