"""All tables, by the part of the package whose errors they repair; and what has no row yet."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fixes import (
    added,
    calls,
    config,
    diffusion,
    distributed,
    export,
    halos,
    integrations,
    joint,
    kernels,
    layers,
    masks,
    packed,
    places,
    planning,
    published,
    ranks,
    recipes,
    sites,
    surface,
    tensors,
    terminal,
    weights,
)

TABLES = {
    "added": added.ROWS,
    "masks": masks.ROWS,
    "calls": calls.ROWS,
    "config": config.ROWS,
    "diffusion": diffusion.ROWS,
    "distributed": distributed.ROWS,
    "export": export.ROWS,
    "halos": halos.ROWS,
    "integrations": integrations.ROWS,
    "joint": joint.ROWS,
    "kernels": kernels.ROWS,
    "layers": layers.ROWS,
    "packed": packed.ROWS,
    "places": places.ROWS,
    "planning": planning.ROWS,
    "published": published.ROWS,
    "ranks": ranks.ROWS,
    "recipes": recipes.ROWS,
    "surface": surface.ROWS,
    "tensors": tensors.ROWS,
    "terminal": terminal.ROWS,
    "weights": weights.ROWS,
}


Found = tuple[str, sites.Site]  # a fix, and the place that made it


def found(area: str, number: int) -> list[Found]:
    """The fixes of a row's call, in order. The processes of a run share them: every call runs once,
    for the test of its row or for that of all places.
    """
    run = os.environ.get("NBATTN_TEST_RUN")
    file = Path(run or "", f"{area}-{number}.json")
    if run and file.is_file():
        return [(fix, sites.Site(*site)) for fix, site in json.loads(file.read_text("utf-8"))]
    made = [(error.fix, error.site) for error in TABLES[area][number].raised()]
    if run:
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(made), "utf-8")
        partial.replace(file)
    return made


def places_without_a_row() -> list[str]:
    """The places of the package that make an error with a fix, and that no row's call reaches."""
    numbered = ((area, number) for area, rows in TABLES.items() for number in range(len(rows)))
    made = {site for area, number in numbered for _, site in found(area, number)}
    return sorted(map(str, sites.in_source() - made))
