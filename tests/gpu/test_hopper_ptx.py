"""Tests on a GPU of compute capability 9.0 that each PTX wrapper of sm_90a gives the same bits as
its counterpart in the emulator.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulator import build, hopper_primitives
from emulator.hopper_primitives import DTYPES, SWIZZLES, VALUES, Case
from emulator.launcher import Launcher

from nbattn.kernels import launch, sources
from nbattn.kernels.variant import Variant


def other_device() -> str | None:
    """Why these tests cannot run; None if they can."""
    for missing in (build.missing(), launch.missing()):
        if missing is not None:
            return missing
    if not torch.cuda.is_available():
        return "no CUDA device"
    capability = torch.cuda.get_device_capability()
    return None if capability == (9, 0) else f"sm_90a is for 9.0, the device has {capability}"


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(other_device() is not None, reason=str(other_device())),
]
Compare = Callable[[Case], None]


@pytest.fixture
def same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Runs a kernel of `hopper_primitives.cu` on the device and in the emulator."""
    for file in [*sources.directory().iterdir(), build.HERE / "hopper_primitives.cu"]:
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(sources, "directory", lambda: tmp_path)

    def run(case: Case) -> None:
        given = case.launched
        variant = Variant("hopper_primitives.cu", given.entry, (), given.threads, given.shared)
        on_device = {name: tensor.cuda() for name, tensor in given.tensors.items()}
        launch.launcher().launch(variant, 1, on_device, given.numbers, given.maps)
        torch.cuda.synchronize()
        emulator = Launcher("lazy", folder=build.HERE)
        emulator.launch(variant, 1, given.tensors, given.numbers, given.maps)
        found, expected = on_device[case.output].cpu(), given.tensors[case.output]
        assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))

    return run


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("name", hopper_primitives.BOXES)
def test_boxes(name: str, swizzle: int, same_bits: Compare):
    for case in hopper_primitives.boxes(name, swizzle):
        same_bits(case)


def test_phases_and_bytes_of_barriers(same_bits: Compare):
    same_bits(hopper_primitives.rounds(7))


def test_arrivals_after_copies(same_bits: Compare):
    same_bits(hopper_primitives.copies_arrive(5))


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("columns", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_shared_memory(dtype: str, columns: int, swizzle: int, same_bits: Compare):
    same_bits(hopper_primitives.shared_products(dtype, columns, swizzle))


@pytest.mark.parametrize(("columns", "swizzle"), VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_registers(dtype: str, columns: int, swizzle: int, same_bits: Compare):
    same_bits(hopper_primitives.register_products(dtype, columns, swizzle))


def test_stmatrix(same_bits: Compare):
    same_bits(hopper_primitives.stmatrix())


def test_turns(same_bits: Compare):
    same_bits(hopper_primitives.turns(4))


def test_registers_are_handed_over(same_bits: Compare):
    same_bits(hopper_primitives.registers())
