"""Tests of the gallery: lines of Python and pictures, each against the rule of its source."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import published_rules
import pytest
import svg_cells
from numpy.typing import NDArray
from published_rules import RULES, Lengths, Rule

from docs_tools import gallery
from nbattn import Mask, geometry

FOUND = gallery.content()
ENTRIES: dict[str, dict[str, Any]] = {entry["id"]: entry for entry in FOUND["entries"]}


def of_every_entry(test: Callable[..., None]) -> Any:
    return pytest.mark.parametrize("name", ENTRIES)(test)


def test_every_entry_has_a_rule_and_a_picture() -> None:
    assert [*ENTRIES] == [*RULES]
    assert {path.stem for path in gallery.PICTURES.iterdir()} == {*ENTRIES}
    assert {entry["group"] for entry in ENTRIES.values()} == {g["name"] for g in FOUND["groups"]}


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in gallery.PICTURES.iterdir()}
    assert max(sizes.values()) < 40_000, sizes
    assert sum(sizes.values()) < 1_200_000


@of_every_entry
def test_the_line_of_python_is_the_sources_rule(
    name: str, cases: Callable[[str, int], None]
) -> None:
    rule, mask = RULES[name], gallery.mask_of(ENTRIES[name]["code"])
    for queries, keys in (gallery.spaces(ENTRIES[name]), *rule.others):
        expected = published_rules.pairs(rule, rule.drawn, queries, keys)
        np.testing.assert_array_equal(mask.dense(queries, keys), expected, f"{queries}, {keys}")
        cases("gallery masks", 1)


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if "model" in entry])
def test_the_line_with_a_models_numbers_is_the_sources_rule(name: str) -> None:
    rule, model = RULES[name], ENTRIES[name]["model"]
    assert rule.model is not None
    queries, keys = gallery.spaces(model)
    random = np.random.default_rng(len(name))
    ends = [np.zeros(len(queries), dtype=np.int64), np.array(queries) - 1]
    at = np.stack([*ends, *random.integers(0, queries, (3, len(queries)))], axis=1)
    expected = published_rules.pairs_of(rule, rule.model, at, queries, keys)
    mask = gallery.mask_of(model["code"])
    for query, row in zip(at.T.tolist(), expected, strict=True):
        np.testing.assert_array_equal(keys_of(mask, query, queries, keys), row, f"query {query}")


def keys_of(mask: Mask, query: list[int], queries: Lengths, keys: Lengths) -> NDArray[np.bool_]:
    """The keys of one query of a long space, from its interval on every axis."""
    found = np.ones(1, dtype=bool)
    for axis, at in zip(geometry.bind(mask, queries, keys), query, strict=True):
        own = np.zeros(axis.keys, dtype=bool)
        for start, count in axis.key_intervals(at):
            own[start : start + axis.spec.dilation * count : axis.spec.dilation] = True
        found = (found[:, None] & own).ravel()
    return found


@of_every_entry
def test_the_committed_picture_shows_the_sources_rule(name: str) -> None:
    check_picture(name, (gallery.PICTURES / f"{name}.svg").read_text(encoding="utf-8"))


@of_every_entry
def test_a_pictures_words_are_the_sources_rule(name: str) -> None:
    entry, rule = ENTRIES[name], RULES[name]
    page = gallery.PAGE.read_text(encoding="utf-8")
    (words,) = re.findall(rf"!\[(.*?)\]\(\S*/{name}\.svg\)", page)
    said = [keys_said(part) for part in re.findall(r" keys? ([\d–]+(?:, [\d–]+)*)", words)]
    queries, keys = gallery.spaces(entry)
    if "query" in entry:
        row = published_rules.pairs_of(
            rule, rule.drawn, np.array(entry["query"])[:, None], queries, keys
        )
        assert said == [{*axis.tolist()} for axis in np.nonzero(row.reshape(keys))]
        assert str(tuple(entry["query"])) in words
        return
    pairs = published_rules.pairs(rule, rule.drawn, queries, keys)
    rows = [int(at) for at in re.findall(r"uery (\d+) attends", words)]
    assert rows == [0, len(pairs) // 2, len(pairs) - 1]
    assert said == [{*np.nonzero(pairs[at])[0].tolist()} for at in rows]


def keys_said(text: str) -> set[int]:
    """The keys of "0–2, 5"."""
    ends = [[int(end) for end in part.split("–")] for part in text.split(", ")]
    return {key for one in ends for key in range(one[0], one[-1] + 1)}


def check_picture(name: str, svg: str) -> None:
    shown = [*panels_of_rule(RULES[name], ENTRIES[name])]
    drawn = svg_cells.panels(svg, shown[0].shape)
    for number, (panel, expected) in enumerate(zip(drawn, shown, strict=True)):
        np.testing.assert_array_equal(panel, expected, f"panel {number}")
    slices = [text for text in svg_cells.names(svg) if text.startswith("axis 0 =")]
    assert slices == [f"axis 0 = {n}" for n in range(len(shown))] * (len(shown) > 1)


def panels_of_rule(rule: Rule, entry: dict[str, Any]) -> Iterator[NDArray[np.bool_]]:
    """What a picture of an entry must show: all pairs, or a query's keys, plane by plane."""
    queries, keys = gallery.spaces(entry)
    if "query" not in entry:
        yield published_rules.pairs(rule, rule.drawn, queries, keys)
        return
    at = np.array(entry["query"])[:, None]
    row = published_rules.pairs_of(rule, rule.drawn, at, queries, keys)
    yield from row.reshape(-1, *keys[-2:])


# One picture of each kind: kinds of cells, ranks, spaces of different lengths.
SOME = ["streaming-llm", "gemma", "longnet", "ring", "nat", "globe-far", "ltx2-decoder"]
DEEP = [pytest.param(name, marks=pytest.mark.deep) for name in ENTRIES if name not in SOME]


@pytest.mark.parametrize("name", [*SOME, *DEEP])
def test_a_picture_drawn_now_shows_the_sources_rule(name: str) -> None:
    check_picture(name, gallery.drawn(ENTRIES[name]))


def test_a_picture_drawn_again_has_the_same_bytes() -> None:
    entry = ENTRIES["swin"]
    assert gallery.drawn(entry) == gallery.drawn(entry)
