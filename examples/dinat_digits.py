"""Train transformers' DiNAT on handwritten digits on a CPU, with nbattn as replacement of NATTEN.

Run it: `python examples/dinat_digits.py`. The model comes from transformers, the digits from
scikit-learn. Longer (epochs, channels): `python examples/dinat_digits.py 30 64`.
`nbattn demo --part digits` trains a model with nbattn's own layers instead.
"""

from __future__ import annotations

import importlib.util
import sys

import torch
from torch import Tensor, nn

from nbattn.demo.digits import load_digits
from nbattn.integrations import natten

SIZE = 32  # pixels after enlarging; DiNAT's first layers reduce them to 8 x 8 tokens


def build(channels: int) -> nn.Module:
    """Build a small DiNAT: two blocks on 8 x 8 tokens, the second dilated, and one on 4 x 4."""
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
        initializer_range=0.15,  # the default is for models with many channels
    )
    return DinatForImageClassification(config)


def enlarged(images: Tensor) -> Tensor:
    """Enlarge `[N, 8, 8]` to `[N, 1, 32, 32]`."""
    return nn.functional.interpolate(images[:, None], size=SIZE, mode="bilinear")


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> list[float]:
    """Train in place; return the mean loss of every epoch."""
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
    """Train, and return the accuracy on the test digits."""
    if not all(map(importlib.util.find_spec, ("sklearn", "transformers"))):
        sys.exit("This needs two packages: pip install scikit-learn 'transformers>=5.24,<6'")
    natten.install(replace=True)  # before transformers checks whether natten is installed
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
    print(f"{type(model).__name__} of {count:,} parameters, {len(digits.images)} training digits")
    print(f"loss by epoch: {', '.join(f'{loss:.2f}' for loss in history)}")
    print(f"{100 * accuracy:.1f} % of {len(logits)} test digits correct")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
