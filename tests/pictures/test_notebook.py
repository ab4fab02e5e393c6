"""Tests of what notebooks show: well-formed, escaped tables, and pictures of the right keys."""

from __future__ import annotations

import importlib.util
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from oracle import axes, axis_matrix

import nbattn
from nbattn import Axis, Mask
from nbattn.pictures import small_svg
from nbattn.program.candidate import refused
from nbattn.program.limits import Reason


def tree_of(shown: object) -> ElementTree.Element:
    """The parsed HTML, which may load nothing from elsewhere."""
    text = shown._repr_html_()
    assert not re.search(r"https?:|url\(|<script|<style|<link|<img", text)
    return ElementTree.fromstring(f"<div>{text.replace('<br>', '<br/>')}</div>")


def texts(tree: ElementTree.Element) -> list[str]:
    return ["".join(cell.itertext()) for cell in tree.iter("td")]


def painted(svg: ElementTree.Element, path: ElementTree.Element) -> np.ndarray:
    """The cells that a path covers."""
    width, height = map(int, svg.get("viewBox", "").split()[2:])
    cells = np.zeros((height, width), dtype=bool)
    for x, y, length in re.findall(r"M(-?\d+) ([\d.]+)h(\d+)", path.get("d", "")):
        assert not cells[int(float(y)), int(x) : int(x) + int(length)].any()
        cells[int(float(y)), int(x) : int(x) + int(length)] = True
    return cells


READ, MOVED, PREFIX, OWN = "#0072B2", "#E69F00", "#009E73", "#56B4E9"


def colours(svg: ElementTree.Element) -> dict[str, np.ndarray]:
    """The cells of every colour; own positions are on top of others."""
    return {path.get("stroke", ""): painted(svg, path) for path in svg.iter("path")}


@settings(max_examples=60)
@given(axes())
@example(Axis(1, 0, prefix=3))
def test_a_picture_has_the_keys_of_every_query(axis: Axis) -> None:
    (svg,) = tree_of(Mask(axis)).iter("svg")
    found = colours(svg)
    own = found.pop(OWN, None)
    if not found:
        return
    shape = next(iter(found.values())).shape
    if shape[1] > small_svg.EXACT:
        return
    expected = axis_matrix(axis, *shape)
    np.testing.assert_array_equal(sum(cells.astype(int) for cells in found.values()), expected)
    positions = np.eye(*shape, k=axis.offset, dtype=bool) & expected
    assert (own is None) == (not positions.any())
    if own is not None:
        np.testing.assert_array_equal(own, positions)


def test_what_a_border_moves_and_a_prefix_have_colours() -> None:
    (svg,) = tree_of(Mask(Axis(1, 1, border="wrap"))).iter("svg")
    assert np.argwhere(colours(svg)[MOVED]).tolist() == [[0, 7], [7, 0]]
    (svg,) = tree_of(Mask(Axis(0, causal=True, prefix=1))).iter("svg")
    assert np.argwhere(colours(svg)[PREFIX]).tolist() == [[n, 0] for n in range(1, 8)]
    assert svg.find("title").text.endswith("green: prefix; light blue: own position")


