"""Tests of the fixes of refused requests: the fewest changes, tried, with the backend kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import nbattn
from nbattn import BackendError, Mask
from nbattn.backends import families
from nbattn.program.device import named

SHAPE = (1, 64, 8, 64)
FA4 = families.INSTALL["flash-attn-4"]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def fix_of(mask: Mask | None = None, shape: tuple[int, ...] = SHAPE, **options: Any) -> str:
    with pytest.raises(BackendError) as caught:
        nbattn.plan(mask or Mask.sliding_window(3), shape, **options)
    return caught.value.fix


def test_one_change_where_one_is_enough() -> None:
    assert fix_of(device="sm_90", dtype="float32", backend="flash") == (
        "query.to(torch.bfloat16), key.to(torch.bfloat16), value.to(torch.bfloat16)"
        '  # in a plan: dtype="bfloat16"'
    )
    assert fix_of(device="sm_90", backend="flash:fa4") == FA4
    assert fix_of(device="sm_90", backend="cuda", forbid=("window",)) == "forbid=()"


def test_two_changes_in_one_line() -> None:
    fix = fix_of(device="sm_90", dtype="float32", backend="flash:fa4")
    assert fix.startswith(f"{FA4}; then query.to(torch.bfloat16), ")


def test_float64_is_narrowed_no_further_than_needed() -> None:
    bare = replace(named("sm_90"), providers=("natten",))
    fix = fix_of(Mask.neighborhood(3), device=bare, dtype="float64", backend="natten")
    assert fix.startswith("query.to(torch.float32), ")


def test_tensors_on_the_wrong_device_are_moved() -> None:
    moved = "query.cuda(), key.cuda(), value.cuda()"
    fix = fix_of(device="cpu", dtype="float32", backend="cuda")
    assert fix.endswith(f'; or, with a GPU: {moved}  # in a plan: device="sm_90"')
    assert fix.startswith('backend="auto", which takes ')
    back = fix_of(device="sm_90", backend="native")
    assert back == 'query.cpu(), key.cpu(), value.cpu()  # in a plan: device="cpu"'


def test_a_gpu_that_is_too_old_is_not_repaired_by_a_round_trip() -> None:
    fix = fix_of(device="sm_75", backend="flash")
    assert fix.startswith('backend="auto", which takes ')


def test_kernels_of_nvidia_are_not_repaired_on_gpus_of_others() -> None:
    for name in ("gfx942", "xe"):
        for backend in ("cuda", "flash", "natten"):
            fix = fix_of(device=name, backend=backend)
            assert fix == f'backend="auto", which takes {chosen(SHAPE, device=name)}'
        back = fix_of(device=name, backend="native")
        assert back == 'query.cpu(), key.cpu(), value.cpu()  # in a plan: device="cpu"'


def test_with_a_gpu_tensors_are_moved_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbattn.planner import devices

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    gpu = named("sm_80")
    monkeypatch.setattr(devices, "device_info", lambda device: device or gpu)
    request = nbattn.plan(Mask.sliding_window(3), SHAPE, device=named("cpu")).request
    with pytest.raises(BackendError) as caught:
        nbattn.plan(Mask.sliding_window(3), SHAPE, device=request.device, backend="cuda")
    assert caught.value.fix == (
        'query.cuda(), key.cuda(), value.cuda()  # in a plan: device="sm_80"'
    )


def test_with_a_gpu_of_intel_tensors_are_moved_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbattn.planner import devices, gpus

    request = nbattn.plan(Mask.sliding_window(3), SHAPE, device=named("cpu")).request
    monkeypatch.setattr(gpus, "kind", lambda: "xpu")
    monkeypatch.setattr(devices, "device_info", lambda device: device or named("xe"))
    assert fix_of(device=request.device, backend="triton") == (
        'query.xpu(), key.xpu(), value.xpu()  # in a plan: device="xe"'
    )


def test_triton_is_installed_for_the_gpu() -> None:
    """An old one is replaced. PyPI's has no compiler for Intel's GPUs."""
    for name, fix in (
        ("gfx942", 'pip install "triton>=3.6"'),
        ("xe", "pip install -U torch --index-url https://download.pytorch.org/whl/xpu"),
    ):
        bare = replace(named(name), providers=())
        assert fix_of(device=bare, backend="triton") == fix


def test_what_no_change_repairs_has_the_choice_of_auto() -> None:
    fix = fix_of(device="sm_90", backend="sdpa", shape=(1, 8192, 8, 64))
    assert fix == f'backend="auto", which takes {chosen(shape=(1, 8192, 8, 64), device="sm_90")}'
    fix = fix_of(device="sm_90", backend="sdpa", softcap=2.0, forbid=("cuda",))
    assert fix == 'backend="auto", which takes triton/window'


def test_names_are_left_out_one_by_one() -> None:
    device = named("sm_90")
    assert fix_of(device=device, require=("mma", "tile")).startswith("require=('mma',), ")
    every = tuple(name for name in families.BACKENDS[1:] if ":" not in name)
    fix = fix_of(device=device, forbid=every)
    assert fix.startswith(
        "forbid=('reference', 'sdpa', 'tiled', 'flash', 'flash-model', 'cuda', 'native', "
    )
    fix = fix_of(device=device, require=("mma", "tile", "split"), dtype="float64")
    assert fix.startswith("require=(), forbid=(), which takes ")


def chosen(shape: tuple[int, ...], **options: Any) -> str:
    return nbattn.plan(Mask.sliding_window(3), shape, **options).chosen.name
