"""A video model that is trained with its space cut over ranks: each has a rectangle of all frames.

Run it: `torchrun --nproc-per-node 4 examples/distributed_video.py`, on CPUs or GPUs, on any number
of ranks; `--steps 20` is shorter. It learns to remove noise from moving shapes, shows what every
rank holds and receives, and that the losses are those of one process with the whole video.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

import nbattn

BATCH, SPACE = 4, (6, 13, 19)  # frames, rows, columns: 2 x 2 ranks have 7 or 6 x 10 or 9 pixels
DIM, HEADS = 32, 4
NEAR = nbattn.Axis(3, 3, border="shift")
MASK = nbattn.Mask(nbattn.Axis(2, causal=True), NEAR, NEAR)  # two previous frames, 7 x 7 pixels
SHARD = (None, "rows", "columns")  # every rank has all frames
CHECKED = 3  # steps that are compared with one process

Attention = Callable[..., Tensor]  # nbattn.attention, or the one across ranks


class Block(nn.Module):
    """Attention to neighbours and to the text, then a perceptron per token.

    Args:
        attention: the function that computes it: all else is the same on any number of ranks.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.of_text = nn.Linear(DIM, 2 * DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Map this rank's part of `[B, T, Y, X, dim]`; every rank has the text `[B, E, dim]`."""
        first, second = self.norms
        query, key, value = self.qkv(first(x)).unflatten(-1, (3, HEADS, -1)).unbind(-3)
        extra_key, extra_value = self.of_text(text).unflatten(-1, (2, HEADS, -1)).unbind(-3)
        attended = self.attention(
            query, key, value, MASK, extra_key=extra_key, extra_value=extra_value
        )
        x = x + self.proj(attended.flatten(-2))
        return x + self.mlp(second(x))


class Denoiser(nn.Module):
    """Two blocks between a projection of pixels and one to them."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.pixels, self.words = nn.Linear(1, DIM), nn.Embedding(6, DIM)
        self.blocks = nn.ModuleList(Block(attention) for _ in range(2))
        self.out = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 1))

    def forward(self, video: Tensor, caption: Tensor) -> Tensor:
        """Return the video `[B, T, Y, X]` without its noise; the caption is `[B, E]` words."""
        x, text = self.pixels(video[..., None]), self.words(caption)
        for block in self.blocks:
            x = block(x, text)
        return self.out(x)[..., 0]


def moving_shapes(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Videos `[B, T, Y, X]` of a disc or a square that moves, with noise and without, and captions
    of two words: what it is, and to which quarter it moves.
    """
    draw = torch.Generator().manual_seed(seed)
    square = torch.randint(2, (BATCH,), generator=draw)
    quarter = torch.randint(4, (BATCH,), generator=draw)
    signs = torch.stack([quarter // 2, quarter % 2], 1) * 2 - 1
    start = torch.rand(BATCH, 2, generator=draw) * torch.tensor(SPACE[1:])
    speed = signs * (0.5 + torch.rand(BATCH, 2, generator=draw))
    time = torch.arange(SPACE[0])[:, None]
    centre = start[:, None] + time * speed[:, None]  # [B, T, 2]
    rows = torch.arange(SPACE[1])[:, None] - centre[..., :1, None]
    columns = torch.arange(SPACE[2]) - centre[..., 1:, None]
    far = torch.maximum(rows.abs(), columns.abs()), (rows**2 + columns**2).sqrt()
    clean = (torch.where(square[:, None, None, None] == 1, *far) < 3.5).float()
    noisy = clean + torch.randn(clean.shape, generator=draw)
    return noisy, clean, torch.stack([square, 2 + quarter], 1)


def own_part(whole: Tensor, mesh: DeviceMesh) -> Tensor:
    """This rank's part of `[B, T, Y, X]`; where data are large, a rank reads only this."""
    for axis, name in enumerate(SHARD, 1):
        if name is not None:
            chunks, at = whole.chunk(mesh[name].size(), axis), mesh.get_local_rank(name)
            whole = chunks[at] if at < len(chunks) else whole.narrow(axis, 0, 0)
    return whole


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, ...], ranks: int
) -> float:
    """Train on this rank's part of a batch; return the loss of the whole batch."""
    noisy, clean, caption = batch
    # Ranks have different numbers of pixels, so a mean of their means would be another loss: each
    # sums its own, and divides by the number of all.
    loss = ((model(noisy, caption) - clean) ** 2).sum() / (BATCH * SPACE[0] * SPACE[1] * SPACE[2])
    optimizer.zero_grad()
    loss.backward()
    total = loss.detach().clone()
    if ranks > 1:
        # The gradient of a parameter is the sum of all ranks' shares, as the loss is. DDP takes
        # their mean instead: under DDP multiply the loss by the number of ranks.
        parameters = list(model.parameters())
        shares = torch.cat([parameter.grad.flatten() for parameter in parameters])
        dist.all_reduce(shares)
        sums = shares.split([parameter.numel() for parameter in parameters])
        for parameter, summed in zip(parameters, sums, strict=True):
            parameter.grad.copy_(summed.view_as(parameter))
        dist.all_reduce(total)
    optimizer.step()
    return total.item()


def prepare() -> torch.device:
    """Start the process group: of torchrun's ranks, or of this process alone."""
    if "RANK" not in os.environ:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return torch.device("cpu")
    ours = int(os.environ["LOCAL_RANK"])
    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        dist.init_process_group("gloo")
        return torch.device("cpu")
    torch.cuda.set_device(ours)
    dist.init_process_group("nccl")
    return torch.device("cuda", ours)


def show_parts(rows: int, columns: int) -> None:
    """Print what every rank holds, and what travels in one attention."""
    halo = nbattn.distributed.halo(MASK, SPACE, (1, rows, columns))
    each = BATCH * 2 * DIM * 4  # bytes of a key and its value, of all heads and samples
    print(f"videos {' x '.join(map(str, SPACE))} on 1 x {rows} x {columns} ranks")
    for number in range(halo.ranks):
        rank = halo.rank(number)
        box = ", ".join(f"{a}:{b}" for a, b in rank.own)
        print(
            f"rank {number} has [{box}], {rank.keys} keys ({rank.keys * each / 1e3:.0f} kB); "
            f"receives {rank.received} ({rank.received * each / 1e3:.0f} kB) "
            f"from {rank.messages} ranks"
        )


def main(steps: int = 60) -> dict[str, Any]:
    """Train; return the losses, those of one process, and their largest difference."""
    device = prepare()
    ranks = dist.get_world_size()
    rows = max(n for n in range(1, ranks + 1) if ranks % n == 0 and n * n <= ranks)
    mesh = dist.init_device_mesh(
        device.type, (rows, ranks // rows), mesh_dim_names=("rows", "columns")
    )
    across = partial(nbattn.distributed.attention, mesh=mesh, shard=SHARD, space=SPACE)
    torch.manual_seed(0)  # the same parameters on all ranks
    model = Denoiser(across).to(device)
    alone = Denoiser(nbattn.attention).to(device)
    alone.load_state_dict(model.state_dict())
    models = [(m, torch.optim.AdamW(m.parameters(), lr=3e-3)) for m in (model, alone)]
    is_first = dist.get_rank() == 0
    if is_first:
        show_parts(rows, ranks // rows)
    losses, wanted = [], []
    for n in range(steps):
        noisy, clean, caption = (tensor.to(device) for tensor in moving_shapes(seed=n))
        batch = own_part(noisy, mesh), own_part(clean, mesh), caption
        losses.append(step(*models[0], batch, ranks))
        if is_first and n < CHECKED:
            wanted.append(step(*models[1], (noisy, clean, caption), 1))
            print(f"step {n}: loss {losses[n]:.6f}, in one process {wanted[n]:.6f}")
        elif is_first and (n % 20 == 19 or n == steps - 1):
            print(f"step {n}: loss {losses[n]:.6f}")
    dist.destroy_process_group()
    apart = max((abs(a / b - 1) for a, b in zip(losses, wanted, strict=False)), default=0.0)
    if is_first:
        print(f"largest difference from one process: {apart:.1e} of the loss")
        print(
            f"mean squared error: {losses[0]:.3f} before, {losses[-1]:.3f} after; "
            f"{clean.var().item():.3f} without a model, of the best constant"
        )
    return {"losses": losses, "wanted": wanted, "apart": apart}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    main(parser.parse_args().steps)
