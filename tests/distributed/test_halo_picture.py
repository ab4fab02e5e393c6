"""Tests of pictures of halos: every key that a rank has or needs is in its owner's colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbattn import Axis, InputError, Mask
from nbattn.distributed import Halo, halo, halo_picture
from nbattn.pictures import files, style

MASKS = {
    "image": (Mask.neighborhood((7, 7)), (64, 64), (4, 2)),
    "globe": (Mask(Axis(4, 4), Axis(8, 8, border="wrap")), (18, 36), (3, 4)),
    "video": (Mask.neighborhood((3, 5, 5)), (8, 24, 20), (2, 3, 2)),
}


def drawn(panel: Any) -> list[tuple[float, float, float, float, str]]:
    """The filled boxes of a panel: left, top, width, height, colour."""
    colours = style.part_of_matplotlib("colors")
    return [
        (
            *box.get_xy(),
            box.get_width(),
            box.get_height(),
            colours.to_hex(box.get_facecolor()).upper(),
        )
        for box in panel.patches
        if box.get_fill()
    ]


def legend(figure: Any) -> dict[str, str]:
    """Labels and colours."""
    colours = style.part_of_matplotlib("colors")
    (found,) = figure.legends
    handles = zip(found.get_texts(), found.get_patches(), strict=True)
    return {text.get_text(): colours.to_hex(p.get_facecolor()).upper() for text, p in handles}


@pytest.mark.parametrize("name", MASKS)
def test_boxes_are_the_keys_of_the_rank(name: str) -> None:
    found = halo(*MASKS[name])
    rank = found.rank((1,) * len(found.parts))
    figure = found.plot(rank.number)
    views = [(0, 1)] if len(found.parts) == 2 else [(0, 1), (0, 2), (1, 2)]
    for panel, (down, across) in zip(figure.axes, views, strict=False):
        cells = np.full((found.key_space[down], found.key_space[across]), "", dtype=object)
        for left, top, width, height, colour in drawn(panel):
            box = cells[top : top + height, left : left + width]
            assert (box == "").all()
            box[:] = colour
        expected = np.full(cells.shape, "", dtype=object)
        named, others = {rank.number: "#0072B2"}, "?"
        for label, colour in legend(figure).items():
            if label.startswith("and "):  # those who send the least, in a colour of their own
                others = colour
                assert others not in named.values()
            if label.startswith("from rank "):
                named[int(label.split()[2])] = colour
        for source in rank.sources:
            third = [axis for axis in range(len(found.parts)) if axis not in (down, across)]
            for block in source.blocks:
                if all(source.place[axis] == 1 for axis in third):
                    place = slice(*block[down]), slice(*block[across])
                    expected[place] = named.get(source.rank, others)
        expected[slice(*rank.own[down]), slice(*rank.own[across])] = named[rank.number]
        np.testing.assert_array_equal(cells, expected)


def test_every_rank_of_one_axis_has_a_row() -> None:
    found = halo(Mask.sliding_window(9, 0), 64, 4)
    panel, received = found.plot().axes[:2]
    rows = {(left, top, width) for left, top, width, _, _ in drawn(panel)}
    own = {(16 * number, number, 16) for number in range(4)}
    assert rows == own | {(16 * number - 9, number, 9) for number in range(1, 4)}
    assert [bar.get_height() for bar in received.patches] == [0, 9, 9, 9]
    many = halo(Mask.sliding_window(9, 0), 6400, 400).plot(399).axes[0]
    assert {top for _, top, *_ in drawn(many)} == {*range(368, 400)}


def test_the_other_panel_is_what_every_rank_receives() -> None:
    found = halo(*MASKS["image"])
    figure = found.plot()
    (image,) = figure.axes[1].images
    np.testing.assert_array_equal(image.get_array(), found.received)
    assert figure.axes[0].get_title() == "keys of rank 2, part (1, 0)"
    assert "from rank 0 (0, 0): 96" in legend(figure)
    assert figure.get_suptitle().endswith("64 x 64 in 4 x 2 parts")
    video = halo(*MASKS["video"]).plot()
    assert video.axes[1].get_title().endswith(", axis 1 at its part")


def test_many_parts_are_drawn_around_the_rank() -> None:
    found: Halo = halo(Mask.neighborhood((5, 5)), (640, 320), (64, 4))
    panel = found.plot((30, 1)).axes[0]
    assert panel.get_xlim() == (0, 320)
    assert panel.get_ylim() == (322, 288)


def test_queries_with_another_place_are_outlined_where_they_are() -> None:
    mask = Mask(Axis(3, 0, align="bottom-right"), Axis(2, 2))
    found = halo(mask, (8, 6), (2, 1), key_space=(20, 6))
    (outline,) = [box for box in found.plot(1).axes[0].patches if not box.get_fill()]
    assert (outline.get_xy(), outline.get_width(), outline.get_height()) == ((0, 16), 6, 4)
    full = halo(Mask.full(2), (8, 6), (2, 1), key_space=(20, 6)).plot(1)
    assert [box for box in full.axes[0].patches if not box.get_fill()] == []


def test_the_picture_is_saved(tmp_path: Any) -> None:
    file = tmp_path / "halo.png"
    files.save(halo(*MASKS["image"]).plot(), file)
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_rank_that_is_not_there() -> None:
    with pytest.raises(InputError, match="rank=8: there are 8 ranks, from 0"):
        halo(*MASKS["image"]).plot(8)


def test_keys_of_a_third_axis_are_those_at_the_rank_s_part() -> None:
    found = halo(*MASKS["video"])
    rank = found.rank((0, 1, 0))
    owners = {owner for _, owner in halo_picture.boxes(found, rank, (1, 2))}
    assert owners == {found.rank((0, y, x)).number for y in range(3) for x in range(2)}
