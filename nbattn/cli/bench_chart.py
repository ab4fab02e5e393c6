"""The chart of `nbattn bench`: one bar per candidate, one panel per plan and pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbattn.errors import InputError
from nbattn.packages import install_line

if TYPE_CHECKING:
    from nbattn.bench import Job

_CHOSEN, _OTHER, _ESTIMATE = "#1f6f8b", "#b8c4c9", "#c8553d"
_WIDTH, _BAR, _PANEL = 8.0, 0.34, 0.95  # inches


def check_installed() -> None:
    """Check for matplotlib before the measurement starts.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib as matplotlib
    except ImportError:
        problem = "--png needs matplotlib, which is not installed."
        raise InputError(problem, install_line("viz")) from None


def save(jobs: list[Job], path: Path) -> bool:
    """Write the chart as a PNG; return whether there was something to draw: jobs with times."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    timed = [job for job in jobs if job.timed]
    if not timed:
        return False
    heights = [_PANEL + _BAR * len(job.timed) for job in timed]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid: Any = figure.subplots(len(timed), 1, squeeze=False, height_ratios=heights)
    for axes, job in zip(grid[:, 0], timed, strict=True):
        _panel(axes, job)
    figure.savefig(path, dpi=144, format="png")
    return True


def _panel(axes: Any, job: Job) -> None:
    """Draw the times of one job, the fastest on top, and each estimate as a tick."""
    names = [name for name, _ in job.timed]
    times = [1e3 * seconds for _, seconds in job.timed]
    estimates = {row.name: row.estimate for row in job.rows}
    colours = [_CHOSEN if name == job.plan.chosen.name else _OTHER for name in names]
    axes.barh(names, times, color=colours, height=0.62)
    for place, (name, time) in enumerate(zip(names, times, strict=True)):
        axes.annotate(
            f"{time:.3g}", (time, place), (5, 0), textcoords="offset points", va="center", size=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=3,
        )  # fmt: skip
        estimate = estimates[name]
        if estimate is not None:
            axes.plot(
                [1e3 * estimate] * 2, [place - 0.31, place + 0.31], color=_ESTIMATE, linewidth=1.5
            )
    axes.invert_yaxis()
    values = [*times, *(1e3 * b for b in estimates.values() if b)]
    if max(values) > 30 * min(values):
        axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel("ms (blue: chosen by the planner; red tick: its estimate)", size=8)
    axes.set_title(f"{job.title}\n{job.plan.request.summary()}", size=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
