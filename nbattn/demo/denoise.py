"""Denoise a photograph: non-local means as one neighborhood attention, compared with
scikit-image's implementation.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import nbattn.functional
from nbattn import geometry
from nbattn.demo import pictures
from nbattn.demo.report import Report
from nbattn.demo.trial import Trial
from nbattn.mask import Mask

SIGMA = 0.1  # standard deviation of the noise; pictures range from 0 to 1
GAIN_DB = 5.0  # target of the demo
# Pixels whose weights are drawn, as fractions of height and width.
LOOK = ((0.0, 0.6), (0.17, 0.36), (0.32, 0.5), (0.55, 0.62), (0.8, 0.9))
CROP = 56  # side of the corner that is compared with the dense reference


@dataclass(frozen=True)
class Means:
    """Settings of non-local means.

    Args:
        sigma: standard deviation of the noise.
        patch: side of the square patches that are compared.
        components: number of principal components of the patches that are compared. Noise spreads
            over all of them, the picture mostly over the first few. `None` = all: distances are
            exactly those of the patches.
        strength: filter strength h in units of sigma, per value of a patch.
    """

    sigma: float = SIGMA
    patch: int = 5
    components: int | None = 15
    strength: float = 0.55


def patch_features(picture: Tensor, patch: int, components: int | None) -> Tensor:
    """Return the principal components of the patch around every pixel, mirrored at the borders.

    Args:
        picture: `[H, W, C]`.
        patch: side of the patches, odd.
        components: number of components; `None` = all `patch² · C`.

    Returns:
        `[H, W, components]`, centred, so that the squares stay small and accurate.
    """
    height, width, _ = picture.shape
    mirrored = functional.pad(picture.movedim(-1, 0)[None], (patch // 2,) * 4, mode="reflect")
    patches = functional.unfold(mirrored, patch)[0].T
    patches = patches - patches.mean(0)
    _, basis = torch.linalg.eigh(
        patches.T @ patches
    )  # ascending: the last components have the most variance
    selected = basis if components is None else basis[:, -components:]
    return (patches @ selected).view(height, width, -1)


def attention_inputs(features: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return queries and keys whose softmax weight of key j for query i is proportional to
    exp(-|f_i - f_j|² / width).

    -|f_i - f_j|² = 2 f_i·f_j - |f_j|² - |f_i|², and a softmax over j cancels |f_i|². An additional
    column has |f_j|² in the key and -1 in the query.

    Args:
        features: `[H, W, K]`.
        width: h², in the units of the features' squares.

    Returns:
        Query and key `[1, H, W, 1, K + 1]`, for scale 1.
    """
    squares = features.square().sum(-1, keepdim=True)
    query = torch.cat([2 * features, -torch.ones_like(squares)], -1) / width
    key = torch.cat([features, squares], -1)
    return query[None, :, :, None], key[None, :, :, None]


def nonlocal_means(
    noisy: Tensor, features: Tensor, mask: Mask, means: Means, *, backend: str = "auto"
) -> Tensor:
    """Replace every pixel by the mean of the pixels it attends to, weighted by patch distance.

    Two noisy patches of the same picture differ by 2 sigma² per component, but a patch does not
    differ from itself, so the weight of a pixel itself is too large. That weight is exp(0) divided
    by the softmax's sum, which the logsumexp gives; it is reduced to the weight of a noisy copy.

    Args:
        noisy: `[H, W, C]`.
        features: `[H, W, K]`, features of the patch around each pixel.
        mask: two axes; every query attends to its own pixel.
        means: the settings.
        backend: as in `nbattn.attention`.

    Returns:
        `[H, W, C]`.
    """
    width = (means.strength * means.sigma) ** 2 * means.patch**2 * noisy.shape[-1]
    query, key = attention_inputs(features, width)
    value = noisy[None, :, :, None]
    mean, lse = nbattn.functional.attention(
        query, key, value, mask, scale=1.0, backend=backend, return_lse=True
    )
    own = torch.exp(features.square().sum(-1) / width - lse[0, :, :, 0])[..., None]
    copy = math.exp(-2 * means.sigma**2 * features.shape[-1] / width)
    excess = own * (1 - copy)
    return (mean[0, :, :, 0] - excess * noisy) / (1 - excess)


def denoised(noisy: Tensor, mask: Mask, means: Means) -> Tensor:
    """Return the denoised picture `[H, W, C]`."""
    features = patch_features(noisy, means.patch, means.components)
    return nonlocal_means(noisy, features, mask, means)


