"""Tests on a GPU of what is added to scores, ranges of extra keys, and packed grids: output,
logsumexp and gradients of the CUDA and the Triton kernels against float64 on the CPU.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import nbattn
from nbattn import Axis, Mask
from nbattn.backends.triton import launch as triton_launch
from nbattn.kernels import launch as cuda_launch

pytestmark = pytest.mark.gpu
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(why is not None, reason=str(why)))
    for name, why in (("cuda", cuda_launch.missing()), ("triton", triton_launch.missing()))
]
DEVICE = "cuda"
HEADS, KEY_HEADS, DIM, EXTRA = 4, 2, 32, 5
# Roundings of the largest number; which keys are read is what the supports show.
MOST = {torch.bfloat16: 3, torch.float32: 40}
MASKS: dict[str, tuple[Mask, tuple[int, ...]]] = {
    "a line": (Mask.neighborhood(9, dilation=2), (75,)),
    "a plane": (Mask.neighborhood((7, 5)), (13, 18)),
    "a circle": (Mask(Axis(3, 2, border="wrap")), (40,)),
    "a causal line": (Mask.sliding_window(20), (70,)),
}
GRIDS = [(5, 9), (16, 3), (0, 4), (8, 8)]


def added(mask: Mask, space: tuple[int, ...], samples: int) -> dict[str, Tensor]:
    """The tensors beside q, k and v, in float64: slopes where the mask has them."""
    sizes = [2 * (axis.left or 0) + 2 * (axis.right or 0) + 1 for axis in mask.axes]
    made = {
        "extra_key": torch.randn(samples, EXTRA, KEY_HEADS, DIM, dtype=torch.float64),
        "extra_value": torch.randn(samples, EXTRA, KEY_HEADS, DIM, dtype=torch.float64),
        "relative_bias": torch.randn(HEADS, *sizes, dtype=torch.float64),
        "extra_range": torch.tensor([[n % 3, EXTRA - n % 2] for n in range(samples)]),
    }
    if len(space) == 1 and mask.axes[0].border != "wrap":
        made["alibi_slopes"] = torch.rand(samples, HEADS)
    return made


def found(mask: Mask, made: dict[str, Tensor], backend: str, **named: Any) -> list[Tensor]:
    """Output, logsumexp and the gradients of all floating tensors but slopes."""
    given = {
        name: t.detach().requires_grad_(t.is_floating_point() and name != "alibi_slopes")
        for name, t in made.items()
    }
    out, lse = nbattn.attention(**given, mask=mask, backend=backend, return_lse=True, **named)
    loss = (out * torch.arange(out.numel(), device=out.device).view(out.shape).sin()).sum()
    leaves = [t for t in given.values() if t.requires_grad]
    finite = torch.where(lse.isinf(), 0.0, lse)
    return [out, lse, *torch.autograd.grad(loss + finite.sum(), leaves)]


def on_device(made: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    kept = ("alibi_slopes", "extra_range")
    return {n: (t if n in kept else t.to(dtype)).to(DEVICE) for n, t in made.items()}


def check(
    mask: Mask, made: dict[str, Tensor], dtype: torch.dtype, backend: str, **named: Any
) -> None:
    """Within a few roundings of the largest number of each result."""
    rounded = {n: t.to(dtype).double() if t.dtype == torch.float64 else t for n, t in made.items()}
    wanted = found(mask, rounded, "reference", **named)
    results = found(mask, on_device(made, dtype), backend, **named)
    again = found(mask, on_device(made, dtype), backend, **named)
    for one, other, exact in zip(results, again, wanted, strict=True):
        assert torch.equal(one, other)  # the same bits
        finite = ~exact.isinf()
        assert torch.equal(one.isinf().cpu(), ~finite)
        most = exact[finite].abs().max().clamp_min(1e-3)
        error = (one.double().cpu() - exact)[finite].abs().max() / most
        assert error < MOST[dtype] * torch.finfo(dtype).eps, float(error)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_what_is_added_to_scores(name: str, dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    mask, space = MASKS[name]
    shapes = {"query": HEADS, "key": KEY_HEADS, "value": KEY_HEADS}
    made = {n: torch.randn(2, *space, h, DIM, dtype=torch.float64) for n, h in shapes.items()}
    check(mask, made | added(mask, space, 2), dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_packed_grids(dtype: torch.dtype, backend: str) -> None:
    torch.manual_seed(0)
    mask = Mask.neighborhood((3, 5))
    tokens = sum(height * width for height, width in GRIDS)
    shapes = {"query": HEADS, "key": KEY_HEADS, "value": KEY_HEADS}
    made = {n: torch.randn(tokens, h, DIM, dtype=torch.float64) for n, h in shapes.items()}
    check(mask, made | added(mask, GRIDS[0], len(GRIDS)), dtype, backend, grids=GRIDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_supports(name: str, dtype: torch.dtype, backend: str) -> None:
    """Equal weights of one-hot values: the keys that are read, without a tolerance."""
    mask, space = MASKS[name]
    made = on_device(added(mask, space, 1), dtype)
    zeros = {n: torch.zeros_like(made[n]) for n in ("relative_bias", "alibi_slopes") if n in made}
    count = math.prod(space)
    values = torch.eye(count, -(-count // 8) * 8, dtype=dtype, device=DEVICE)
    value = values.view(1, *space, 1, -1)
    query = torch.zeros(1, *space, HEADS, DIM, dtype=dtype, device=DEVICE)
    key = query[..., :1, :].clone()
    out = nbattn.attention(query, key, value, mask, backend=backend, **zeros)
    read = out.flatten(1, -3)[0, ..., :count] > 0
    allowed = torch.from_numpy(mask.dense(space))
    for head in range(HEADS):
        assert torch.equal(read[:, head].cpu(), allowed)
