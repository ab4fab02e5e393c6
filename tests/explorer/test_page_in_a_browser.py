"""Tests of the page in Chromium: what lights up against the independent enumerator, keys, filters,
and what readers with a keyboard, a screen reader or a small screen need.

Debian's Chromium runs them, through playwright; where one of them is missing, they are skipped.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbattn
from nbattn import Axis, Mask
from nbattn.explorer import page as pages

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

SPACES: dict[str, tuple[Mask, tuple[int, ...], tuple[int, ...]]] = {
    "causal window": (Mask.sliding_window(4), (20,), (20,)),
    "prefix": (Mask(Axis(3, causal=True, prefix=2)), (18,), (18,)),
    "wrap": (Mask(Axis(2, 3, border="wrap")), (16,), (16,)),
    "dilation, moved inward": (Mask(Axis(1, 2, dilation=3, border="shift")), (19,), (19,)),
    "stride": (Mask(Axis(2, 2, stride=4)), (21,), (21,)),
    "other lengths, bottom-right": (Mask.sliding_window(3, align="bottom-right"), (6,), (22,)),
    "neighborhood": (Mask.neighborhood((5, 3)), (9, 12), (9, 12)),
    "2-D, wrap and dilation": (
        Mask(Axis(1, 1, dilation=2), Axis(2, 2, border="wrap", prefix=0)),
        *[(10, 8)] * 2,
    ),
    "2-D, prefix and other lengths": (
        Mask(Axis(1, 1, prefix=1), Axis(2, 1, align="bottom-right")),
        (7, 5),
        (7, 9),
    ),
    "3-D": (
        Mask(Axis(1, causal=True), Axis(1, 1, border="shift"), Axis(2, 2, border="wrap")),
        *[(4, 6, 7)] * 2,
    ),
}
LIT = """
id => [...document.querySelectorAll(`[data-picture="${id}"] .cell.lit`)].flatMap(rect => {
  const [x, y, w, h] = ["x", "y", "width", "height"].map(name => +rect.getAttribute(name));
  const kind = [...rect.classList].find(name => ["read", "moved", "prefix"].includes(name));
  const cells = [];
  for (let i = x; i < x + w; i++) for (let j = y; j < y + h; j++) cells.push([j, i, kind]);
  return cells;
})
"""
AREA = """
id => {
  const area = document.querySelector(`[data-picture="${id}"] .frame-line`);
  const { x, y, width, height } = area.getBoundingClientRect();
  return [x, y, width, height, +area.getAttribute("width"), +area.getAttribute("height")];
}
"""


class Opened:
    """The browser's page with the file of a plan, and everything that it logs or asks for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.heard: list[str] = []
        page.on("console", lambda message: self.heard.append(message.text))
        page.on("pageerror", lambda error: self.heard.append(str(error)))
        page.on("request", lambda request: self.heard.append(request.url))

    def open(self, path: Path, width: int = 1100, height: int = 1400, **media: str) -> None:
        self.finish()
        self.page.set_viewport_size({"width": width, "height": height})
        usual = {"color_scheme": "light", "reduced_motion": "no-preference"}
        self.page.emulate_media(**usual | media)
        self.page.goto(path.as_uri())

    def finish(self) -> None:
        """Nothing was logged, and only the page itself was asked for."""
        heard, self.heard = self.heard, []
        assert [text for text in heard if not text.endswith(".html")] == []
        assert len(heard) <= 1

    def lit(self, picture: str) -> set[tuple[int, int, str]]:
        cells = [tuple(cell) for cell in self.page.evaluate(LIT, picture)]
        assert len(set(cells)) == len(cells)
        return set(cells)

    def at(self, picture: str, down: int, across: int) -> tuple[float, float]:
        """The middle of a cell of a picture that shows all of its axes, in pixels."""
        left, top, width, height, columns, rows = self.page.evaluate(AREA, picture)
        return left + (across + 0.5) * width / columns, top + (down + 0.5) * height / rows

    def drag(self, picture: str, *cells: tuple[int, int]) -> None:
        """Presses on the first cell, moves over the others, and lets go."""
        mouse = self.page.mouse
        for number, cell in enumerate(cells):
            mouse.move(*self.at(picture, *cell))
            if number == 0:
                mouse.down()
        mouse.up()

    def said(self) -> str:
        return self.page.locator("#said").inner_text()


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    """One page of one browser, with a mouse and a finger."""
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox"] * (os.geteuid() == 0)}
        browser = driver.chromium.launch(**options)
        yield Opened(browser.new_context(has_touch=True).new_page())
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def show(opened: Opened, folder: Path) -> Iterator[Callable[..., Opened]]:
    """`show(name)` opens the page of a mask of SPACES, or `show(name, plan)` of a plan."""

    def open_page(name: str, plan: nbattn.Plan | None = None, **options: Any) -> Opened:
        path = folder / f"{name.replace(' ', '-')}.html"
        if not path.exists():
            pages.write({"plan": plan or plan_of(name)}, path)
        opened.open(path, **options)
        return opened

    yield open_page
    opened.finish()