def reference_error(noisy: Tensor, mask: Mask, means: Means) -> tuple[float, int]:
    """Compare with the dense float64 reference in a corner of the picture.

    Two sides of the corner are borders of the picture. Along the other two sides the windows differ
    from those of the whole picture, so pixels there are left out.

    Returns:
        The largest difference, and the side of the square of compared pixels.
    """
    features = patch_features(noisy, means.patch, means.components)
    ours = nonlocal_means(noisy, features, mask, means)
    side = min(CROP, *noisy.shape[:2])
    corner = (slice(0, side), slice(noisy.shape[1] - side, None))
    exact = nonlocal_means(
        noisy[corner].double(), features[corner].double(), mask, means, backend="reference"
    )
    compared = side - max(mask.axes[0].left or 0, mask.axes[0].right or 0)
    difference = ours[corner][:compared, -compared:] - exact[:compared, -compared:]
    return difference.abs().max().item(), compared


def weights_of(
    noisy: Tensor, mask: Mask, means: Means, pixels: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Return the attention weights of single pixels: their gradients with respect to the values.

    Args:
        noisy: `[H, W, C]`.
        mask, means: as in `nonlocal_means`.
        pixels: N (row, column).

    Returns:
        `[N, H, W]`.
    """
    features = patch_features(noisy, means.patch, means.components)
    value = noisy.clone().requires_grad_()
    smooth = nonlocal_means(value, features, mask, means)
    gradients = [
        torch.autograd.grad(smooth[row, column, 0], value, retain_graph=True)[0][..., 0]
        for row, column in pixels
    ]
    return torch.stack(gradients).numpy()


def windows_of(
    shape: tuple[int, int], mask: Mask, pixels: Sequence[tuple[int, int]]
) -> list[tuple[slice, slice]]:
    """Return the rows and columns that single pixels attend to; the mask has no gaps."""
    axes = geometry.bind(mask, shape)
    runs = [
        [axis.key_intervals(query)[0] for axis, query in zip(axes, pixel, strict=True)]
        for pixel in pixels
    ]
    return [
        (slice(top, top + height), slice(left, left + width))
        for (top, height), (left, width) in runs
    ]


def photograph(size: int | None, name: str = "astronaut") -> Tensor:
    """Load a photograph of scikit-image, or its middle, as `[H, W, 3]` with values 0–1."""
    from skimage import data

    photo = torch.from_numpy(getattr(data, name)().copy()).float() / 255
    if size is None or size >= min(photo.shape[:2]):
        return photo
    top, left = ((length - size) // 2 for length in photo.shape[:2])
    return photo[top : top + size, left : left + size].contiguous()


def quality(photo: np.ndarray, picture: np.ndarray) -> tuple[float, float]:
    """Return PSNR in dB and SSIM of a picture, clipped to 0–1."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    clipped = picture.clip(0, 1)
    psnr: Any = peak_signal_noise_ratio(photo, clipped, data_range=1)
    ssim: Any = structural_similarity(photo, clipped, channel_axis=-1, data_range=1)
    return float(psnr), float(ssim)


def contenders(noisy: Tensor, mask: Mask, means: Means) -> dict[str, Callable[[], Any]]:
    """Return the denoisers by name: ours, and both of scikit-image with equal patches and window.

    All filter strengths give the best PSNR on this photograph at seed 0, of several values between
    0.4 and 0.9 sigma: ours is in `Means`, scikit-image's h is in this function.
    """
    from skimage.restoration import denoise_nl_means

    settings: dict[str, Any] = {
        "image": noisy.numpy(),
        "patch_size": means.patch,
        "patch_distance": max(mask.axes[0].left or 0, mask.axes[0].right or 0),
        "sigma": means.sigma,
        "channel_axis": -1,
    }
    return {
        "neighborhood attention": lambda: denoised(noisy, mask, means).numpy(),
        "scikit-image, fast": lambda: denoise_nl_means(
            h=0.55 * means.sigma, fast_mode=True, **settings
        ),
        "scikit-image, exact": lambda: denoise_nl_means(
            h=0.8 * means.sigma, fast_mode=False, **settings
        ),
    }


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes; 0 where unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measured(name: str, run: Callable[[], Any]) -> Trial:
    """Run a denoiser once; measure wall time, CPU time and memory."""
    clock, processor = time.perf_counter(), time.process_time()
    before = peak_memory()
    picture = run()
    seconds, on_processors = time.perf_counter() - clock, time.process_time() - processor
    return Trial(name, picture, seconds, on_processors, peak_memory() - before)


def run(report: Report, mask: Mask, output: Path, *, seed: int, size: int | None) -> None:
    """Denoise the photograph, print the results, and write the pictures."""
    means = Means()
    photo = photograph(size)
    generator = torch.Generator().manual_seed(seed)
    noisy = photo + means.sigma * torch.randn(photo.shape, generator=generator)
    _introduce(report, photo, mask, means)
    runs = contenders(noisy, mask, means)
    trials = [Trial("noisy", noisy.numpy(), 0, 0, 0)]
    with report.progress("denoising", len(runs)) as done:
        for name, contender in runs.items():
            trials.append(measured(name, contender))
            done(f"{name}, {trials[-1].seconds:.2f} s")
    scores = [quality(photo.numpy(), trial.picture) for trial in trials]
    _compare(report, trials, scores)
    dense = 4 * (photo.shape[0] * photo.shape[1]) ** 2
    report.line(
        f"\nmemory: at most {trials[1].memory / 2**20:.0f} MiB more than before; "
        f"dense scores alone would take {dense / 2**30:,.2f} GiB"
    )
    error, side = reference_error(noisy, mask, means)
    report.line(
        f"largest error of a pixel against the dense float64 reference, {side} x {side} corner:"
        f" {error:.1e} of a range of 1"
    )
    psnr = [score[0] for score in scores]
    pictures.before_and_after(report.picture(output / "denoised.png"), trials, psnr)
    pictures.comparison(report.picture(output / "comparison.png"), photo.numpy(), trials, psnr)
    _draw_weights(report.picture(output / "weights.png"), noisy, mask, means)
    gain = psnr[1] - psnr[0]
    report.check_target(gain >= GAIN_DB, f"{gain:.2f} dB gained; target: {GAIN_DB:g}")


def _draw_weights(path: Path, noisy: Tensor, mask: Mask, means: Means) -> None:
    height, width, _ = noisy.shape
    pixels = [(int(y * height), int(x * width)) for y, x in LOOK]
    weight = weights_of(noisy, mask, means, pixels)
    windows = windows_of((height, width), mask, pixels)
    pictures.weights(path, noisy.numpy(), weight, pixels, windows)


def _introduce(report: Report, photo: Tensor, mask: Mask, means: Means) -> None:
    """Print the task and its plan."""
    height, width, channels = photo.shape
    count = means.components or means.patch**2 * channels
    report.heading("Denoising a photograph by attention")
    report.line(
        f"photograph: scikit-image's astronaut, {height} x {width}; noise: sigma {means.sigma:g}\n"
        f"queries, keys: {means.patch} x {means.patch} patches in {count} principal components; "
        "values: pixels\n"
    )
    plan = nbattn.functional.plan(
        mask,
        (1, height, width, 1, count + 1),
        value_dim=channels,
        dtype=torch.float32,
        device="cpu",
        return_lse=True,
    )
    report.line(plan.explain())
    if plan.verify():
        report.line("  proved    the chosen program computes the mask's pairs and no others\n")


def _compare(report: Report, trials: list[Trial], scores: Sequence[tuple[float, float]]) -> None:
    """Print the table of all trials, and the differences between ours and the others."""
    noisy, ours = scores[:2]
    rows = [("noisy", f"{noisy[0]:.2f}", "", f"{noisy[1]:.3f}", "", "")]
    rows += [
        (
            trial.name,
            f"{psnr:.2f}",
            f"{psnr - noisy[0]:+.2f}",
            f"{ssim:.3f}",
            f"{trial.seconds:.2f}",
            f"{trial.processor_seconds:.2f}",
        )
        for trial, (psnr, ssim) in zip(trials[1:], scores[1:], strict=True)
    ]
    report.line()
    report.table(["", "PSNR, dB", "gain", "SSIM", "seconds", "CPU seconds"], rows)
    report.line()
    for peer, (psnr, ssim) in zip(trials[2:], scores[2:], strict=True):
        report.line(
            f"against {peer.name}: {ours[0] - psnr:+.2f} dB, {ours[1] - ssim:+.3f} SSIM, "
            f"{trials[1].seconds / peer.seconds:.2f} times its time"
        )
