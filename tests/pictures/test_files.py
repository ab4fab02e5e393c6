"""Tests of files of figures: valid, vector, with text, and the same bytes every time."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from nbattn import Axis, InputError, Mask
from nbattn.pictures import files, plot, style

SVG = "{http://www.w3.org/2000/svg}"


def figures() -> dict[str, object]:
    made = {
        "grid": (Mask.neighborhood((7, 7)), (24, 24), {"kind": "neighborhood", "query": (1, 9)}),
        "matrix": (Mask(Axis(4, causal=True, prefix=2)), 24, {}),
        "axes": (
            Mask(Axis(3, 3, border="wrap"), Axis(2, 2, border="shift")),
            (12, 9),
            {"kind": "axes"},
        ),
        "long": (Mask.sliding_window(300), 10**5, {}),
        "weights": (
            Mask(Axis(2, 2)),
            12,
            {"kind": "neighborhood", "query": 5, "weights": np.eye(12)[5]},
        ),
    }
    return {
        name: plot.picture(mask, space, figure=style.plain_figure, **options).figure
        for name, (mask, space, options) in made.items()
    }


def test_svg_is_text_and_shapes(tmp_path: Path) -> None:
    for name, figure in figures().items():
        path = tmp_path / f"{name}.svg"
        files.save(figure, path)
        root = ElementTree.parse(path).getroot()
        assert not list(root.iter(f"{SVG}image"))
        words = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
        assert "attended" in words or name == "weights"
        assert path.stat().st_size < 60_000
        assert float(root.get("width", "").removesuffix("pt")) == pytest.approx(3.35 * 72)


def test_pdf_has_no_bitmap(tmp_path: Path) -> None:
    for name, figure in figures().items():
        path = tmp_path / f"{name}.pdf"
        files.save(figure, path)
        data = path.read_bytes()
        streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL)
        drawn = b"".join(zlib.decompress(one) for one in streams if one[:1] == b"x")
        assert b"/Subtype /Image" not in data
        assert b" BI\n" not in drawn
        assert len(data) < 60_000


@pytest.mark.parametrize("ending", files.FORMATS)
def test_the_same_bytes_every_time(ending: str, tmp_path: Path) -> None:
    written = []
    for number in range(2):
        figure = plot.picture(
            Mask(Axis(2, causal=True, prefix=1)), 9, figure=style.plain_figure
        ).figure
        files.save(figure, tmp_path / f"{number}.{ending}")
        written.append((tmp_path / f"{number}.{ending}").read_bytes())
    assert written[0] == written[1]
    assert b"Date" not in written[0]
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG\r\n\x1a\n"}
    assert written[0].startswith(starts[ending])


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    figure = style.plain_figure(72, 72)
    for path, fix in (
        (tmp_path / "no" / "such.png", f"mkdir -p {tmp_path / 'no'}"),
        (tmp_path, repr(str(tmp_path / "mask.png"))),
    ):
        with pytest.raises(InputError) as caught:
            files.save(figure, path)
        assert caught.value.fix == fix
