"""Tests of a ViT with CLS and registers: timm's block, and the same line by line with the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import matrix
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nbattn import Mask, NeighborhoodAttention

DIM, HEADS, DEPTH, GRID, PREFIX = 24, 3, 3, (4, 6), 5  # one CLS token, four registers


class TimmAttention(nn.Module):
    """`timm.models.vision_transformer.Attention`, without its dropouts, which are 0."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=True)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(self.head_dim, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        x = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(0.3 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TimmBlock(nn.Module):
    """`timm.models.vision_transformer.Block`; the attention is that of either side."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(DIM, eps=1e-6)
        self.attn = attn
        self.ls1 = LayerScale(DIM)
        self.norm2 = nn.LayerNorm(DIM, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))
        self.ls2 = LayerScale(DIM)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), attn_mask))
        return x + self.ls2(self.mlp(self.norm2(x)))


class OurBlock(TimmBlock):
    """The same lines, for the grid and for the tokens beside it."""

    def forward(self, x: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        y, beside = self.attn(self.norm1(x), extra_tokens=self.norm1(extra), update_extra=True)
        x, extra = x + self.ls1(y), extra + self.ls1(beside)
        return x + self.ls2(self.mlp(self.norm2(x))), extra + self.ls2(self.mlp(self.norm2(extra)))


class Ends(nn.Module):
    """What is before and behind the blocks: tokens, positions of the patches, norm, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.reg_token = nn.Parameter(torch.zeros(1, PREFIX - 1, DIM))
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID[0] * GRID[1], DIM))
        self.norm, self.head = nn.LayerNorm(DIM, eps=1e-6), nn.Linear(DIM, 7)

    def before(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        prefix = torch.cat([self.cls_token, self.reg_token], 1).expand(len(patches), -1, -1)
        return patches + self.pos_embed, prefix


class Timm(Ends):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        made = (TimmAttention(DIM, HEADS, options["qk_norm"]) for _ in range(DEPTH))
        self.blocks = nn.ModuleList(map(TimmBlock, made))

    def forward(self, patches: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x, prefix = self.before(patches)
        x = torch.cat([prefix, x], dim=1)
        for block in self.blocks:
            x = block(x, attn_mask)
        return self.head(self.norm(x)[:, 0])


class Ours(Ends):
    def __init__(self, mask: Mask, **options: Any) -> None:
        super().__init__()
        made = (NeighborhoodAttention(DIM, HEADS, mask, **options) for _ in range(DEPTH))
        self.blocks = nn.ModuleList(map(OurBlock, made))

    def forward(self, patches: Tensor) -> Tensor:
        x, extra = self.before(patches)
        x = x.unflatten(1, GRID)
        for block in self.blocks:
            x, extra = block(x, extra)
        return self.head(self.norm(extra)[:, 0])


def pair(mask: Mask, qk_norm: bool) -> tuple[Timm, Ours]:
    """Both with the same weights, which need no change of names."""
    torch.manual_seed(0)
    timm, ours = Timm(qk_norm=qk_norm).double(), Ours(mask, qk_norm=qk_norm).double()
    for parameter in timm.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    ours.load_state_dict(timm.state_dict())
    return timm, ours


def compared(timm: Timm, ours: Ours, attn_mask: Tensor | None) -> int:
    patches = torch.randn(2, GRID[0] * GRID[1], DIM, dtype=torch.float64)
    results = []
    for model, more in ((timm, (attn_mask,)), (ours, ())):
        given = patches.clone().requires_grad_()
        out = model(given, *more)
        (out * torch.arange(7)).square().sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        results.append({"out": out.detach(), "patches": given.grad, **grads})
    wanted, found = results
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-9, atol=1e-9, msg=name)
    return len(found)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("mask", [Mask.neighborhood(GRID), Mask.full(rank=2)])
def test_a_window_of_the_whole_grid_is_timms_vit(
    mask: Mask, qk_norm: bool, cases: Callable[[str, int], None]
) -> None:
    cases("ViT, tensors", compared(*pair(mask, qk_norm), None))


def test_a_small_window_is_timms_vit_under_a_mask(cases: Callable[[str, int], None]) -> None:
    mask = Mask.neighborhood((3, 3))
    near = torch.from_numpy(matrix(mask.axes, GRID, GRID))
    allowed = nn.functional.pad(near, (PREFIX, 0, PREFIX, 0), value=True)  # prefix tokens first
    cases("ViT, tensors", compared(*pair(mask, qk_norm=True), allowed))
