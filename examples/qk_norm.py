"""Normalise queries and keys (QK norm) by the qk_transform of a layer.

Run it: `python examples/qk_norm.py`. It shows that scores stay bounded for inputs of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import nbattn


class QKNorm(nn.Module):
    """Root-mean-square norm of every query and key over its channels, each with a learned gain.

    Scores are then at most `sqrt(head_dim)` times the gains. Keys of extra tokens get the norm of
    the keys, since they are in the same softmax.

    Args:
        head_dim: D of the layer.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query, self.key = nn.RMSNorm(head_dim), nn.RMSNorm(head_dim)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise query `[B, *space, H, D]` and key `[B, *key_space, Hk, D]`."""
        return normed(self.query, query), normed(self.key, key)

    def extra_key(self, key: Tensor) -> Tensor:
        """Normalise the keys of extra tokens `[B, E, Hk, D]`."""
        return normed(self.key, key)


def normed(norm: nn.RMSNorm, tokens: Tensor) -> Tensor:
    """Apply a norm in the dtype of its gain; under autocast the tokens have a shorter dtype."""
    return norm(tokens.to(norm.weight.dtype))


def main() -> dict[float, tuple[float, float]]:
    """Return the largest score without and with the norm, for inputs of growing size."""
    torch.manual_seed(0)
    mask = nbattn.Mask.neighborhood((7, 7))
    layer = nbattn.NeighborhoodAttention(64, 2, mask, qkv_bias=False, qk_transform=QKNorm(32))
    tokens = torch.randn(1, 14, 14, 64)
    scores = {}
    print(layer)
    print(f"{'input':>8} {'plain':>12} {'normalised':>12}   bound {32**0.5:.2f}")
    for size in (1.0, 10.0, 1000.0):
        with torch.no_grad():
            query, key, _ = layer.qkv(size * tokens).unflatten(-1, (3, 2, 32)).unbind(-3)
            scores[size] = score(query, key), score(*layer.qk_transform(query, key))
            assert layer(size * tokens).isfinite().all()
        print(f"{size:>8g} {scores[size][0]:>12.2f} {scores[size][1]:>12.2f}")
    return scores


def score(query: Tensor, key: Tensor) -> float:
    """Return the largest scaled product of a query and a key of the same head."""
    scores = torch.einsum("byxhd,buvhd->bhyxuv", query, key) * query.shape[-1] ** -0.5
    return scores.abs().max().item()


if __name__ == "__main__":
    main()
