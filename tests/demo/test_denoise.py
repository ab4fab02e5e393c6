"""Tests of the denoising demo: non-local means against loops, pictures and target."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import nbattn
from nbattn.cli import main
from nbattn.demo import CONFIG, denoise
from nbattn.demo.denoise import Means

CONFIGURATION = nbattn.load(CONFIG)
Capture = pytest.CaptureFixture[str]


def start(i: int, length: int, size: int) -> int:
    """Where a window of this size around i begins, moved inward at the borders."""
    return min(max(i - size // 2, 0), length - size)


def naive_patches(picture: np.ndarray, side: int) -> np.ndarray:
    height, width, channels = picture.shape
    out = np.empty((height, width, channels, side, side))
    for y, x, dy, dx in np.ndindex(height, width, side, side):
        row, column = y + dy - side // 2, x + dx - side // 2
        row = -row if row < 0 else 2 * (height - 1) - row if row >= height else row
        column = -column if column < 0 else 2 * (width - 1) - column if column >= width else column
        out[y, x, :, dy, dx] = picture[row, column]
    return out.reshape(height, width, -1)


def naive_means(picture: np.ndarray, patches: np.ndarray, window: int, means: Means) -> np.ndarray:
    """Weighted means by the formula: exp(-|p_i - p_j|² / h²), and for j = i as for a noisy copy."""
    height, width, channels = picture.shape
    h2 = (means.strength * means.sigma) ** 2 * means.patch**2 * channels
    out = np.zeros_like(picture)
    for y, x in np.ndindex(height, width):
        top, left = start(y, height, window), start(x, width, window)
        total = 0.0
        for j, k in np.ndindex(window, window):
            row, column = top + j, left + k
            distance = ((patches[y, x] - patches[row, column]) ** 2).sum()
            if (row, column) == (y, x):
                distance = 2 * means.sigma**2 * patches.shape[-1]
            weight = np.exp(-distance / h2)
            out[y, x] += weight * picture[row, column]
            total += weight
        out[y, x] /= total
    return out


def tiny(height: int = 11, width: int = 9) -> np.ndarray:
    generator = np.random.default_rng(3)
    ramp = np.linspace(0, 1, height)[:, None, None] * np.linspace(0.3, 1, width)[:, None]
    return ramp + 0.1 * generator.standard_normal((height, width, 3))


@pytest.mark.parametrize(("window", "patch"), [(5, 3), (7, 5), (9, 3)])
def test_all_components_are_the_formula_itself(window: int, patch: int, cases) -> None:
    picture = tiny()
    means = Means(patch=patch, components=None)
    got = denoise.denoised(
        torch.from_numpy(picture), nbattn.Mask.neighborhood((window,) * 2), means
    )
    exact = naive_means(picture, naive_patches(picture, patch), window, means)
    cases("demo: pixels of naive means", exact.size)
    assert np.abs(got.numpy() - exact).max() < 1e-11
    assert np.abs(picture - exact).max() > 0.05  # something was done


def test_few_components_are_the_formula_in_them() -> None:
    picture = tiny()
    means = Means(patch=3, components=4)
    patches = naive_patches(picture, 3)
    centred = patches - patches.mean((0, 1))
    _, _, directions = np.linalg.svd(centred.reshape(-1, 27), full_matrices=False)
    exact = naive_means(picture, centred @ directions[:4].T, 5, means)
    got = denoise.denoised(torch.from_numpy(picture), nbattn.Mask.neighborhood((5, 5)), means)
    assert np.abs(got.numpy() - exact).max() < 1e-11


def test_float32_stays_close_at_strong_contrast() -> None:
    """|f|² / h² reaches thousands here: what cancels in the softmax must not show."""
    picture = torch.from_numpy(np.where(tiny(30, 30) > 0.4, 1.0, 0.0)) + 0.01
    means, mask = Means(sigma=0.05), nbattn.Mask.neighborhood((21, 21))
    exact = denoise.denoised(picture, mask, means)
    assert (denoise.denoised(picture.float(), mask, means) - exact).abs().max() < 1e-3


def test_weights_are_those_of_a_mean_inside_the_window() -> None:
    picture, mask, pixels = torch.from_numpy(tiny(30, 31)), CONFIGURATION.masks["search"], [(0, 30)]
    weight = denoise.weights_of(picture, mask, Means(), pixels)[0]
    (window,) = denoise.windows_of((30, 31), mask, pixels)
    assert window == (slice(0, 21), slice(10, 31))
    assert weight[window].sum() == pytest.approx(1)
    weight[window] = 0
    assert not weight.any()


def test_denoising_meets_its_target_and_writes_only_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert main(["demo", "--part", "denoise", "--size", "64", "--output", "deep/out"]) == 0
    assert torch.get_num_threads() == threads
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert files == [f"deep/out/{name}.png" for name in ("comparison", "denoised", "weights")]
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert "proved    the chosen program" in out
    gains = [float(line.split()[-4]) for line in out.splitlines() if line.startswith("scikit")]
    assert len(gains) == 2
    assert all(gain > 5 for gain in gains)
    assert "target met" in out
    assert "all targets met" in out


def test_a_gain_below_the_target_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The pictures are those of the test above."""
    monkeypatch.setattr(denoise, "GAIN_DB", 50.0)
    monkeypatch.setattr(denoise, "pictures", MagicMock())
    out = ["--output", str(tmp_path)]
    assert main(["demo", "--part", "denoise", "--size", "32", *out]) == 1
    assert "target MISSED" in (printed := capsys.readouterr().out)
    assert "FAILED after" in printed
