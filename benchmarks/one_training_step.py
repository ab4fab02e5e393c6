"""Run both passes of the FLUX workload once on a GPU, for a profiler around the process."""

from __future__ import annotations

import torch
from gpu_tiles import workloads

import nbattn


def main() -> None:
    """Run without a warm-up: a profiler that replays each kernel needs none."""
    load = next(iter(workloads()))
    torch.manual_seed(0)
    *given, grad = (torch.randn(load.shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    leaves = [t.requires_grad_() for t in given]
    out = nbattn.attention(*leaves, load.mask, backend="cuda")
    torch.autograd.grad(out, leaves, grad)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
