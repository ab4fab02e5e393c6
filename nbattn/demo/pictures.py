"""Draw the demo's pictures with matplotlib, without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nbattn.demo.trial import Trial

INK, ACCENT = "#1f2933", "#e8590c"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
}


def comparison(
    path: Path, photo: np.ndarray, trials: Sequence[Trial], psnr: Sequence[float]
) -> None:
    """Draw the photograph and every trial; below each, an enlarged part and its errors.

    Args:
        path: where to write the PNG.
        photo: `[H, W, 3]`.
        trials: pictures of the same shape.
        psnr: PSNR in dB, one per trial.
    """
    height, width, _ = photo.shape
    side = height // 5
    top, left = int(0.11 * height), int(0.35 * width)
    zoom = (slice(top, top + side), slice(left, left + side))
    figure, axes = grid_of_axes(3, 1 + len(trials), (3.2 * (1 + len(trials)), 10.1))
    named = [(f"{t.name}, {db:.1f} dB", t.picture) for t, db in zip(trials, psnr, strict=True)]
    for column, (title, picture) in enumerate([("photograph", photo), *named]):
        whole, part, wrong = axes[:, column]
        whole.imshow(picture.clip(0, 1), interpolation="lanczos")
        whole.set_title(title, fontweight="bold" if column == 2 else "normal")
        _frame(whole, left, top, side)
        part.imshow(picture[zoom].clip(0, 1), interpolation="nearest")
        if column:
            errors = 0.5 + 2 * (picture - photo)[zoom]
            wrong.imshow(errors.clip(0, 1), interpolation="nearest")
    _note(axes[2, 0], "above: the framed part\n\nright: its errors,\ntimes 2, on grey")
    save(figure, path)


def before_and_after(path: Path, trials: Sequence[Trial], psnr: Sequence[float]) -> None:
    """Draw the first two trials side by side.

    Args:
        path: where to write the PNG.
        trials: at least two, the noisy picture first.
        psnr: PSNR in dB, one per trial.
    """
    figure, axes = grid_of_axes(1, 2, (8, 4.2))
    for axis, trial, db in zip(axes[0], trials, psnr, strict=False):
        axis.imshow(trial.picture.clip(0, 1), interpolation="lanczos")
        axis.set_title(f"{trial.name}, {db:.1f} dB")
    save(figure, path, dpi=100)


def weights(
    path: Path,
    noisy: np.ndarray,
    weight: np.ndarray,
    pixels: Sequence[tuple[int, int]],
    windows: Sequence[tuple[slice, slice]],
) -> None:
    """Draw the windows of single pixels in the noisy picture, and the attention weights in them.

    Args:
        path: where to write the PNG.
        noisy: `[H, W, 3]`.
        weight: `[N, H, W]`, the weights of each of N pixels.
        pixels: N (row, column).
        windows: rows and columns of each pixel's window.
    """
    figure, axes = grid_of_axes(2, 1 + len(pixels), (2.7 * (1 + len(pixels)), 5.7))
    axes[0, 0].imshow(noisy.clip(0, 1), interpolation="lanczos")
    axes[0, 0].set_title("queries and their windows")
    _note(axes[1, 0], "right: each window,\nand the weights in it\n\nthe cross is the query")
    for column, ((y, x), window) in enumerate(zip(pixels, windows, strict=True), 1):
        rows, columns = window
        _frame(axes[0, 0], columns.start, rows.start, columns.stop - columns.start)
        part, share = axes[:, column]
        part.imshow(noisy[window].clip(0, 1), interpolation="nearest")
        part.set_title(f"row {y}, column {x}")
        share.imshow(
            weight[column - 1][window].clip(0) ** 0.4, cmap="magma", interpolation="nearest"
        )
        for axis in (part, share):
            axis.plot(x - columns.start, y - rows.start, "+", color="white", markersize=10)
    save(figure, path)


def digits(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
    history: Sequence[tuple[float, float]],
) -> None:
    """Draw the training curve and test digits, misclassified ones first.

    Args:
        path: where to write the PNG.
        images: `[N, 8, 8]`.
        labels, predicted: `[N]`.
        history: (loss, accuracy) of every epoch.
    """
    order = np.argsort(labels == predicted, kind="stable")
    figure, axes = grid_of_axes(4, 10, (13, 5.6))
    for axis in axes[:, :4].flat:
        axis.remove()
    _curve(figure.add_subplot(axes[0, 0].get_gridspec()[:, :4]), history)
    for axis, index in zip(axes[:, 4:].flat, order, strict=False):
        right = labels[index] == predicted[index]
        axis.imshow(images[index], cmap="gray_r", interpolation="nearest")
        text = f"{labels[index]}" if right else f"{labels[index]} as {predicted[index]}"
        axis.set_title(text, fontsize=9, color=INK if right else ACCENT)
        for spine in axis.spines.values():
            spine.set_color("#cbd2d9" if right else ACCENT)
    right = int((labels == predicted).sum())
    figure.suptitle(f"{right} of {len(labels)} test digits correct; wrong ones first")
    save(figure, path)


def _curve(axis: Any, history: Sequence[tuple[float, float]]) -> None:
    """Draw the error rate on the training set by epoch."""
    epochs = range(1, len(history) + 1)
    axis.semilogy(epochs, [100 * (1 - share) for _, share in history], color=ACCENT, linewidth=2)
    axis.set_xlabel("epoch")
    axis.set_ylabel("training errors, %")
    axis.set_ylim(top=100)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(color="#e4e7eb", which="both")
    axis.spines[["top", "right"]].set_visible(False)


def grid_of_axes(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Create a figure and axes without ticks; pyplot is not used, since it needs a display."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure: Any = Figure(size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _frame(axis: Any, left: int, top: int, side: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (left - 0.5, top - 0.5)
    axis.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=ACCENT, linewidth=1.6))


def _note(axis: Any, text: str) -> None:
    axis.axis("off")
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)


def save(figure: Any, path: Path, dpi: int = 130) -> None:
    """Write a PNG, independent of the user's matplotlib backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_figure(path, dpi=dpi)
