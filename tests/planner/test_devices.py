"""Tests of the devices of this machine, and of devices without data."""

import pytest
import torch

import nbattn
from nbattn import Axis, Mask
from nbattn.program import device


@pytest.mark.parametrize("kind", ["mps", "xpu", "meta"])
def test_explanations_report_a_device_without_data(kind: str) -> None:
    for given_ in (kind, torch.device(kind)):
        plan = nbattn.plan(Mask(Axis(1, 1)), (1, 64, 2, 16), device=given_)
        assert (plan.request.device.kind, plan.request.device.name) == (kind, kind)
        assert "no data" in plan.request.device.source
        assert "no data" in plan.explain()
        assert plan.verify()


def test_the_default_device_is_this_machine() -> None:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    assert nbattn.plan(Mask.causal(), (1, 64, 2, 16)).request.device.kind == kind
    for given_ in ("cpu", torch.device("cpu"), device.DEVICES["cpu"]):
        plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=given_)
        assert plan.request.device is device.DEVICES["cpu"]
