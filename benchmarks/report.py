"""The tables of a comparison: one per finished job, then all ratios with their targets."""

from __future__ import annotations

import sys
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

OWN = "nbattn"
_MIB = 1 << 20
Row = dict[str, Any]


def console() -> Console:
    """Return a rich console on a terminal; plain text of 170 columns elsewhere."""
    return Console() if sys.stdout.isatty() else Console(width=170, force_terminal=False)


def job_table(rows: list[Row]) -> Table:
    """Return the table of all peers for one workload, dtype and pass."""
    first = rows[0]
    title = f"{first['workload']} {first['dtype']} {first['pass']}: {first['shape']}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("peer", "ms", "x nbattn", "target", "extra MiB", "error", "runs"):
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


def ratio_table(rows: list[Row]) -> Table:
    """Return the table of peer time / nbattn time; "!" marks missed targets."""
    peers = list(dict.fromkeys(row["peer"] for row in rows if row["peer"] != OWN))
    title = 'peer time / nbattn time (above 1: nbattn is faster; "!": below the target)'
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("workload", "dtype", "pass", "nbattn ms", "GF/s", *peers):
        justify = "left" if name in ("workload", "dtype", "pass") else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    jobs: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        job = (row["workload"], row["dtype"], row["pass"])
        jobs.setdefault(job, {})[row["peer"]] = row
    for job, named in jobs.items():
        ours = named.get(OWN, {})
        timed = "seconds" in ours
        table.add_row(
            *job, f"{1e3 * ours['seconds']:.1f}" if timed else "-",
            f"{ours['gflops']:.0f}" if timed else "-", *(_cell(named.get(peer)) for peer in peers),
        )  # fmt: skip
    return table


def _cell(row: Row | None) -> str:
    if row is None or row.get("ratio") is None:
        return "-"
    return f"{row['ratio']:.2f}" + ("!" if row.get("met") is False else "")


def summary(rows: list[Row]) -> list[str]:
    """Return the number of met targets and the missed ones."""
    checked = [(row, "met") for row in rows if row.get("met") is not None]
    checked += [(row, "memory_met") for row in rows if row.get("memory_met") is not None]
    missed = [(row, kind) for row, kind in checked if not row[kind]]
    lines = [f"targets met: {len(checked) - len(missed)} of {len(checked)}"]
    for row, kind in missed:
        value = f"{row['ratio']:.2f}, target {row['target']:g}" if kind == "met" else _memory(row)
        subject = "time" if kind == "met" else "extra MiB"
        lines.append(
            f"  missed: {row['workload']} {row['dtype']} {row['pass']} "
            f"{row['peer']}: {subject} {value}"
        )
    return lines


def legend(titles: dict[str, str], method: str) -> list[str]:
    """Return the descriptions of the peers and of the method."""
    return [*(f"  {name:<13} {title}" for name, title in titles.items()), f"  {method}"]
