"""Make a cost table of GPU findings: times of tiles and of candidates, as the planner reads them.

    PYTHONPATH=. python benchmarks/fit_costs.py FOLDER --output costs.json

FOLDER has the lines of the sweeps of tiles and of `gpu_flash.py`. Only measured lines count: none
of a dry run, none with an error; of several the median. The entry says which GPU, torch and nbattn
they are of. `nbattn/planner/costs.json` is the table that the package ships.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from findings import read

from nbattn.planner.cost_table import Entry, Fingerprint, encode
from nbattn.program import device

Rows = Iterable[Mapping[str, Any]]


def fingerprint(row: Mapping[str, Any]) -> Fingerprint:
    """Return the device and versions of a finding."""
    name = device.cuda(*row["capability"]).name
    versions = row["versions"]
    return Fingerprint(name, row["gpu"], 0, versions["torch"], versions["nbattn"])


def entries(rows: Rows) -> tuple[Entry, ...]:
    """Return one entry per device and versions."""
    tiles: dict[Any, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    times: dict[Any, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    dates: dict[Fingerprint, str] = {}
    for row in rows:
        if not row.get("gpu") or row.get("dry") or "error" in row:
            continue
        known, seconds = fingerprint(row), row.get("seconds")
        request = json.dumps(row["request"], sort_keys=True) if "request" in row else None
        if request is None or not seconds:
            continue
        dates[known] = max(dates.get(known, ""), str(row["date"])[:10])
        if row["kind"] == "tile":
            tiles[known][request][row["tile"]].append(seconds)
        elif row["kind"] == "regret":
            for name, one in seconds.items():
                times[known][key_of(row["request"])][name].append(one)
    return tuple(
        Entry(known, dates[known], None, medians(times[known]), medians(tiles[known]))
        for known in dates
    )


def key_of(request: Mapping[str, Any]) -> str:
    """Return a request as the key of a table."""
    return json.dumps(request, sort_keys=True)


def medians(found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Return the median of every name."""
    return {
        request: {name: statistics.median(seconds) for name, seconds in named.items()}
        for request, named in found.items()
    }


def main(words: list[str] | None = None) -> int:
    """Write the table; 1 if there is nothing to write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="has the findings, *.jsonl")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(words)
    rows = [row for path in sorted(options.folder.glob("gpu_*.jsonl")) for row in read(path)]
    found = entries(rows)
    for entry in found:
        print(
            f"{entry.fingerprint.model}, torch {entry.fingerprint.torch}: "
            f"{sum(map(len, entry.tiles.values()))} tiles of {len(entry.tiles)} requests, "
            f"candidates of {len(entry.times)} requests"
        )
    if not found:
        print(f"{options.folder} has no measured time.", file=sys.stderr)
        return 1
    options.output.write_text(encode(found), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
