"""The tables of a comparison: one per finished job, then all ratios with their targets."""

from __future__ import annotations

import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_MIB = 1 << 20
Row = dict[str, Any]


def console() -> Console:
    """Return a rich console on a terminal; plain text of 170 columns elsewhere."""
    return Console() if sys.stdout.isatty() else Console(width=170, force_terminal=False)


def short(seconds: float) -> str:
    """Format a time, in microseconds below a millisecond."""
    return f"{1e6 * seconds:.1f} us" if seconds < 1e-3 else f"{1e3 * seconds:.1f} ms"


def job_table(rows: list[Row], own: str) -> Table:
    """Return the table of all peers for one workload, dtype and pass."""
    first = rows[0]
    title = f"{first['workload']} {first['dtype']} {first['pass']}: {first['shape']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("peer", "ms", f"x {own}", "target", "extra MiB", "error", "runs"):
        table.add_column(name, justify="left" if name == "peer" else "right", no_wrap=True)
    table.add_column("note", overflow="fold")
    for row in rows:
        if "reason" in row:
            continue
        table.add_row(
            row["peer"], f"{1e3 * row['seconds']:.3g}" if row["seconds"] < 0.1 else
            f"{1e3 * row['seconds']:.0f}", _ratio(row), _target(row), _memory(row),
            f"{row['error']:.0e}", str(row["rounds"]), row["note"],
        )  # fmt: skip
    return table


def absent(rows: list[Row]) -> list[str]:
    """Return the lines of peers that did not run in a job, with reasons."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "reason" in row:
            reasons.setdefault(row["reason"], []).append(row["peer"])
    return [f"  no {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def _ratio(row: Row) -> str:
    return "" if row.get("ratio") is None else f"{row['ratio']:.2f}"


def _target(row: Row) -> str:
    if row.get("target") is None:
        return ""
    return f">= {row['target']:g} {'met' if row['met'] else 'MISSED'}"


def _memory(row: Row) -> str:
    """Format the extra memory, with its target where one is set."""
    extra = row["extra_bytes"]
    if extra is None:
        return "unknown"
    text = f"{extra / _MIB:.0f}"
    if "memory_limit" in row:
        text += f" <= {row['memory_limit'] / _MIB:.0f} {_verdict(row)}"
    elif "memory_met" in row:
        text += f" ({row['memory_ratio']:.0f}x) {_verdict(row)}"
    return text


def _verdict(row: Row) -> str:
    return "met" if row["memory_met"] else "MISSED"


def ratio_table(rows: list[Row], own: str) -> Table:
    """Return the table of peer time / own time; "!" marks missed targets."""
    peers = list(dict.fromkeys(row["peer"] for row in rows if row["peer"] != own))
    title = f'peer time / {own} time (above 1: {own} is faster; "!": below the target)'
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("workload", "dtype", "pass", f"{own} ms", "GF/s", "% peak", *peers):
        justify = "left" if name in ("workload", "dtype", "pass") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    jobs: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        job = (row["workload"], row["dtype"], row["pass"])
        jobs.setdefault(job, {})[row["peer"]] = row
    for job, named in jobs.items():
        ours = named.get(own, {})
        timed = "seconds" in ours
        table.add_row(
            *job, f"{1e3 * ours['seconds']:.1f}" if timed else "-",
            f"{ours['gflops']:.0f}" if timed else "-", _peak(ours),
            *(_cell(named.get(peer)) for peer in peers),
        )  # fmt: skip
    return table


def _cell(row: Row | None) -> str:
    if row is None or row.get("ratio") is None:
        return "-"
    return f"{row['ratio']:.2f}" + ("!" if row.get("met") is False else "")


def _peak(row: Row) -> str:
    if row.get("peak") is None:
        return "-"
    return f"{100 * row['peak']:.0f}" + ("!" if row.get("peak_met") is False else "")


def summary(rows: list[Row]) -> list[str]:
    """Return the number of met targets and the missed ones."""
    kinds = ("met", "memory_met", "peak_met")
    checked = [(row, kind) for kind in kinds for row in rows if row.get(kind) is not None]
    missed = [(row, kind) for row, kind in checked if not row[kind]]
    lines = [f"targets met: {len(checked) - len(missed)} of {len(checked)}"]
    for row, kind in missed:
        job = f"{row['workload']} {row['dtype']} {row['pass']}"
        lines.append(f"  missed: {job} {row['peer']}: {_missed(row, kind)}")
    return lines


def _missed(row: Row, kind: str) -> str:
    if kind == "met":
        return f"time {row['ratio']:.2f}, target {row['target']:g}"
    if kind == "peak_met":
        return f"{row['peak']:.2f} of the peak, target {row['peak_target']:g}"
    return f"extra MiB {_memory(row)}"


def peak_line(facts: dict[str, Any] | None) -> list[str]:
    """Return the line about the machine's FMA peak, if it is known."""
    if facts is None:
        return ["  FMA peak unknown: no C++ compiler"]
    rates = ", ".join(f"{rate} GF/s with {n} thread(s)" for n, rate in facts["gflops"].items())
    return [f"  FMA peak: {rates}: {facts['method']}"]


def legend(titles: dict[str, str], method: str) -> list[str]:
    """Return the descriptions of the peers and of the method."""
    return [*(f"  {name:<14} {title}" for name, title in titles.items()), f"  {method}"]
