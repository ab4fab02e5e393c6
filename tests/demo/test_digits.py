"""Tests of the digits demo: its split, training, picture and target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import nbattn
from nbattn.cli import main
from nbattn.demo import CONFIG, digits
from nbattn.demo.report import Report

CONFIGURATION = nbattn.load(CONFIG)
Capture = pytest.CaptureFixture[str]


def test_the_split_is_stratified_and_the_same_for_every_seed() -> None:
    first, second = digits.load_digits(), digits.load_digits()
    assert torch.equal(first.test_images, second.test_images)
    assert (len(first.images), len(first.test_images)) == (1347, 450)
    assert torch.bincount(first.test_labels).tolist() == [45, 46, 44, 46, 45, 46, 45, 45, 43, 45]
    assert first.images.max() == first.test_images.max() == 1


def trained(seed: int) -> list[tuple[float, float]]:
    data = digits.load_digits()
    few = digits.Digits(data.images[:96], data.labels[:96], data.test_images, data.test_labels)
    recipe = digits.Recipe(depth=2, epochs=2)
    torch.manual_seed(seed)
    model = digits.Classifier(CONFIGURATION.layers, recipe.depth)
    return digits.train(model, few, recipe, seed, Report())


def test_a_seed_decides_the_training() -> None:
    assert trained(1) == trained(1) != trained(2)


def test_jitter_without_amplitude_changes_nothing() -> None:
    images = digits.load_digits().images[:5]
    still = digits.Recipe(angle=0, shift=0)
    assert torch.allclose(digits.jittered(images, still, torch.Generator()), images, atol=1e-6)
    moved = digits.jittered(images, digits.Recipe(angle=0, shift=1), torch.Generator())
    assert 0.01 < (moved - images).abs().mean() < 0.3


def test_the_worst_pair_counts_both_ways() -> None:
    labels, read = torch.tensor([3, 8, 8, 1, 1, 1]), torch.tensor([8, 3, 8, 7, 7, 1])
    labels, read = torch.cat([labels, torch.tensor([3])]), torch.cat([read, torch.tensor([8])])
    assert digits.worst_pair(digits.confusion(labels, read)) == (3, 8, 3)


@dataclass(frozen=True)
class Shallow(digits.Recipe):
    """One block of each kind, which learns faster."""

    depth: int = 2


def test_digits_learn_and_too_few_epochs_miss_the_target(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "Recipe", Shallow)
    assert main(["demo", "--part", "digits", "--epochs", "3", "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    verdict = next(line for line in out.splitlines() if line.startswith("target MISSED"))
    assert 60 < float(verdict.split()[2]) < 97
    assert out.count("training: epoch") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]
