"""Tests on a GPU that each PTX wrapper gives the same bits as its counterpart in the emulator."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulator import build
from emulator.launcher import Launcher
from emulator.primitives import numbers
from torch import Tensor

from nbattn.kernels import launch, sources
from nbattn.kernels.variant import Variant

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(build.missing() is not None, reason=str(build.missing())),
    pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing())),
]
SHARED = 1024
DeviceAndEmulator = Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]]


@pytest.fixture
def on_device_and_in_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceAndEmulator:
    """Runs an entry of `primitives.cu` on the device and in the emulator: outputs of both."""
    for file in [*sources.directory().iterdir(), build.HERE / "primitives.cu"]:
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(sources, "directory", lambda: tmp_path)

    def run(
        entry: str, *, threads: int = 32, blocks: int = 1, **tensors: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        variant = Variant("primitives.cu", entry, (), threads, SHARED)
        on_device = {name: tensor.cuda() for name, tensor in tensors.items()}
        launch.launcher().launch(variant, blocks, on_device, numbers())
        torch.cuda.synchronize()
        Launcher("lazy", folder=build.HERE).launch(variant, blocks, tensors, numbers())
        written = {name: t.cpu() for name, t in on_device.items() if name in ("out", "lse")}
        return written, {name: tensors[name] for name in written}

    return run


def same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.view(torch.uint8), expected[name].view(torch.uint8)), name


def random_bits(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def test_ldmatrix_on_a_gpu(on_device_and_in_emulator: DeviceAndEmulator):
    torch.manual_seed(0)
    out = torch.zeros(2, 4, 32, dtype=torch.int32)
    same_bits(*on_device_and_in_emulator("ldmatrix", query=random_bits(32, 4), out=out))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_mma_fragments(on_device_and_in_emulator: DeviceAndEmulator, dtype: torch.dtype, seed: int):
    """Small integers, so that every order of the sums gives the same bits."""
    torch.manual_seed(seed)
    a, b = (torch.randint(-8, 9, (32, n)).to(dtype) for n in (8, 4))
    entry = "multiply_half" if dtype == torch.float16 else "multiply_bfloat16"
    c = torch.randint(-64, 65, (32, 4)).float()
    same_bits(*on_device_and_in_emulator(entry, query=a, key=b, value=c, out=torch.zeros(32, 4)))


@pytest.mark.parametrize("rows", [0, 1, 17, 33, 64])
def test_copies_fill_with_zeros_on_a_gpu(on_device_and_in_emulator: DeviceAndEmulator, rows: int):
    torch.manual_seed(0)
    key = torch.tensor([rows], dtype=torch.int32)
    query, out = torch.randn(64, 4), torch.full((64, 4), float("nan"))
    same_bits(*on_device_and_in_emulator("copies", threads=64, query=query, key=key, out=out))


@pytest.mark.parametrize("width", [32, 16, 4])
@pytest.mark.parametrize("argument", [0, 1, 3, 16, 31])
def test_shuffles_on_a_gpu(on_device_and_in_emulator: DeviceAndEmulator, argument: int, width: int):
    torch.manual_seed(0)
    key = torch.tensor([argument, width], dtype=torch.int32)
    out = torch.zeros(4, 64, dtype=torch.float64)
    query = torch.randn(64, dtype=torch.float64)
    same_bits(
        *on_device_and_in_emulator("shuffle_double", threads=64, query=query, key=key, out=out)
    )


def test_roundings_and_powers_of_two(on_device_and_in_emulator: DeviceAndEmulator):
    """Roundings to the bit; 2^x and 1 / x within 2 units in the last place, as PTX promises."""
    x = torch.cat([torch.linspace(-30, 30, 250), torch.tensor([0.0, -0.0, 127.0, -150.0, 1e-30])])
    lse = torch.zeros(2, 255, dtype=torch.int32)
    found, expected = on_device_and_in_emulator(
        "arithmetic", threads=255, query=x, out=torch.zeros(2, 255), lse=lse
    )
    assert torch.equal(found["lse"], expected["lse"])
    assert torch.allclose(found["out"], expected["out"], rtol=2.0**-22, atol=0)
