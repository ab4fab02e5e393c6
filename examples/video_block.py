"""A transformer block for video: windows in space, causal in time, rotary on all three axes.

Run it: `python examples/video_block.py`. It shows that a frame does not depend on later ones, and
that frames can be computed one by one from a few previous ones. At full size (frames, height,
width, channels, heads): `python examples/video_block.py 16 30 52 768 8`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import nbattn

PAST = 3  # previous frames that a frame attends to
NEAR = nbattn.Axis(2, 2, border="shift")
MASK = nbattn.Mask(nbattn.Axis(PAST, causal=True, align="bottom-right"), NEAR, NEAR)


class Rotary3d(nn.Module):
    """Rotates a third of a head's channels by the frame, a third by the row, a third by the column.

    Query positions are the mask's key positions, so frames are counted from the first of a context.

    Args:
        mask: the mask of the layer; three axes, none of which wraps.
        base: the slowest channel rotates by about 1 / base per step.
    """

    def __init__(self, mask: nbattn.Mask, base: float = 100.0) -> None:
        super().__init__()
        if mask.rank != 3 or any(axis.border == "wrap" for axis in mask.axes):
            raise ValueError(f"Rotary3d is for 3 axes that do not wrap: {mask!r}")
        self.mask, self.base = mask, base

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate `[B, T, Y, X, H, D]` and key `[B, T', Y', X', Hk, D]`; D is a multiple of 6."""
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
        """Rotate the tokens of a grid whose first frame, row and column are `starts`."""
        exact = torch.promote_types(tokens.dtype, torch.float32)
        count = tokens.shape[-1] // 6
        speeds = self.base ** -(torch.arange(count, device=tokens.device, dtype=exact) / count)
        rotated = []
        for axis, third in enumerate(tokens.chunk(3, dim=-1)):
            length = tokens.shape[1 + axis]
            positions = starts[axis] + torch.arange(length, device=tokens.device, dtype=exact)
            shape = [length if n == axis else 1 for n in range(3)]
            angles = (positions[:, None] * speeds).view(*shape, 1, count)
            a, b = third.chunk(2, dim=-1)
            rotated += [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()]
        return torch.cat(rotated, dim=-1)


class Block(nn.Module):
    """A residual attention over neighbors, then a residual perceptron per token."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        rotary = Rotary3d(MASK)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attend = nbattn.NeighborhoodAttention(dim, heads, MASK, qk_transform=rotary)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `[B, T, Y, X, dim]` to the same shape; a context has frames up to the last of x."""
        first, second = self.norms
        x = x + self.attend(first(x), None if context is None else first(context))
        return x + self.mlp(second(x))


def main(
    frames: int = 7, height: int = 9, width: int = 11, dim: int = 48, heads: int = 4
) -> dict[str, float]:
    """Replace one frame; return the changes of other frames, and the error of single frames."""
    torch.manual_seed(0)
    block = Block(dim, heads).eval()
    video = torch.randn(1, frames, height, width, dim)
    cut, changed = frames // 2, video.clone()
    changed[:, cut] = torch.randn(1, height, width, dim)
    with torch.no_grad():
        whole, moved = block(video), block(changed)
        alone = [
            block(video[:, t : t + 1], video[:, max(0, t - PAST) : t + 1]) for t in range(frames)
        ]
    change = (whole - moved).abs().amax((0, 2, 3, 4))
    changes = {
        "before": change[:cut].max().item(),
        "after": change[cut : cut + PAST + 1].min().item(),
        "out of reach": change[cut + PAST + 1 :].sum().item(),
        "one by one": (torch.cat(alone, 1) - whole).abs().max().item(),
    }
    print(block.attend)
    print(f"frame {cut} of {frames} replaced: earlier frames change by {changes['before']:.1e},")
    print(f"it and the next {PAST} frames by {changes['after']:.1e} or more")
    print(f"frames one by one, with {PAST} previous frames: difference {changes['one by one']:.1e}")
    return changes


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
