"""Tests of requests: the arguments that reach them, their defaults and legal names."""

from typing import Any

import pytest
import torch
from small_requests import request_for

import nbattn
from nbattn import Axis, InputError, Mask
from nbattn.program import device
from nbattn.program.request import Request

# Requests


def test_every_argument_of_plan_reaches_the_request() -> None:
    plan = nbattn.plan(
        Mask(Axis(1, 1, align=0), Axis(2, 2, align=0)),
        (2, 5, 6, 4, 16),
        (2, 7, 8, 2, 16),
        value_dim=24,
        dtype=torch.float16,
        device="sm_80",
        training=True,
        backend="tiled",
        require=["tile"],
        forbid=["sdpa"],
        return_lse=True,
        extra_keys=3,
        softcap=2.0,
        sink=True,
        key_range=True,
        deterministic=True,
        packed=True,
    )
    assert plan.request == Request(
        mask=Mask(Axis(1, 1, align=0), Axis(2, 2, align=0)),
        batch=2,
        query_space=(5, 6),
        key_space=(7, 8),
        heads=4,
        kv_heads=2,
        head_dim=16,
        value_dim=24,
        dtype="float16",
        device=device.DEVICES["sm_80"],
        layout="packed",
        training=True,
        deterministic=True,
        return_lse=True,
        extra_keys=3,
        softcap=True,
        sink=True,
        key_range=True,
        backend="tiled",
        require=("tile",),
        forbid=("sdpa",),
    )


def test_defaults_of_plan() -> None:
    request = nbattn.plan(Mask.causal(), (2, 5, 4, 16), device="cpu").request
    assert (request.key_space, request.kv_heads, request.value_dim) == ((5,), 4, 16)
    assert (request.dtype, request.layout, request.backend) == ("bfloat16", "contiguous", "auto")
    flags = ("training", "deterministic", "return_lse", "softcap", "sink", "key_range")
    assert not any(getattr(request, name) for name in flags)
    assert (request.extra_keys, request.require, request.forbid) == (0, (), ())


def test_deterministic_is_the_switch_of_torch_unless_given() -> None:
    shape = (1, 64, 2, 16)

    def asked(**named: Any) -> bool:
        return nbattn.plan(Mask.causal(), shape, device="sm_90", **named).request.deterministic

    assert [asked(), asked(deterministic=True), asked(deterministic=False)] == [False, True, False]
    torch.use_deterministic_algorithms(True)
    try:
        assert [asked(), asked(deterministic=True), asked(deterministic=False)] == [
            True,
            True,
            False,
        ]
        training = nbattn.plan(Mask.causal(), shape, device="sm_90", training=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert training.chosen.backend == "flash:aten"
    free = nbattn.plan(Mask.causal(), shape, device="sm_90", training=True)
    assert free.chosen.backend == "sdpa"


@pytest.mark.parametrize(("name", "value"), [("layout", "rows"), ("dtype", "int8")])
def test_unknown_layouts_and_dtypes_are_refused(name: str, value: str) -> None:
    with pytest.raises(InputError, match=f"{name}='{value}' is not known: one of"):
        request_for(Mask.causal(), 4, **{name: value})
