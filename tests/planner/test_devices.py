"""Tests of the devices of this machine, and of devices without data."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nbattn
from nbattn import Axis, InputError, Mask
from nbattn.backends import families
from nbattn.planner import cost_table, devices, gpus
from nbattn.program import device


class Gpus:
    """GPUs as torch shows them, in place of this machine's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str, *models: str) -> None:
        self.capabilities: dict[int, tuple[int, int]] = {}
        self.architectures: dict[int, str] = {}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
        monkeypatch.setattr(torch.xpu, "is_available", lambda: kind == "xpu")
        module = torch.get_device_module(kind)
        answers: dict[str, Any] = {
            "device_count": lambda: len(models),
            "get_device_name": lambda gpu: models[gpu.index or 0],
            "get_device_capability": lambda gpu: self.capabilities[gpu.index or 0],
            "get_device_properties": lambda gpu: SimpleNamespace(
                gcnArchName=self.architectures[gpu.index or 0]
            ),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(module, name, answer)
        monkeypatch.setattr(families, "installed", lambda kind: (f"of {kind}",))


@pytest.fixture(autouse=True)
def no_device_is_remembered() -> Iterator[None]:
    devices._data.cache_clear()
    yield
    devices._data.cache_clear()


@pytest.mark.parametrize("kind", ["mps", "meta"])
def test_explanations_report_a_device_without_data(kind: str) -> None:
    for given_ in (kind, torch.device(kind)):
        plan = nbattn.plan(Mask(Axis(1, 1)), (1, 64, 2, 16), device=given_)
        assert (plan.request.device.kind, plan.request.device.name) == (kind, kind)
        assert "no data" in plan.request.device.source
        assert "no data" in plan.explain()
        assert plan.verify()


def test_hip_is_no_device_of_torch_for_rocm() -> None:
    """torch makes such a device, which nothing can be put on: AMD's GPUs are "cuda"."""
    with pytest.raises(InputError, match="device='hip' is not known") as caught:
        nbattn.plan(Mask(Axis(1, 1)), (1, 64, 2, 16), device="hip")
    assert caught.value.fix == 'device="gfx942"'


def test_the_default_device_is_this_machine() -> None:
    kind = gpus.kind() or "cpu"
    assert nbattn.plan(Mask.causal(), (1, 64, 2, 16)).request.device.kind == kind
    for given_ in ("cpu", torch.device("cpu"), device.DEVICES["cpu"]):
        plan = nbattn.plan(Mask.causal(), (1, 64, 2, 16), device=given_)
        assert plan.request.device is device.DEVICES["cpu"]


def test_a_gpu_of_this_machine_has_the_versions_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels of torch depend on them; a named device has assumed ones."""
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    hoppers = Gpus(monkeypatch, "cuda", "NVIDIA H100", "NVIDIA H100")
    hoppers.capabilities = {0: (9, 0), 1: (9, 0)}
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.7.1+git2b9"))
    here = devices.device_info("cuda")
    assert (here.name, here.torch, here.cudnn) == ("sm_90", (2, 9), 91002)
    assert here.triton == (3, 7)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)
    monkeypatch.delitem(sys.modules, "triton")
    there = devices.device_info("cuda:1")
    assert (there.cudnn, there.triton) == (0, device.TRITON)
    assert devices.device_info("sm_90") is device.DEVICES["sm_90"]
    assert here != device.DEVICES["sm_90"]
    assert cost_table._bare(here) in cost_table._devices("sm_90")  # measured times still count


def test_gpus_of_amd_go_by_their_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch calls them "cuda", and their capability is not one of NVIDIA's."""
    own = Gpus(monkeypatch, "cuda", "AMD Instinct MI300X", "AMD Radeon RX 7800 XT")
    own.capabilities = {0: (9, 4), 1: (11, 0)}
    own.architectures = {0: "gfx942:sramecc+:xnack-", 1: "gfx1101"}
    monkeypatch.setattr(torch.version, "hip", "7.0")
    first, second = devices.device_info(None), devices.device_info("cuda:1")
    assert (first.name, first.kind, first.vendor) == ("gfx942", "cuda", "amd")
    assert first.source == "AMD Instinct MI300X datasheet"
    assert (second.name, second.architecture) == ("gfx1100", "gfx1101")
    assert second.source.endswith(", used for gfx1101")
    assert first.providers == second.providers == ("of cuda",)
    assert devices.is_here(device.DEVICES["gfx942"])
    assert not devices.is_here(device.DEVICES["sm_90"])
    for name, info in (("gfx942", first), ("gfx1100", second)):
        assert cost_table._bare(info) in cost_table._devices(name)
    assert gpus.models("cuda", "gfx1100") == {"AMD Radeon RX 7800 XT"}
    assert gpus.models("cuda", "sm_90") == set()


def test_gpus_of_intel_are_taken_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpus(monkeypatch, "xpu", "Intel(R) Data Center GPU Max 1550", "Intel(R) Arc(TM) B580 Graphics")
    here, second = devices.device_info(None), devices.device_info("xpu:1")
    assert (here.name, here.kind, here.vendor) == ("xe", "xpu", "intel")
    assert here.source == device.DEVICES["xe"].source
    assert second.source == f"{here.source}, used for Intel(R) Arc(TM) B580 Graphics"
    assert here.providers == ("of xpu",)
    assert gpus.models("xpu", "xe") == {
        "Intel(R) Data Center GPU Max 1550",
        "Intel(R) Arc(TM) B580 Graphics",
    }
    assert cost_table.fingerprint("xe") is None  # several models
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpus.kind() == "cuda"


def test_cards_far_from_their_capability_have_data_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"NVIDIA GeForce RTX {name}" for name in ("4090", "4090 Laptop GPU", "3090")]
    own = Gpus(monkeypatch, "cuda", *names)
    own.capabilities = {0: (8, 9), 1: (8, 9), 2: (8, 6)}
    found = [devices.device_info(f"cuda:{number}").name for number in range(3)]
    assert found == ["rtx_4090", "sm_89", "rtx_3090"]
    here = cost_table.fingerprint("sm_89")
    assert here is not None
    assert here.model == names[1]


@pytest.mark.parametrize(
    ("given", "problem", "fix"),
    [
        (
            "cuda:1",
            "device='cuda:1': this machine has no CUDA device.",
            'device="sm_90", which plans for an H100 without one',
        ),
        (
            "xpu",
            "device='xpu': this machine has no Intel GPU.",
            'device="xe", which plans for a Max 1550 without one',
        ),
    ],
)
def test_a_gpu_that_is_not_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: str, problem: str, fix: str
) -> None:
    Gpus(monkeypatch, "xpu" if given.startswith("cuda") else "cuda")
    with pytest.raises(InputError) as error:
        devices.device_info(given)
    assert error.value.problem == problem
    assert error.value.fix == f"{fix}; device=None is this machine's"


def test_an_unknown_name_has_the_gpu_of_this_machine_as_its_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Gpus(monkeypatch, "xpu", "Intel(R) Arc(TM) B580 Graphics")
    for given, fix in (("gpu", 'device="xpu"'), ("gfx1103", 'device="gfx1100"')):
        with pytest.raises(InputError) as error:
            devices.device_info(given)
        assert error.value.fix == fix
