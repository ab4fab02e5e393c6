"""A block for the whole globe: longitude is a circle, latitude ends at the poles.

Run it: `python examples/weather_block.py`. It shows that the date line is a place like any other:
turning the globe turns the output. At full size, 1 degree (latitudes, longitudes, channels, heads):
`python examples/weather_block.py 181 360 256 8`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import nbattn
from nbattn import Axis, Mask

GLOBE = Mask(Axis(3, 3, border="shift"), Axis(3, 3, border="wrap"))
MAP = Mask(Axis(3, 3, border="shift"), Axis(3, 3, border="shift"))  # a sheet of paper


class WeatherBlock(nn.Module):
    """Attention over neighbours on the globe, then a perceptron per place.

    Where a place is matters by its latitude only, which is learned: a longitude of its own would
    tell one side of the date line from the other.

    Args:
        latitudes: rows of the grid, from pole to pole.
        dim: channels, of all variables and levels.
        heads: of the attention.
        mask: what a place reads.
    """

    def __init__(self, latitudes: int, dim: int, heads: int, mask: Mask = GLOBE) -> None:
        super().__init__()
        self.latitude = nn.Parameter(torch.randn(latitudes, 1, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.attend = nbattn.NeighborhoodAttention(dim, heads, mask)
        self.think = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, latitudes, longitudes, dim]` to the same."""
        first, second = self.norms
        x = x + self.attend(first(x) + self.latitude)
        return x + self.think(second(x))


def main(
    latitudes: int = 19, longitudes: int = 36, dim: int = 32, heads: int = 4
) -> dict[str, float]:
    """How far turning the input and turning the output are apart, on the globe and on a map."""
    torch.manual_seed(0)
    block = WeatherBlock(latitudes, dim, heads).eval()
    weather, turn = torch.randn(1, latitudes, longitudes, dim), longitudes // 3 + 1
    found = {}
    for name, mask in (("globe", GLOBE), ("map", MAP)):
        block.attend.mask = mask
        with torch.no_grad():
            turned = block(weather.roll(turn, dims=2))
            difference = turned - block(weather).roll(turn, dims=2)
        found[name] = difference.abs().max().item()
    block.attend.mask = GLOBE
    print(block.attend)
    print(f"{latitudes} x {longitudes} places, turned by {turn} of {longitudes} longitudes")
    for name, difference in found.items():
        print(f"outputs on the {name} differ by up to {difference:.1e}")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
