"""Train one small DiNAT on images of many shapes, packed as NaViT packs them, without padding.

Run it: `python examples/navit_shapes.py`. The images are bars and crosses of all sizes; a batch is
one sequence of tokens with a list of grids, and each image is attention on its own. At the end the
packed model is compared with the same model on one image at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from nbattn import Mask, NeighborhoodAttention

Size = tuple[int, int]
WINDOW = 3


class Block(nn.Module):
    """A transformer block whose attention takes packed grids."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        mask = Mask.neighborhood((WINDOW, WINDOW), dilation=dilation)
        self.attention = NeighborhoodAttention(dim, dim // 16, mask)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, grids: Sequence[Size]) -> Tensor:
        """Compute tokens `[T, dim]` of packed grids."""
        x = x + self.attention(self.before(x), grids=grids)
        return x + self.mlp(self.after(x))


class PackedDinat(nn.Module):
    """A small DiNAT: windows of neighbours, then dilated ones, then the mean of each image."""

    def __init__(self, dim: int = 32, dilations: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        self.embed = nn.Linear(3, dim)
        self.blocks = nn.ModuleList(Block(dim, dilation) for dilation in dilations)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 3)

    def forward(self, pixels: Tensor, grids: Sequence[Size]) -> Tensor:
        """Classify packed images: pixels `[T]` to logits `[images, 3]`."""
        counts = torch.tensor([*map(prod, grids)])
        places = torch.cat([place(size) for size in grids]).to(pixels)
        x = self.embed(torch.cat([pixels[:, None], places], dim=1))
        for block in self.blocks:
            x = block(x, grids)
        image = torch.arange(len(grids)).repeat_interleave(counts)
        total = x.new_zeros(len(grids), x.shape[1]).index_add(0, image, self.norm(x))
        return self.head(total / counts[:, None])


def place(size: Size) -> Tensor:
    """Where each pixel of an image is, `[T, 2]`, from 0 to 1."""
    rows, columns = (torch.linspace(0, 1, length) for length in size)
    return torch.cartesian_prod(rows, columns)


def packed(images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Pack images: their pixels one after another, and their sizes."""
    sizes: list[Size] = [(image.shape[0], image.shape[1]) for image in images]
    return torch.cat([image.flatten() for image in images]), sizes


def drawn(count: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Images of many shapes: bars across, bars down, and crosses, with noise, and their labels."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    images, labels = [], []
    for _ in range(count):
        kind, size = number(0, 3), (number(4, 9), number(4, 9))
        image = 0.2 * torch.rand(size, generator=generator)
        if kind != 1:
            image[number(1, size[0] - 1)] += 0.8
        if kind != 0:
            image[:, number(1, size[1] - 1)] += 0.8
        images.append(image)
        labels.append(kind)
    return images, torch.tensor(labels)


def train(model: nn.Module, images: Sequence[Tensor], labels: Tensor, epochs: int) -> float:
    """Train in place; return the mean loss of the last epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses: list[float] = []
    for _ in range(epochs):
        losses = []
        for chosen in torch.randperm(len(images)).split(32):
            logits = model(*packed([images[n] for n in chosen.tolist()]))
            loss = nn.functional.cross_entropy(logits, labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


def main(epochs: int = 12) -> tuple[float, float]:
    """Train; return the accuracy on other images, and the error against one image at a time."""
    torch.manual_seed(0)
    model = PackedDinat()
    loss = train(model, *drawn(256), epochs)
    images, labels = drawn(64, seed=1)
    with torch.no_grad():
        logits = model.eval()(*packed(images))
        alone = torch.cat([model(*packed([image])) for image in images])
    accuracy = (logits.argmax(-1) == labels).double().mean().item()
    error = (logits - alone).abs().max().item()
    shapes = len({image.shape for image in images})
    layers = [block.attention.extra_repr() for block in model.blocks]
    print("\n".join(f"NeighborhoodAttention({layer})" for layer in layers))
    print(f"loss {loss:.3f}; {100 * accuracy:.1f} % of {len(images)} images, {shapes} shapes")
    print(f"largest difference from one image at a time: {error:.1e}")
    return accuracy, error


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
