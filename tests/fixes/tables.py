"""All tables, by the part of the package whose errors they repair; and what has no row yet."""

from __future__ import annotations

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


def places_without_a_row() -> list[str]:
    """The places of the package that make an error with a fix, and that no row's call reaches."""
    made = {error.site for rows in TABLES.values() for row in rows for error in row.raised()}
    return sorted(map(str, sites.in_source() - made))
