"""Both passes of one small problem on a GPU, for tools that watch a whole process.

`python small_attention.py FAMILY` (mma, simt, wgmma, triton) prints a line when both have run.
Inputs come from the CPU, and only the kernels of this project read them.
"""

from __future__ import annotations

import sys

import torch

import nbattn
from nbattn import Axis, Mask

DTYPES = {"mma": torch.bfloat16, "simt": torch.float32}
# Two runs of keys on the wrapped axis, partial tiles on both.
MASK, SPACE = Mask(Axis(5, causal=True), Axis(6, 6, border="wrap", dilation=2)), (11, 18)


def attend(family: str, device: str) -> list[torch.Tensor]:
    """Output and gradients, by the CUDA kernels with an instruction set or by Triton's."""
    torch.manual_seed(0)
    shape, dtype = (1, *SPACE, 2, 64), DTYPES.get(family, torch.bfloat16)
    *given, upward = (torch.randn(shape).to(dtype).to(device) for _ in range(4))
    leaves = [t.requires_grad_() for t in given]
    named = family == "triton"
    route = {"backend": family} if named else {"backend": "cuda", "require": (family,)}
    out = nbattn.attention(*leaves, MASK, **route)
    return [out, *torch.autograd.grad(out, leaves, upward)]


if __name__ == "__main__":
    for found in attend(sys.argv[1], "cuda"):
        assert found.cpu().isfinite().all()
    print(f"{sys.argv[1]}: forward and backward ran", flush=True)