def plan_of(name: str) -> nbattn.Plan:
    mask, query, key = SPACES[name]
    shapes = [(1, *space, 2, 32) for space in (query, key)]
    return nbattn.plan(mask, *shapes, dtype="float32", device="cpu")


def keys_of(axis: Any, query: int, queries: int, keys: int) -> dict[int, str]:
    """The keys of a query by the enumerator, with their signs."""
    plain: dict[str, Any] = {f: getattr(axis, f) for f in ("left", "right", "dilation", "stride")}
    plain |= {"causal": axis.causal, "align": axis.align, "offset": axis.offset}
    plain["right"] = None if axis.causal else axis.right
    window = oracle.attended_keys(Axis(**plain, border=axis.border), query, queries, keys)
    unmoved = oracle.attended_keys(Axis(**plain), query, queries, keys)
    return {
        key: "prefix" if key not in window else "moved" if key not in unmoved else "read"
        for key in oracle.attended_keys(axis, query, queries, keys)
    }


def expected(name: str, at: tuple[int, ...], numbers: tuple[int, int], depth: str = "read"):
    """The cells of a plane that light up: a key has the last of its signs on the axes."""
    mask, query, key = SPACES[name]
    rows, columns = (keys_of(mask.axes[n], at[n], query[n], key[n]) for n in numbers)
    order = ("read", "moved", "prefix")
    return {
        (row, column, max(first, second, depth, key=order.index))
        for (row, first), (column, second) in itertools.product(rows.items(), columns.items())
    }


def judge(page: Opened, name: str, at: tuple[int, ...]) -> None:
    """Exactly the keys of the query light up, in every picture, and are counted in words."""
    mask, query, key = SPACES[name]
    each = [keys_of(*one) for one in zip(mask.axes, at, query, key, strict=True)]
    if len(at) == 1:
        assert page.lit("matrix") == {(at[0], k, kind) for k, kind in each[0].items()}
    elif len(at) == 2:
        assert page.lit("01") == expected(name, at, (0, 1))
    for numbers in itertools.combinations(range(3), 2) if len(at) == 3 else ():
        (third,) = {0, 1, 2} - {*numbers}
        here = int(page.page.locator(f"#slice-{third}").input_value())
        depth = each[third].get(here)
        wanted = expected(name, at, numbers, depth) if depth else set()
        assert page.lit("".join(map(str, numbers))) == wanted
    count = 1
    for keys in each:
        count *= len(keys)
    place = str(at[0]) if len(at) == 1 else str(at)
    assert page.said().startswith(f"Query {place} attends to {count} key"), page.said()


