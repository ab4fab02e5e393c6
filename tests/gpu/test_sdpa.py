"""Tests on a GPU that torch's SDPA takes the kernel that a plan names."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

from nbattn.backends.dense import kernels
from nbattn.backends.dense.kernels import SdpaCall
from nbattn.planner import devices

Count = Callable[[str, int], None]
pytestmark = pytest.mark.gpu
# the members of torch's enumeration SDPBackend
CHOICES = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
SIZES = ((64, 64), (60, 60), (128, 128), (64, 32), (192, 128), (200, 200), (256, 256), (264, 264))
LENGTHS = ((256, 256), (256, 128), (128, 256), (1, 256), (256, 1))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
def test_torch_takes_the_kernel_of_the_plan(
    kind: str, dtype: torch.dtype, gradient: bool, cases: Count
) -> None:
    info = devices.device_info(torch.device("cuda"))
    for (head, value), (rows, keys), groups in product(SIZES, LENGTHS, (1, 4)):
        shapes = ((4, rows, head), (4 // groups, keys, head), (4 // groups, keys, value))
        arrays = [
            torch.zeros(2, *shape, dtype=dtype, device="cuda", requires_grad=gradient)
            for shape in shapes
        ]
        mask = torch.zeros(rows, keys, dtype=dtype, device="cuda") if kind == "masked" else None
        choice = torch._fused_sdp_choice(
            *arrays, mask, 0.0, kind == "causal", enable_gqa=groups > 1
        )
        call = SdpaCall(
            rows, keys, 4, 4 // groups, head, value, str(dtype).removeprefix("torch."),
            causal=kind == "causal", masked=kind == "masked", gradient=gradient,
        )  # fmt: skip
        assert CHOICES[choice] == kernels.taken(info, call), (info.versions, call)
        cases("gpu, kernels of SDPA", 1)
