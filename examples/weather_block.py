"""A transformer block for the globe: longitude is circular, latitude ends at the poles.

Run it: `python examples/weather_block.py`. It shows that the date line is no border: an input
rotated by some longitudes gives a rotated output. At full size, 1 degree (latitudes,
longitudes, channels, heads): `python examples/weather_block.py 181 360 256 8`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import nbattn
from nbattn import Axis, Mask

GLOBE = Mask(Axis(3, 3, border="shift"), Axis(3, 3, border="wrap"))
MAP = Mask(Axis(3, 3, border="shift"), Axis(3, 3, border="shift"))  # longitude with borders


class WeatherBlock(nn.Module):
    """Attention over neighbors on the globe, then a perceptron per grid point.

    There is a learned embedding per latitude and none per longitude, since that would distinguish
    the two sides of the date line.

    Args:
        latitudes: rows of the grid, from pole to pole.
        dim: channels, of all variables and levels.
        heads: heads of the attention.
        mask: mask of the attention.
    """

    def __init__(self, latitudes: int, dim: int, heads: int, mask: Mask = GLOBE) -> None:
        super().__init__()
        self.latitude = nn.Parameter(torch.randn(latitudes, 1, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attend = nbattn.NeighborhoodAttention(dim, heads, mask)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, latitudes, longitudes, dim]` to the same shape."""
        first, second = self.norms
        x = x + self.attend(first(x) + self.latitude)
        return x + self.mlp(second(x))


def main(
    latitudes: int = 19, longitudes: int = 36, dim: int = 32, heads: int = 4
) -> dict[str, float]:
    """Return the differences between a rotated input and a rotated output, for globe and map."""
    torch.manual_seed(0)
    block = WeatherBlock(latitudes, dim, heads).eval()
    weather, turn = torch.randn(1, latitudes, longitudes, dim), longitudes // 3 + 1
    differences = {}
    for name, mask in (("globe", GLOBE), ("map", MAP)):
        block.attend.mask = mask
        with torch.no_grad():
            rotated = block(weather.roll(turn, dims=2))
            difference = rotated - block(weather).roll(turn, dims=2)
        differences[name] = difference.abs().max().item()
    block.attend.mask = GLOBE
    print(block.attend)
    print(f"{latitudes} x {longitudes} points, rotated by {turn} of {longitudes} longitudes")
    for name, difference in differences.items():
        print(f"outputs on the {name} differ by up to {difference:.1e}")
    return differences


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