def test_a_long_axis_is_drawn_by_a_few_of_its_queries() -> None:
    (svg,) = tree_of(Mask(Axis(4095, 0))).iter("svg")
    keys = colours(svg)[READ]
    assert keys.shape == (48, 8192)
    assert [row.sum() for row in keys[[0, 1, -1]]] == [1, 172, 4096]
    (dilated,) = tree_of(Mask(Axis(3, 3, dilation=9))).iter("svg")
    keys = colours(dilated)[READ]
    assert keys[len(keys) // 2].sum() == 6 * 9 + 1  # its reach


def test_an_axis_beyond_all_lengths_has_no_picture() -> None:
    assert not list(tree_of(Mask(Axis(2**31 - 1))).iter("svg"))


def test_a_mask_as_one_picture() -> None:
    mask = Mask(Axis(8, causal=True), Axis(3, 3, border="wrap"), Axis(2**31 - 1))
    root = ElementTree.fromstring(mask._repr_svg_())
    name = "{http://www.w3.org/2000/svg}"
    assert root.find(f"{name}title").text == repr(mask)
    assert len(list(root.iter(f"{name}svg"))) == 3  # two axes inside of the whole
    words = " ".join("".join(text.itertext()) for text in root.iter(f"{name}text"))
    assert "axis 1: 3 left, itself, 3 right; wrap" in words.replace("  ", " ")
    assert root.find(f"{name}rect").get("fill") == "#ffffff"


def test_a_plan_as_a_picture(plan: nbattn.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ElementTree.fromstring(plan._repr_svg_())
    words = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(line.startswith(plan.chosen.name) for line in words)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert plan._repr_svg_() is None


def test_a_mask_is_a_row_per_axis() -> None:
    cells = texts(tree_of(Mask(Axis(8, causal=True), Axis(3, 3, border="wrap"))))
    assert cells[1::3] == ["8 left, itself; causal", "3 left, itself, 3 right; wrap"]


@pytest.fixture(scope="module")
def plan() -> nbattn.Plan:
    return nbattn.plan(Mask.neighborhood((7, 7)), (1, 56, 56, 2, 32), device="sm_90")


def test_a_plan_shows_choice_costs_and_reasons(plan: nbattn.Plan) -> None:
    tree = tree_of(plan)
    assert ["".join(one.itertext()) for one in tree.iter("b")] == [plan.chosen.name] * 2
    cells = texts(tree)
    assert cells[0:3] == ["chosen", plan.chosen.name, str(plan.chosen.cost)]
    assert "needs the package natten, which is not installed" in cells
    assert "faster: " in "".join(tree.itertext())
    assert plan.decided_by() in "".join(tree.itertext())


def test_a_configuration_shows_its_sections() -> None:
    cells = texts(tree_of(nbattn.load("video_3d")))
    assert cells[:2] == [
        "encoder",
        "8 left, itself; causal6 left, itself, 6 right; shift6 left, itself, 6 right; "
        "dilation 2, wrap",
    ]
    assert cells[2:5] == ["block", "encoder", "dim=512, num_heads=8"]
    assert texts(tree_of(nbattn.load("cosmos_predict2")))[-16] == "… 28 in all"
    assert "empty" in "".join(tree_of(nbattn.load({})).itertext())


def test_names_of_a_file_are_escaped() -> None:
    name = "<script>alert('&')</script>"
    config = nbattn.load({"masks": {name: {"full": {}}}})
    assert texts(tree_of(config))[0] == name


# One line of text each.


def test_everything_that_is_shown_is_one_line(plan: nbattn.Plan) -> None:
    config = nbattn.load("cosmos_predict2")
    request = plan.request
    assert repr(config) == (
        "Config(masks: global, wide, near … (5); layers: layer00, layer01, layer02 … (28); "
        "plans: global, wide, near … (5))"
    )
    layer = nbattn.load("mistral").layers["decoder"]
    assert eval(repr(layer), {**vars(nbattn), **vars(nbattn.config)}) == layer
    assert repr(nbattn.load("nat_tiny").plans["stage1"]) == (
        "PlanConfig(mask=Mask(Axis(3, 3, border='shift'), Axis(3, 3, border='shift')), "
        "query=(8, 56, 56, 2, 32), dtype='float32', training=True)"
    )
    assert repr(request) == f"Request({request.summary()}, {request.mask!r})"
    tiled = nbattn.plan(request.mask, (1, 56, 56, 2, 32), backend="tiled", device="cpu").request
    assert repr(tiled).endswith(", backend='tiled')")
    assert repr(request.device) == (
        "DeviceInfo(sm_90, cuda, 989 TFLOP/s in float16, 3350 GB/s, cupy, triton; "
        "NVIDIA H100 SXM datasheet)"
    )
    assert repr(plan.chosen) == f"Candidate({plan.chosen.name}, {plan.chosen.cost})"
    assert repr(refused("natten", "window", Reason("a", "no"), Reason("b", "never"))) == (
        "Candidate(natten/window, refused: no (and 1 more))"
    )
