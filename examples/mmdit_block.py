"""A double-stream block of MMDiT: image tokens in windows, padded text beside them, one softmax.

Run it: `python examples/mmdit_block.py`. It shows the plan of the attention, and that padding of
the text changes nothing for the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import nbattn


class Stream(nn.Module):
    """What each kind of tokens has for itself: norms, projections, an MLP.

    Args:
        dim: channels.
        heads: their number.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=False) for _ in range(2))
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = (nn.RMSNorm(self.head_dim, eps=1e-6) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def projected(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value `[B, *space, H, D]`."""
        parts = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, self.head_dim))
        query, key, value = parts.unbind(-3)
        return self.q_norm(query), self.k_norm(key), value

    def updated(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Add what attention found, and the MLP."""
        tokens = tokens + self.proj(attended.flatten(-2))
        return tokens + self.mlp(self.norm2(tokens))


class MMDiTBlock(nn.Module):
    """Two streams that attend jointly: the image to a window and to all text, the text to all.

    Args:
        dim: channels of both.
        heads: their number.
        mask: the windows of the image.
    """

    def __init__(self, dim: int, heads: int, mask: nbattn.Mask) -> None:
        super().__init__()
        self.image, self.text, self.mask = Stream(dim, heads), Stream(dim, heads), mask

    def forward(
        self, image: Tensor, text: Tensor, text_range: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute both streams.

        Args:
            image: `[B, *space, dim]`.
            text: `[B, E, dim]`.
            text_range: `[B, 2]`, the range of real text of every sample.
        """
        of_image, of_text = nbattn.joint_attention(
            *self.image.projected(image),
            self.mask,
            *self.text.projected(text),
            extra_range=text_range,
        )
        return self.image.updated(image, of_image), self.text.updated(text, of_text)


def main() -> float:
    """Return how much padded text changes the image: 0 but for rounding."""
    torch.manual_seed(0)
    mask = nbattn.Mask.neighborhood((9, 9))
    options = {"extra_keys": 512, "extra_queries": True, "extra_range": True, "device": "sm_90"}
    print(nbattn.plan(mask, (1, 64, 64, 24, 128), **options).explain())
    block, image, text = MMDiTBlock(64, 4, mask), torch.randn(2, 12, 12, 64), torch.randn(2, 9, 64)
    lengths = torch.tensor([9, 5])
    real = torch.stack([torch.zeros_like(lengths), lengths], 1)
    with torch.no_grad():
        padded, _ = block(image, text, real)
        alone, _ = block(image[1:], text[1:, :5])
    change = (padded[1:] - alone).abs().max().item()
    print(f"\npadding of the text changes the image by {change:.1e}")
    return change


if __name__ == "__main__":
    main()
