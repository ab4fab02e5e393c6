"""Train and test a small transformer with dilated neighborhood attention on handwritten digits."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nbattn.demo import pictures
from nbattn.demo.report import Report
from nbattn.errors import InputError
from nbattn.packages import install_package

if TYPE_CHECKING:
    from nbattn.config import LayerConfig

ACCURACY = 0.97  # target of the demo
SPLIT = 0  # seed that selects the test set; no setting was tuned on the test set


@dataclass(frozen=True)
class Recipe:
    """How the classifier is trained.

    Every value was tuned on a part of the training set, never on the test set.

    Args:
        depth: number of blocks; their layers alternate.
        epochs: passes over the training set.
        batch: images per step.
        rate: peak learning rate.
        angle: the largest random rotation of an image, in radians.
        shift: the largest random shift of an image, in pixels.
        smoothing: label smoothing.
    """

    depth: int = 4
    epochs: int = 30
    batch: int = 32
    rate: float = 3e-3
    angle: float = 0.2
    shift: float = 0.5
    smoothing: float = 0.1


@dataclass(frozen=True)
class Digits:
    """Scikit-learn's digits, split in two: images `[N, 8, 8]` in 0–1 and labels `[N]`."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Block(nn.Module):
    """A residual attention over neighbors, then a residual perceptron per pixel."""

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(dim), attention)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, 8, 8, dim]` to the same shape."""
        x = x + self.attend(x)
        return x + self.mlp(x)


class Classifier(nn.Module):
    """Map images `[B, 8, 8]` to logits `[B, 10]`: one token per pixel, blocks, mean over tokens.

    Args:
        layers: configurations of `NeighborhoodAttention`; the blocks alternate between them.
        depth: number of blocks.
    """

    def __init__(self, layers: Mapping[str, LayerConfig], depth: int) -> None:
        super().__init__()
        kinds = list(layers.values())
        dim = kinds[0].dim
        self.tokens = nn.Conv2d(1, dim, 3, padding=1)
        self.positions = nn.Parameter(torch.zeros(8, 8, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, kinds[n % len(kinds)].build()) for n in range(depth))
        )
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of every image."""
        x = self.tokens(images[:, None]).movedim(1, -1) + self.positions
        return self.head(self.blocks(x).mean((1, 2)))


def load_digits() -> Digits:
    """Load the 1,797 digits of scikit-learn; a quarter of each class is the test set."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        problem = "the digits come from scikit-learn, which is not installed."
        raise InputError(problem, install_package("scikit-learn")) from None

    data: Any = load_digits()
    parts = train_test_split(
        data.images, data.target, test_size=0.25, stratify=data.target, random_state=SPLIT
    )
    images, test_images, labels, test_labels = map(torch.from_numpy, parts)
    return Digits(images.float() / 16, labels, test_images.float() / 16, test_labels)


def jittered(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Rotate and shift each image of `[B, 8, 8]` randomly."""
    turn, down, right = 2 * torch.rand(3, len(images), generator=generator) - 1
    cos, sin = (recipe.angle * turn).cos(), (recipe.angle * turn).sin()
    pixel = 2 / images.shape[-1]  # grid coordinates go from -1 to 1
    rows = [cos, -sin, recipe.shift * pixel * right, sin, cos, recipe.shift * pixel * down]
    maps = torch.stack(rows, -1).view(-1, 2, 3)
    grid = functional.affine_grid(maps, [len(images), 1, *images.shape[1:]], align_corners=False)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def train(
    model: Classifier, digits: Digits, recipe: Recipe, seed: int, report: Report
) -> list[tuple[float, float]]:
    """Train in place; return the mean loss and the accuracy of every epoch."""
    generator = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * math.ceil(len(digits.images) / recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=steps, pct_start=0.2
    )
    history: list[tuple[float, float]] = []
    with report.progress("training", recipe.epochs) as done:
        for epoch in range(1, recipe.epochs + 1):
            losses: list[float] = []
            right = 0
            order = torch.randperm(len(digits.images), generator=generator)
            for chosen in order.split(recipe.batch):
                logits = model(jittered(digits.images[chosen], recipe, generator))
                labels = digits.labels[chosen]
                loss = functional.cross_entropy(logits, labels, label_smoothing=recipe.smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                right += int((logits.argmax(-1) == labels).sum())
            history.append((float(np.mean(losses)), right / len(order)))
            loss, share = history[-1]
            done(f"epoch {epoch:2}/{recipe.epochs}, loss {loss:.3f}, {100 * share:.1f} % right")
    return history


def confusion(labels: Tensor, predicted: Tensor) -> np.ndarray:
    """Return the confusion matrix `[10, 10]`: rows are labels, columns are predictions."""
    return torch.bincount(10 * labels + predicted, minlength=100).view(10, 10).numpy()


def worst_pair(counts: np.ndarray) -> tuple[int, int, int]:
    """Return the most often confused pair of digits, the smaller first, and its error count."""
    both = np.triu(counts + counts.T, 1)
    first, second = np.unravel_index(both.argmax(), both.shape)
    return int(first), int(second), int(both.max())


def run(
    report: Report,
    layers: Mapping[str, LayerConfig],
    output: Path,
    *,
    seed: int,
    epochs: int | None,
) -> None:
    """Train on three quarters of the digits, test on the rest, print and draw the results."""
    recipe = Recipe() if epochs is None else Recipe(epochs=epochs)
    digits = load_digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(layers, recipe.depth)
    _introduce(report, model, digits, layers)
    clock, processor = time.perf_counter(), time.process_time()
    history = train(model, digits, recipe, seed, report)
    seconds, on_processors = time.perf_counter() - clock, time.process_time() - processor
    with torch.no_grad():
        predicted = model.eval()(digits.test_images).argmax(-1)
    right = int((predicted == digits.test_labels).sum())
    accuracy, total = right / len(predicted), len(predicted)
    counts = confusion(digits.test_labels, predicted)
    report.line(
        f"\ntrained in {seconds:.1f} s, {on_processors:.1f} s of them on processors; "
        f"{right} of {total} test digits correct"
    )
    first, second, times = worst_pair(counts)
    if times:
        report.line(f"most often confused: {first} and {second}, {times} of {total - right} errors")
    images, labels = digits.test_images.numpy(), digits.test_labels.numpy()
    path = report.picture(output / "digits.png")
    pictures.digits(path, images, labels, predicted.numpy(), history)
    report.check_target(
        accuracy >= ACCURACY,
        f"{100 * accuracy:.2f} % of the test set correct; target: {100 * ACCURACY:g} %",
    )


def _introduce(
    report: Report, model: Classifier, digits: Digits, layers: Mapping[str, LayerConfig]
) -> None:
    """Print the data, the model, and the kernel of each layer."""
    report.heading("Classifying digits by dilated neighborhood attention")
    count = sum(parameter.numel() for parameter in model.parameters())
    report.line(
        f"data: scikit-learn's handwritten digits, 8 x 8 pixels, {len(digits.images):,} for "
        f"training, {len(digits.test_images)} for testing\n"
        f"model: {count:,} parameters, {len(model.blocks)} blocks with alternating layers"
    )
    for name, layer in layers.items():
        module = layer.build()
        plan = module.plan_for((Recipe.batch, 8, 8, layer.dim))
        report.line(f"  {name:<5} {module.mask!r}: {plan.chosen.name}")
    report.line()
