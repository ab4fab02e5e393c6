"""NAT and DiNAT as first published: names and shapes of their checkpoints, a model with these names
around any attention module, and what the model computes, in plain torch from the weights alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import oracle
import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model; `dilations` of every block, by level."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]
    kernel: int = 7
    mlp_ratio: int = 3
    layer_scale: bool = False
    classes: int = 1000

    @property
    def levels(self) -> range:
        return range(len(self.depths))


_SAME, _TWO = (1,) * 18, (1, 2) * 9
PUBLISHED = {
    "nat_mini": Sizes(64, (3, 4, 6, 5), (2, 4, 8, 16), (_SAME,) * 4),
    "nat_base": Sizes(128, (3, 4, 18, 5), (4, 8, 16, 32), (_SAME,) * 4, 7, 2, layer_scale=True),
    "dinat_mini": Sizes(
        64, (3, 4, 6, 5), (2, 4, 8, 16), ((1, 8, 1), (1, 4, 1, 4), _TWO[:6], _SAME[:5])
    ),
}


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The names of a checkpoint, and the shapes of its tensors."""
    first = sizes.channels
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, channels: int) -> None:
        found.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})

    for number, (inputs, outputs) in enumerate(((3, first // 2), (first // 2, first))):
        found[f"patch_embed.proj.{number}.weight"] = (outputs, inputs, 3, 3)
        found[f"patch_embed.proj.{number}.bias"] = (outputs,)
    norm("patch_embed.norm", first)
    for level in sizes.levels:
        channels = first * 2**level
        for block in range(sizes.depths[level]):
            at = f"levels.{level}.blocks.{block}"
            norm(f"{at}.norm1", channels)
            linear(f"{at}.attn.qkv", channels, 3 * channels)
            found[f"{at}.attn.rpb"] = (sizes.heads[level], *(2 * sizes.kernel - 1,) * 2)
            linear(f"{at}.attn.proj", channels, channels)
            norm(f"{at}.norm2", channels)
            linear(f"{at}.mlp.fc1", channels, sizes.mlp_ratio * channels)
            linear(f"{at}.mlp.fc2", sizes.mlp_ratio * channels, channels)
            if sizes.layer_scale:
                found.update({f"{at}.gamma1": (channels,), f"{at}.gamma2": (channels,)})
        if level < sizes.levels[-1]:
            found[f"levels.{level}.downsample.reduction.weight"] = (2 * channels, channels, 3, 3)
            norm(f"levels.{level}.downsample.norm", 2 * channels)
    norm("norm", first * 2 ** sizes.levels[-1])
    linear("head", first * 2 ** sizes.levels[-1], sizes.classes)
    return found


def checkpoint(sizes: Sizes) -> dict[str, Tensor]:
    """Random weights, large enough for windows and tables to matter."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    for name, shape in shapes(sizes).items():
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name.endswith("rpb"):
            weights[name] = values
        elif len(shape) == 1:
            weights[name] = 0.2 * values + (0.0 if name.endswith("bias") else 1.0)
        else:
            weights[name] = values * (1.5 / values[0].numel()) ** 0.5
    return weights


Attention = Callable[[int, int, int, int], nn.Module]


class Tokens(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        pairs = ((3, channels // 2), (channels // 2, channels))
        self.proj = nn.Sequential(*(nn.Conv2d(*pair, 3, 2, 1) for pair in pairs))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).movedim(1, -1))


class Smaller(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.movedim(-1, 1)).movedim(1, -1))


class Block(nn.Module):
    def __init__(self, sizes: Sizes, channels: int, attention: nn.Module) -> None:
        super().__init__()
        wide = sizes.mlp_ratio * channels
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = attention
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(channels, wide), nn.Linear(wide, channels)
        if sizes.layer_scale:
            self.gamma1, self.gamma2 = (nn.Parameter(torch.ones(channels)) for _ in range(2))
        self.scaled = sizes.layer_scale

    def forward(self, x: Tensor) -> Tensor:
        scales = (self.gamma1, self.gamma2) if self.scaled else (1.0, 1.0)
        x = x + scales[0] * self.attn(self.norm1(x))
        mlp: Any = self.mlp
        return x + scales[1] * mlp.fc2(functional.gelu(mlp.fc1(self.norm2(x))))


class Level(nn.Module):
    def __init__(self, sizes: Sizes, level: int, attention: Attention) -> None:
        super().__init__()
        channels = sizes.channels * 2**level
        self.blocks = nn.Sequential(
            *(
                Block(
                    sizes,
                    channels,
                    attention(channels, sizes.heads[level], sizes.kernel, dilation),
                )
                for dilation in sizes.dilations[level][: sizes.depths[level]]
            )
        )
        self.downsample = Smaller(channels) if level < sizes.levels[-1] else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class Model(nn.Module):
    """NAT or DiNAT around an attention module of (channels, heads, kernel, dilation)."""

    def __init__(self, sizes: Sizes, attention: Attention) -> None:
        super().__init__()
        last = sizes.channels * 2 ** sizes.levels[-1]
        self.patch_embed = Tokens(sizes.channels)
        self.levels = nn.Sequential(*(Level(sizes, n, attention) for n in sizes.levels))
        self.norm, self.head = nn.LayerNorm(last), nn.Linear(last, sizes.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.levels(self.patch_embed(x))).mean((1, 2)))


# The plain computation.


@lru_cache
def _window(space: tuple[int, int], kernel: int, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of a space, bool `[N, N]`, and the entry of the table of each, by axis."""
    allowed = torch.from_numpy(oracle.natten_matrix(space, kernel, 1, dilation, False))
    places = torch.cartesian_prod(*(torch.arange(length) // dilation for length in space))
    steps = (places[None] - places[:, None] + kernel - 1).clamp(0, 2 * kernel - 2)
    return allowed, steps[..., 0], steps[..., 1]


def attend(weights: dict[str, Tensor], at: str, x: Tensor, heads: int, dilation: int) -> Tensor:
    """An attention module: maps smaller than the window are padded with zeros, which are keys."""
    rpb = weights[f"{at}.rpb"]
    kernel = (rpb.shape[-1] + 1) // 2
    height, width, channels = x.shape[1:]
    more = [max(0, kernel * dilation - length) for length in (height, width)]
    x = functional.pad(x, (0, 0, 0, more[1], 0, more[0]))
    space = (x.shape[1], x.shape[2])
    mixed = x.flatten(1, 2) @ weights[f"{at}.qkv.weight"].T + weights[f"{at}.qkv.bias"]
    query, key, value = mixed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    allowed, rows, columns = _window(space, kernel, dilation)
    scores = query @ key.mT * (channels // heads) ** -0.5 + rpb[:, rows, columns]
    out = scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ value
    out = out.transpose(1, 2).flatten(2).unflatten(1, space)[:, :height, :width]
    return out @ weights[f"{at}.proj.weight"].T + weights[f"{at}.proj.bias"]


def logits(weights: dict[str, Tensor], sizes: Sizes, x: Tensor) -> Tensor:
    """The model of these weights on images `[B, 3, Y, X]`."""

    def norm(name: str, x: Tensor) -> Tensor:
        name = f"{name}."
        return functional.layer_norm(
            x, x.shape[-1:], weights[f"{name}weight"], weights[f"{name}bias"]
        )

    for number in (0, 1):
        name = f"patch_embed.proj.{number}."
        x = functional.conv2d(x, weights[f"{name}weight"], weights[f"{name}bias"], 2, 1)
    x = norm("patch_embed.norm", x.movedim(1, -1))
    for level in sizes.levels:
        for block in range(sizes.depths[level]):
            at, dilation = f"levels.{level}.blocks.{block}", sizes.dilations[level][block]
            heads = sizes.heads[level]
            one, two = (weights.get(f"{at}.gamma{n}", torch.ones(())) for n in (1, 2))
            x = x + one * attend(weights, f"{at}.attn", norm(f"{at}.norm1", x), heads, dilation)
            hidden = norm(f"{at}.norm2", x)
            for number in (1, 2):
                name = f"{at}.mlp.fc{number}."
                hidden = hidden @ weights[f"{name}weight"].T + weights[f"{name}bias"]
                hidden = functional.gelu(hidden) if number == 1 else hidden
            x = x + two * hidden
        if level < sizes.levels[-1]:
            name = f"levels.{level}.downsample"
            x = functional.conv2d(x.movedim(-1, 1), weights[f"{name}.reduction.weight"], None, 2, 1)
            x = norm(f"{name}.norm", x.movedim(1, -1))
    return norm("norm", x).mean((1, 2)) @ weights["head.weight"].T + weights["head.bias"]
