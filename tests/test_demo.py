"""The demo: its non-local means against loops, its pictures, its targets and exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import nbattn
from nbattn.cli import main
from nbattn.demo import CONFIG, denoise, digits
from nbattn.demo.denoise import Means
from nbattn.demo.report import Report

CONFIGURATION = nbattn.load(CONFIG)
ROOT = Path(__file__).parents[1]
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


def test_the_configuration_is_the_packages_own_and_says_what_the_demo_needs() -> None:
    assert CONFIG.parent == Path(nbattn.__file__).parent / "demo"  # so that a wheel has it
    assert CONFIGURATION.masks["search"] == nbattn.Mask.neighborhood((21, 21))
    assert [layer.mask.axes[0].dilation for layer in CONFIGURATION.layers.values()] == [1, 2]


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


def test_denoising_meets_its_target_and_writes_only_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    assert main(["demo", "--part", "denoise", "--size", "96", "--output", "deep/out"]) == 0
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
    monkeypatch.setattr(denoise, "GAIN_DB", 50.0)
    out = ["--output", str(tmp_path)]
    assert main(["demo", "--part", "denoise", "--size", "32", *out]) == 1
    assert "target MISSED" in (printed := capsys.readouterr().out)
    assert "FAILED after" in printed


def test_digits_learn_and_too_few_epochs_miss_the_target(tmp_path: Path, capsys: Capture) -> None:
    assert main(["demo", "--part", "digits", "--epochs", "3", "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    verdict = next(line for line in out.splitlines() if line.startswith("target MISSED"))
    assert 30 < float(verdict.split()[2]) < 97
    assert out.count("training: epoch") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["digits.png"]


def test_a_file_in_the_way_and_missing_packages_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["demo", "--output", str(tmp_path / "taken")]) == 2
    assert "taken cannot be created: File exists" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "nbattn demo: the demo needs matplotlib, skimage, sklearn, which is not installed.\n"
        '  fix:   pip install "nbattn[demo]".\n'
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "8"], "8 is below 24; the search window is 21 wide"),
        (["--threads", "0"], "0 is below 1"),
        (["--seed", "-1"], "-1 is not in 0 … 2^63 - 1"),
        (["--part", "all"], "invalid choice: 'all'"),
        (["--epochs", "x"], "invalid"),
    ],
)
def test_misuse_exits_with_2(arguments: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", *arguments])
    assert message in capsys.readouterr().err


def test_help_says_what_it_prints_and_the_exit_status_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from nbattn.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "demo", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )
    for text in ("examples:", "exit status:", "prints:", "--output", "--part {denoise,digits}"):
        assert text in run.stdout
