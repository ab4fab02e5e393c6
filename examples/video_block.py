"""A transformer block for video: space around, time backwards only, rotary on all three axes.

Run it: `python examples/video_block.py`. It shows that a frame does not see later ones, and that
frames can be computed one by one from the few before. At full size (frames, height, width,
channels, heads): `python examples/video_block.py 16 30 52 768 8`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import nbattn

PAST = 3  # frames a frame reads besides itself
NEAR = nbattn.Axis(2, 2, border="shift")
MASK = nbattn.Mask(nbattn.Axis(PAST, causal=True, align="bottom-right"), NEAR, NEAR)


class Rotary3d(nn.Module):
    """Turns a third of a head's channels by the frame, a third by the row, a third by the column.

    A query stands where the mask puts it, so frames of a context count from its first.

    Args:
        mask: that of the layer; three axes, none of which wraps.
        base: the slowest channel turns by about 1 / base per step.
    """

    def __init__(self, mask: nbattn.Mask, base: float = 100.0) -> None:
        super().__init__()
        if mask.rank != 3 or any(axis.border == "wrap" for axis in mask.axes):
            raise ValueError(f"Rotary3d is for 3 axes that do not wrap: {mask!r}")
        self.mask, self.base = mask, base

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Query `[B, T, Y, X, H, D]` and key `[B, T', Y', X', Hk, D]`; D is a multiple of 6."""
        if query.shape[-1] % 6:
            raise ValueError(f"Rotary3d needs a head_dim that 6 divides, not {query.shape[-1]}")
        starts = [
            axis.offset + (keys - queries if axis.align == "bottom-right" else 0)
            for axis, queries, keys in zip(
                self.mask.axes, query.shape[1:4], key.shape[1:4], strict=True
            )
        ]
        return self.turn(query, starts), self.turn(key, [0, 0, 0])

    def turn(self, tokens: Tensor, starts: list[int]) -> Tensor:
        """Tokens of a grid whose first frame, row and column are these."""
        exact = torch.promote_types(tokens.dtype, torch.float32)
        count = tokens.shape[-1] // 6
        speeds = self.base ** -(torch.arange(count, device=tokens.device, dtype=exact) / count)
        turned = []
        for axis, third in enumerate(tokens.chunk(3, dim=-1)):
            length = tokens.shape[1 + axis]
            places = starts[axis] + torch.arange(length, device=tokens.device, dtype=exact)
            shape = [length if n == axis else 1 for n in range(3)]
            angles = (places[:, None] * speeds).view(*shape, 1, count)
            a, b = third.chunk(2, dim=-1)
            turned += [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()]
        return torch.cat(turned, dim=-1)


class Block(nn.Module):
    """Attention over neighbours, then a perceptron per token, each added to what it was given."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        rotary = Rotary3d(MASK)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attend = nbattn.NeighborhoodAttention(dim, heads, MASK, qk_transform=rotary)
        self.think = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """`[B, T, Y, X, dim]`; a context is the frames up to the last of x, itself included."""
        first, second = self.norms
        x = x + self.attend(first(x), None if context is None else first(context))
        return x + self.think(second(x))


def main(
    frames: int = 7, height: int = 9, width: int = 11, dim: int = 48, heads: int = 4
) -> dict[str, float]:
    """How far earlier and later frames move when one is replaced, and frames computed alone."""
    torch.manual_seed(0)
    block = Block(dim, heads).eval()
    video = torch.randn(1, frames, height, width, dim)
    cut, other = frames // 2, video.clone()
    other[:, cut] = torch.randn(1, height, width, dim)
    with torch.no_grad():
        whole, moved = block(video), block(other)
        alone = [
            block(video[:, t : t + 1], video[:, max(0, t - PAST) : t + 1]) for t in range(frames)
        ]
    change = (whole - moved).abs().amax((0, 2, 3, 4))
    found = {
        "before": change[:cut].max().item(),
        "after": change[cut : cut + PAST + 1].min().item(),
        "out of reach": change[cut + PAST + 1 :].sum().item(),
        "one by one": (torch.cat(alone, 1) - whole).abs().max().item(),
    }
    print(block.attend)
    print(f"frame {cut} of {frames} replaced: earlier ones move by {found['before']:.1e},")
    print(f"it and the {PAST} next ones by {found['after']:.1e} or more")
    print(f"frames one by one, from {PAST} before: difference {found['one by one']:.1e}")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