@pytest.mark.parametrize("name", [name for name in SPACES if len(SPACES[name][1]) == 1])
def test_dragging_in_a_matrix_moves_the_query(name, show, cases):
    page, queries = show(name), SPACES[name][1][0]
    for query in (0, queries // 2, queries - 1):
        page.drag("matrix", (1, 1), (query, 3))
        judge(page, name, (query,))
        cases("explorer: queries dragged", 1)


@pytest.mark.parametrize("name", ["neighborhood", "2-D, wrap and dilation"])
def test_dragging_in_a_plane_moves_the_query(name, show, cases):
    page, (rows, columns) = show(name), SPACES[name][1]
    for at in ((0, 0), (rows // 2, columns - 1), (rows - 1, 2)):
        page.drag("01", (3, 3), at)
        judge(page, name, at)
        cases("explorer: queries dragged", 1)


@pytest.mark.deep
@settings(max_examples=200)
@given(oracle.masks().filter(lambda drawn: 0 not in (*drawn[1], *drawn[2])), st.data())
def test_random_masks_light_up_as_the_enumerator_says(opened, folder, cases, drawn, data):
    SPACES["random"] = drawn
    path = folder / "random.html"
    pages.write({"plan": plan_of("random")}, path)
    opened.open(path)
    for _ in range(3):
        at = tuple(data.draw(st.integers(0, queries - 1)) for queries in drawn[1])
        for number, place in enumerate(at):
            opened.page.locator(f"#at-{number}").fill(str(place))
        judge(opened, "random", at)
        cases("explorer: queries drawn", 1)
    opened.finish()


def test_a_grid_of_other_lengths_takes_the_nearest_query(show):
    page, name = show("2-D, prefix and other lengths"), "2-D, prefix and other lengths"
    for cell, at in [((6, 8), (6, 4)), ((2, 3), (2, 0)), ((2, 6), (2, 2))]:
        page.drag("01", cell)  # five queries at the end of nine keys
        judge(page, name, at)


def test_three_planes_are_linked(show, cases):
    page = show("3-D")
    for picture, cell, at in [
        ("12", (0, 0), (2, 0, 0)),
        ("02", (3, 6), (3, 0, 6)),
        ("01", (0, 5), (0, 5, 6)),
    ]:
        page.drag(picture, cell)
        judge(page, "3-D", at)
        cases("explorer: queries dragged", 1)
    # another slice, where the query has no key
    page.page.locator("#slice-0").fill("3")
    assert page.lit("12") == set()
    assert page.page.locator("#slice-0-value").inner_text() == "3 (none)"
    page.page.locator("#at-0").fill("3")
    judge(page, "3-D", (3, 5, 6))


def test_the_keyboard_moves_the_query(show):
    page, name = show("neighborhood"), "neighborhood"
    page.page.locator('[data-picture="01"]').focus()
    at = [4, 6]
    for key, axis, place in [
        ("ArrowUp", 0, 3),
        ("ArrowLeft", 1, 5),
        ("End", 1, 11),
        ("ArrowRight", 1, 11),
        ("ArrowDown", 0, 4),
        ("Home", 1, 0),
        ("PageDown", 0, 8),
    ]:
        page.page.keyboard.press(key)
        at[axis] = place
        judge(page, name, tuple(at))
    page.page.keyboard.press("Control+Home")
    judge(page, name, (0, 0))
    page.page.locator("#at-1").focus()
    page.page.keyboard.press("ArrowRight")
    judge(page, name, (0, 1))


def test_a_key_shows_the_queries_that_attend_to_it(show):
    page = show("prefix")
    mask, (queries,), (keys,) = SPACES["prefix"]
    page.page.get_by_label("Move a key").check()
    matrix = oracle.axis_matrix(mask.axes[0], queries, keys)
    for key in (0, 9, 17):
        page.drag("matrix", (0, key))
        wanted = {(query, key) for query in matrix[:, key].nonzero()[0].tolist()}
        assert {cell[:2] for cell in page.lit("matrix")} == wanted
        assert page.said().startswith(f"Key {key}: {len(wanted)} quer")
    page.page.get_by_label("Move a query").check()
    judge(page, "prefix", (17,))


def test_shift_and_a_click_turn_to_the_key(show):
    page = show("neighborhood")
    page.page.keyboard.down("Shift")
    page.drag("01", (2, 3))
    page.page.keyboard.up("Shift")
    mask, query, key = SPACES["neighborhood"]
    rows, columns = (
        oracle.axis_matrix(axis, n, k)[:, at].nonzero()[0].tolist()
        for axis, n, k, at in zip(mask.axes, query, key, (2, 3), strict=True)
    )
    wanted = set(itertools.product(rows, columns))
    assert {cell[:2] for cell in page.lit("01")} == wanted
    assert page.said().startswith(f"Key (2, 3): {len(wanted)} queries")


def test_lit_cells_are_seen(show):
    """The colours of a screenshot, cell by cell."""
    image = pytest.importorskip("matplotlib.image", reason="no matplotlib")
    import io

    page = show("neighborhood")
    page.page.add_style_tag(content=".box, .own { display: none }")
    page.drag("01", (3, 3), (4, 5))
    shot = image.imread(io.BytesIO(page.page.screenshot()))
    lit = {cell[:2] for cell in page.lit("01")}
    colours: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    for row, column in itertools.product(range(9), range(12)):
        x, y = page.at("01", row, column)
        pixel = tuple(round(255 * part) for part in shot[int(y), int(x)][:3].tolist())
        colours[(row, column) in lit].add(pixel)
    assert colours == {True: {(0, 114, 178)}, False: {(230, 230, 230)}}


def test_own_positions_are_marks(show):
    page = show("stride")
    page.drag("matrix", (7, 0))
    own = page.page.locator('[data-picture="matrix"] .own')
    assert own.count() == 21
    assert page.page.locator('[data-picture="matrix"] .own.lit.attended').count() == 1


def test_tiles_of_the_query_are_marked(show):
    page = show("neighborhood")
    tiles = page.page.locator('[data-picture="tiles"]')
    plan = plan_of("neighborhood")
    blocks = list(plan.schedule())
    assert tiles.locator(".share").count() == len(blocks)
    page.drag("tiles", (8, 11))
    own = [b for b in blocks if 8 in b.queries[0] and 11 in b.queries[1]]
    boxes = tiles.locator(".chosen")
    assert boxes.count() == len(own) == 1
    assert boxes.get_attribute("y") == str(own[0].queries[0].start)
    assert boxes.get_attribute("height") == str(len(own[0].queries[0]))
    assert f"visits {len(blocks)} tiles" in page.page.locator("#tiles-words").inner_text()
    judge(page, "neighborhood", (8, 11))


def test_candidates_are_filtered(show):
    page = show("neighborhood")
    plan = plan_of("neighborhood")
    rows, found = page.page.locator("#candidates tbody tr"), page.page.locator("#found")
    assert rows.count() == len(plan.candidates)
    page.page.get_by_label("Accepted only").check()
    accepted = [c.name for c in plan.candidates if not c.reasons]
    assert page.page.locator("#candidates tbody th").all_inner_texts() == accepted
    assert found.inner_text() == f"{len(accepted)} of {len(plan.candidates)} candidates"
    page.page.get_by_label("Accepted only").uncheck()
    page.page.get_by_label("Backend").select_option("flash")
    names = page.page.locator("#candidates tbody th").all_inner_texts()
    assert names == [c.name for c in plan.candidates if c.runner == "flash"]
    page.page.get_by_label("Backend").select_option("")
    page.page.get_by_label("Text").fill("IF REQUESTED")
    wanted = [c for c in plan.candidates if any("if requested" in r.text for r in c.reasons)]
    assert rows.count() == len(wanted) > 0


def test_reasons_are_folded(show):
    page = show("neighborhood")
    row = page.page.locator("#candidates tbody tr", has_text="natten/window")
    assert not row.locator("li").first.is_visible()
    row.locator("summary").focus()
    page.page.keyboard.press("Enter")
    assert "needs the package natten" in row.locator("li").first.inner_text()
    request = page.page.locator("#request")
    assert not request.is_visible()
    page.page.get_by_text("The request").click()
    assert "[1, 9, 12, 2, 32]" in request.inner_text()
    assert "Proved exact" in page.page.locator("#proof").inner_text()


def test_the_theme_follows_the_system_and_then_the_button(show):
    page = show("neighborhood", color_scheme="dark")
    button = page.page.get_by_role("button", name="Dark")
    colour = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.page.evaluate(colour)
    assert button.get_attribute("aria-pressed") == "true"
    page.page.emulate_media(media="print")  # browsers print no backgrounds: words are dark
    assert page.page.evaluate(colour) == "rgb(255, 255, 255)"
    assert page.page.evaluate(colour.replace("backgroundColor", "color")) == "rgb(27, 31, 36)"
    page.page.emulate_media(media="screen")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert page.page.evaluate(colour) == "rgb(255, 255, 255)" != dark
    page.page.emulate_media(color_scheme="light")
    page.page.emulate_media(color_scheme="dark")
    assert page.page.evaluate(colour) == "rgb(255, 255, 255)"


NAMELESS = """
() => {
  const texts = id => id.split(" ").map(one => document.getElementById(one)?.textContent ?? "");
  const name = node => [node.getAttribute("aria-label"), node.labels?.[0]?.textContent,
    ...texts(node.getAttribute("aria-labelledby") ?? ""),
    ["BUTTON", "SUMMARY", "A"].includes(node.tagName) ? node.textContent : ""].join("").trim();
  const wrong = [];
  const asks = "input, select, button, summary, a, table, section, .legend, [tabindex]";
  for (const node of document.querySelectorAll(asks)) {
    if (!name(node)) wrong.push(node.outerHTML.slice(0, 90));
  }
  for (const svg of document.querySelectorAll("svg")) {
    if (svg.getAttribute("aria-hidden") !== "true") wrong.push("svg");
  }
  for (const cell of document.querySelectorAll("th")) {
    if (!cell.scope) wrong.push(`th ${cell.textContent}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map(node => node.id);
  wrong.push(...ids.filter((id, at) => ids.indexOf(id) !== at));
  for (const node of document.querySelectorAll("[tabindex]")) {
    if (node.tabIndex > 0) wrong.push("tabindex");
  }
  let level = 0;
  for (const node of document.querySelectorAll("h1, h2, h3, h4")) {
    const own = Number(node.tagName[1]);
    if (own > level + 1) wrong.push(node.textContent);
    level = own;
  }
  if (document.querySelectorAll("h1, main").length !== 2) wrong.push("h1 and main");
  if (document.documentElement.lang !== "en" || !document.title) wrong.push("lang, title");
  return wrong;
}
"""
PALE = """
() => {
  const parts = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => parts(colour).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const wrong = [];
  let count = 0;
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest("script, style, noscript")) continue;
    const style = getComputedStyle(node);
    const ink = node.closest("svg") ? style.fill : style.color;
    const [one, other] = [light(ink), light(behind(node))].sort((a, b) => b - a);
    count += 1;
    if ((one + 0.05) / (other + 0.05) < 4.5) wrong.push(`${node.textContent} ${ink}`);
  }
  return [count, [...new Set(wrong)]];
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_has_a_name_and_contrast(scheme, show):
    page = show("3-D", color_scheme=scheme)
    page.page.get_by_text("The request").click()
    page.page.locator("#candidates summary").first.click()
    page.page.wait_for_timeout(150)  # the button's colours change in that time
    assert page.page.evaluate(NAMELESS) == []
    count, pale = page.page.evaluate(PALE)
    assert count > 60
    assert pale == []


def test_a_screen_reader_is_told_after_a_move(show):
    page = show("neighborhood")
    live = page.page.locator("#live[aria-live=polite]")
    page.drag("01", (0, 0), (8, 11))
    said = page.said()
    page.page.wait_for_function(
        "said => document.getElementById('live').textContent === said", arg=said
    )
    assert live.count() == 1
    label = page.page.locator('[data-picture="01"]').get_attribute("aria-label")
    assert label == f"{said} Arrow keys move the query."
    rows = page.page.locator("#runs tbody tr").all_inner_texts()
    assert rows[0].split("\t") == ["0", "4 to 5", "2", "attended, moved inward by the border"]


def test_the_tab_key_reaches_everything_in_the_order_of_the_page(show):
    page = show("neighborhood")
    seen: list[str] = []
    for _ in range(12):
        page.page.keyboard.press("Tab")
        seen.append(
            page.page.evaluate(
                "() => document.activeElement.id || document.activeElement.dataset.picture"
                " || document.activeElement.value || document.activeElement.className"
            )
        )
    assert seen[:7] == ["skip", "theme", "query", "at-0", "at-1", "01", "tiles"]
    style = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert page.page.evaluate(style) == "solid"


@pytest.mark.parametrize("width", [320, 360, 700])
def test_a_small_screen_needs_no_scrolling_sideways(width, show):
    for name in ("3-D", "other lengths, bottom-right"):
        page = show(name, width=width, height=700)
        assert page.page.evaluate("document.documentElement.scrollWidth") == width
        for frame in page.page.locator(".frame svg").all():
            box = frame.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        costs = page.page.locator("#candidates td:nth-child(3):not(:empty)").all()
        assert costs
        for cost in costs:
            cost.evaluate("cell => { cell.textContent = 'estimated 12.85 ms (12.28×)'; }")
            box = cost.bounding_box()
            assert box["x"] + box["width"] <= width
            assert cost.evaluate("cell => cell.scrollWidth <= cell.clientWidth")


def test_a_finger_moves_the_query(show):
    page = show("neighborhood", width=360, height=1200)
    page.page.touchscreen.tap(*page.at("01", 7, 10))
    judge(page, "neighborhood", (7, 10))


def test_nothing_moves_for_readers_who_want_that(show):
    page = show("neighborhood", reduced_motion="reduce")
    duration = "() => getComputedStyle(document.getElementById('theme')).transitionDuration"
    assert page.page.evaluate(duration) == "0s"


def test_a_long_axis_goes_from_part_to_part(show):
    mask, shape = Mask.sliding_window(511, 0), (1, 100_000, 1, 32)
    page = show("long", nbattn.plan(mask, shape, dtype="bfloat16", device="sm_90"))
    kept = page.page.locator("#kept").inner_text()
    assert kept == (
        "This axis has 100,000 queries; the page has 0 to 1,364, 49,317 to 50,681, "
        "98,635 to 99,999."
    )
    matrix = page.page.locator('[data-picture="matrix"]')
    matrix.focus()
    page.page.keyboard.press("Control+End")
    assert page.said().startswith("Query 99,999 attends to 512 keys: 99,488 to 99,999.")
    page.page.locator("#at-0").fill("1364")
    matrix.focus()
    page.page.keyboard.press("ArrowDown")
    assert page.said().startswith("Query 49,317 attends to 512 keys")
    page.page.keyboard.press("ArrowUp")
    assert page.said().startswith("Query 1,364 attends to 512 keys")
    assert {row for row, _, _ in page.lit("matrix")} == {1364}
    assert "more keys lie outside" in page.page.locator("figcaption").first.inner_text()
    page.drag("map", (77_000, 5))  # the nearest query on the page
    assert page.said().startswith("Query 98,635 attends to 512 keys")


def test_odd_plans_have_their_pages(opened, folder):
    path, options = folder / "odd.html", {"dtype": "float32", "device": "cpu"}
    near = Mask.neighborhood((3, 3))
    grids = [(4, 4), (8, 6)]
    plans = {
        "none": nbattn.plan(Mask.full(), (1, 0, 2, 8), (1, 5, 2, 8), **options),
        "no positions": nbattn.plan(Mask.full(), (1, 6, 2, 8), (1, 9, 2, 8), **options),
        "joint": nbattn.plan(near, (1, 8, 8, 2, 8), extra_keys=5, extra_queries=True, **options),
        "packed": nbattn.plan(near, (64, 2, 8), grids=grids, **options),
        "no grids": nbattn.plan(near, (0, 2, 8), grids=[], **options),
    }
    pages.write(plans, path)
    opened.open(path)
    page, said = opened.page, []
    for number in range(page.locator("#views option").count()):
        page.locator("#views").select_option(index=number)
        said.append(opened.said().partition(":")[0].partition(". ")[0])
        page.locator(".frame").first.focus()
        page.keyboard.press("Control+End")
        page.keyboard.press("PageUp")
    assert said == [
        "There are no queries.",
        "Query 3 attends to 9 keys",
        "Query (4, 4) attends to 9 keys",
        "Query (2, 0) attends to 64 keys",
        "Query (2, 2) attends to 9 keys",
        "Query (4, 3) attends to 9 keys",
        "There are no queries.",
    ]
    opened.finish()


def test_plans_are_chosen_by_name(opened, folder):
    path = folder / "several.html"
    plans = {name: plan_of(name) for name in ("wrap", "neighborhood")}
    pages.write(plans, path)
    page = opened
    page.open(path)
    page.page.get_by_label("Plan", exact=True).select_option("neighborhood")
    page.drag("01", (1, 1), (3, 4))
    judge(page, "neighborhood", (3, 4))
    assert json.loads(page.page.locator("#data").inner_text())["views"][1]["name"] == "neighborhood"
    page.page.get_by_label("Plan", exact=True).select_option("wrap")
    judge(page, "wrap", (8,))
    page.finish()
