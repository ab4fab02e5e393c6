"""Apply rotary position embeddings on a 2-D grid by the qk_transform of a layer.

Run it: `python examples/rotary_2d.py`. It shows that a shifted picture gives a shifted output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import nbattn


class Rotary2d(nn.Module):
    """Rotates the first half of a head's channels by the row, the second half by the column.

    A query's key position is `i + offset`, plus the difference of the lengths with
    `align="bottom-right"`; so query and key grids can differ, and scores depend on distances only.
    Angles are computed from lengths in every call: there is no buffer that `.bfloat16()` could
    round or `to_empty()` could lose.

    Extra tokens have no position on the grid, so their keys are not rotated.

    Args:
        mask: the mask of the layer; two axes, none of which wraps.
        base: the slowest channel rotates by about 1 / base per step.
    """

    def __init__(self, mask: nbattn.Mask, base: float = 100.0) -> None:
        super().__init__()
        if mask.rank != 2:
            raise ValueError(f"Rotary2d is for masks of 2 axes, not {mask.rank}: {mask!r}")
        if any(axis.border == "wrap" for axis in mask.axes):
            # between the last and the first position the distance would be wrong
            raise ValueError(f"Rotary2d does not support border='wrap': {mask!r}")
        self.mask, self.base = mask, base

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate query `[B, Y, X, H, D]` and key `[B, Y', X', Hk, D]`; D is a multiple of 4."""
        if query.shape[-1] % 4:
            raise ValueError(f"Rotary2d needs a head_dim that 4 divides, not {query.shape[-1]}")
        starts = [
            axis.offset + (keys - queries if axis.align == "bottom-right" else 0)
            for axis, queries, keys in zip(
                self.mask.axes, query.shape[1:3], key.shape[1:3], strict=True
            )
        ]
        return self.turn(query, starts), self.turn(key, [0, 0])

    def extra_key(self, key: Tensor) -> Tensor:
        """Return the keys of extra tokens unchanged."""
        return key

    def turn(self, tokens: Tensor, starts: list[int]) -> Tensor:
        """Rotate tokens `[B, Y, X, H, D]` of a grid whose first row and column are `starts`."""
        exact = torch.promote_types(tokens.dtype, torch.float32)
        count = tokens.shape[-1] // 4
        steps = torch.arange(count, device=tokens.device, dtype=exact) / count
        rotated = []
        for axis, half in enumerate(tokens.chunk(2, dim=-1)):
            length = tokens.shape[1 + axis]
            positions = starts[axis] + torch.arange(length, device=tokens.device, dtype=exact)
            angles = positions[:, None] * self.base**-steps
            angles = angles[:, None, None] if axis == 0 else angles[:, None]  # [Y, 1, 1, D / 4]
            a, b = half.chunk(2, dim=-1)
            rotated += [a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()]
        return torch.cat(rotated, dim=-1)


def main() -> float:
    """Apply the layer to two overlapping crops of a picture; return the largest difference."""
    torch.manual_seed(0)
    mask = nbattn.Mask(nbattn.Axis(3, 3), nbattn.Axis(3, 3))
    layer = nbattn.NeighborhoodAttention(64, 4, mask, qk_transform=Rotary2d(mask)).eval()
    picture = torch.randn(1, 40, 40, 64)
    with torch.no_grad():
        first, moved = layer(picture[:, :32, :32]), layer(picture[:, 5:37, 7:39])
    # without the borders of both crops, where windows are cut
    inner = first[:, 8:29, 10:29], moved[:, 3:24, 3:22]
    difference = (inner[0] - inner[1]).abs().max().item()
    print(layer)
    print(f"picture shifted by (5, 7): outputs of up to {inner[0].abs().max():.2f}")
    print(f"largest difference: {difference:.1e}")
    return difference


if __name__ == "__main__":
    main()
