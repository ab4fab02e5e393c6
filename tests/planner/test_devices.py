"""Tests of the devices of this machine, and of devices without data."""

import pytest
import torch

import nbattn
from nbattn import Axis, Mask
from nbattn.planner import cost_table, devices
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


def test_a_gpu_of_this_machine_has_the_versions_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels of torch depend on them; a named device has assumed ones."""
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    devices._data.cache_clear()
    try:
        here = devices.device_info("cuda")
        assert (here.name, here.torch, here.cudnn) == ("sm_90", (2, 9), 91002)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
        assert devices.device_info("cuda:1").cudnn == 0
        assert devices.device_info("sm_90") is device.DEVICES["sm_90"]
        assert here != device.DEVICES["sm_90"]
        assert cost_table._bare(here) in cost_table._devices("sm_90")  # measured times still count
    finally:
        devices._data.cache_clear()
