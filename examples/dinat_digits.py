"""Transformers' DiNAT trained on real handwritten digits on a CPU, with nbattn in NATTEN's place.

Run it: `python examples/dinat_digits.py`. Its code and its weights are those of transformers; the
digits are scikit-learn's. Longer (epochs, channels): `python examples/dinat_digits.py 30 64`.
`nbattn demo digits` trains a model of nbattn's own layers instead.
"""

from __future__ import annotations

import importlib.util
import sys

import torch
from torch import Tensor, nn

from nbattn.demo.digits import load_digits
from nbattn.integrations import natten

SIZE = 32  # pixels after enlarging; DiNAT's first layers make 8 x 8 tokens of them


def build(channels: int) -> nn.Module:
    """A small DiNAT: two blocks on 8 x 8 tokens, the second dilated, and one on 4 x 4."""
    from transformers import DinatConfig, DinatForImageClassification

    config = DinatConfig(
        num_channels=1,
        embed_dim=channels,
        depths=[2, 1],
        num_heads=[2, 4],
        kernel_size=3,
        dilations=[[1, 2], [1]],
        num_labels=10,
        drop_path_rate=0.0,
        initializer_range=0.15,  # of few channels; its default is for wide models
    )
    return DinatForImageClassification(config)


def enlarged(images: Tensor) -> Tensor:
    """`[N, 8, 8]` to `[N, 1, 32, 32]`."""
    return nn.functional.interpolate(images[:, None], size=SIZE, mode="bilinear")


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Train in place; the mean loss of every epoch."""
    steps = epochs * -(-len(images) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    history: list[float] = []
    for _ in range(epochs):
        losses: list[float] = []
        for chosen in torch.randperm(len(images)).split(32):
            loss = model(images[chosen], labels=labels[chosen]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return history


def main(epochs: int = 3, channels: int = 32) -> float:
    """The share of unseen digits that is read after training."""
    if not all(map(importlib.util.find_spec, ("sklearn", "transformers"))):
        sys.exit("This needs two packages: pip install scikit-learn 'transformers>=5.24,<6'")
    natten.install(replace=True)  # before transformers asks whether there is one
    natten.repair_dinat()
    try:
        torch.manual_seed(0)
        digits, model = load_digits(), build(channels)
        history = train(model, enlarged(digits.images), digits.labels, epochs)
        with torch.no_grad():
            logits = model.eval()(enlarged(digits.test_images)).logits
    finally:
        natten.restore_dinat()
        natten.uninstall()
    accuracy = (logits.argmax(-1) == digits.test_labels).double().mean().item()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} of {count:,} parameters, {len(digits.images)} digits to learn")
    print(f"loss by epoch: {', '.join(f'{loss:.2f}' for loss in history)}")
    print(f"{100 * accuracy:.1f} % of {len(logits)} unseen digits are read")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
