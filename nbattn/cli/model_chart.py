"""The chart of `nbattn plan --model`: for layers that attend alike, with windows against dense."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn.cli import screen
from nbattn.errors import InputError
from nbattn.packages import install_line

if TYPE_CHECKING:
    from nbattn.published import ModelPlan

# Okabe and Ito's blue, which is distinct from grey for every kind of colour vision.
_WINDOWS, _DENSE = "#0072B2", "#b8c4c9"
_WIDTH, _BAR, _FRAME = 8.0, 0.36, 1.4  # inches
_LONG = 1000  # times: bars further apart than this need a logarithmic axis


def check_installed() -> None:
    """Check for matplotlib before anything is planned.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib as matplotlib
    except ImportError:
        problem = "--plot needs matplotlib, which is not installed."
        raise InputError(problem, install_line("viz")) from None


def save(plan: ModelPlan, path: Path) -> None:
    """Write the chart, as a PNG or an SVG by the path's ending."""
    figure(plan).savefig(path, dpi=144, format=path.suffix[1:].lower())


def figure(plan: ModelPlan) -> Any:
    """Draw the times of all layers of a kind, in the order of the model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = plan.names()
    drawn = Figure(figsize=(_WIDTH, _FRAME + 2 * _BAR * len(names)), layout="constrained")
    FigureCanvasAgg(drawn)
    axes: Any = drawn.subplots()
    bars = (("dense", _DENSE, "dense_seconds", -0.2), ("with windows", _WINDOWS, "seconds", 0.2))
    longest: list[float] = []
    for label, colour, number, offset in bars:
        times = [1e3 * part.layers.count * getattr(part, number) for part in plan.layers]
        places = [place + offset for place in range(len(names))]
        axes.barh(places, times, height=0.38, color=colour, label=label)
        longest += times
        for place, time in zip(places, times, strict=True):
            axes.annotate(screen.rounded(time), (time, place), (4, 0),
                          textcoords="offset points", va="center", size=8)  # fmt: skip
    scale = "log" if max(longest) > _LONG * min(longest) else "linear"
    axes.set_xscale(scale)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.14)
    what = "ms of attention in all layers of a row"
    axes.set_xlabel(what + ", logarithmic" * (scale == "log"), size=8)
    axes.set_title(_title(plan), size=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="best")
    return drawn


def _title(plan: ModelPlan) -> str:
    request, clocks = plan.request, " and ".join(sorted(plan.clocks()))
    clip = f"{plan.frames} frames of " * bool(plan.model.stride)
    size = f"{clip}{plan.size[0]} x {plan.size[1]} pixels"
    training = ", training" * request.training
    layers = f"{sum(part.layers.count for part in plan.layers)} layers, times are {clocks}"
    faster = plan.speedup
    times = "" if faster is None else f": attention {screen.rounded(faster)} times as fast as dense"
    return (
        f"{plan.model.title}, {size}, {request.dtype}, {request.device.name}{training}\n"
        f"{layers}{times}"
    )
