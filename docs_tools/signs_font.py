"""Draws `docs/assets/signs.woff`: the signs of text pictures (■ ◆ ⬚ …), as wide as a letter.

Code fonts miss some of them, and browsers take these from other fonts, with other widths, so that
columns of a picture would not stand below each other. `python -m docs_tools.signs_font` writes the
file; it needs fontTools, which comes with matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

FILE = Path(__file__).resolve().parents[1] / "docs" / "assets" / "signs.woff"
EM, ADVANCE = 1000, 602  # a letter of common code fonts has 0.6 of the font's size
LEFT, RIGHT, LOW, HIGH = 46, 556, 75, 585  # of every square
LINE = 55  # how thick
Points = list[tuple[int, int]]


def box(left: int, low: int, right: int, high: int) -> Points:
    """A rectangle, clockwise: it is filled."""
    return [(left, low), (left, high), (right, high), (right, low)]


def outline(by: int = 0) -> list[Points]:
    """A square's line."""
    inner = box(LEFT + LINE, LOW + LINE, RIGHT - LINE, HIGH - LINE)
    return [box(LEFT - by, LOW - by, RIGHT + by, HIGH + by), inner[::-1]]


def diamond(radius: int) -> Points:
    """A square on its corner, clockwise."""
    x, y = (LEFT + RIGHT) // 2, (LOW + HIGH) // 2
    return [(x - radius, y), (x, y + radius), (x + radius, y), (x, y - radius)]


def dots() -> list[Points]:
    """A dotted square: four thin dashes on each side."""
    thin, length = 36, 62
    steps = [LEFT + n * (RIGHT - LEFT - length) // 3 for n in range(4)]
    shift = LOW - LEFT
    return [
        *(box(x, y, x + length, y + thin) for x in steps for y in (LOW, HIGH - thin)),
        *(
            box(x, y + shift, x + thin, y + shift + length)
            for y in steps[1:3]
            for x in (LEFT, RIGHT - thin)
        ),
    ]


MIDDLE = (LEFT + RIGHT) // 2
BARS = [LOW + n * (HIGH - LOW - LINE) // 4 for n in range(1, 4)]
SIGNS: dict[str, list[Points]] = {
    "■": [box(LEFT, LOW, RIGHT, HIGH)],
    "◆": [diamond(300)],
    "◇": [diamond(300), diamond(300 - 85)[::-1]],
    "▣": [*outline(), box(LEFT + 130, LOW + 130, RIGHT - 130, HIGH - 130)],
    "▤": [*outline(), *(box(LEFT + LINE, y, RIGHT - LINE, y + LINE) for y in BARS)],
    "◧": [*outline(), box(LEFT + LINE, LOW + LINE, MIDDLE, HIGH - LINE)],
    "⬚": dots(),
}


def glyph(shapes: list[Points]) -> Any:
    """The glyph of some polygons."""
    pen = TTGlyphPen(None)
    for first, *others in shapes:
        pen.moveTo(first)
        for point in others:
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()


def font() -> FontBuilder:
    """The font."""
    names = {sign: f"uni{ord(sign):04X}" for sign in SIGNS}
    built = FontBuilder(EM, isTTF=True)
    built.setupGlyphOrder([".notdef", *names.values()])
    built.setupCharacterMap({ord(sign): name for sign, name in names.items()})
    built.setupGlyf({".notdef": glyph([]), **{names[s]: glyph(p) for s, p in SIGNS.items()}})
    built.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (ADVANCE, LEFT)))
    built.setupHorizontalHeader(ascent=800, descent=-200)
    built.setupNameTable({"familyName": "nbattn signs", "styleName": "Regular"})
    built.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    built.setupPost()
    built.updateHead(created=0, modified=0)
    return built


if __name__ == "__main__":
    made = font().font
    made.recalcTimestamp = False
    made.flavor = "woff"
    made.save(FILE)
