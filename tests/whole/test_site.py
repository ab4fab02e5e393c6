"""Tests of the site as a whole: its navigation and links, its reference, its generated pages, and
that it is built without a warning into files that load nothing from elsewhere.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import nbattn
from docs_tools import __main__ as docs_tools
from docs_tools import command_line, markdown, schema_keys, support
from nbattn.pictures import signs

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINKED = [*PAGES, *(ROOT / f"{name}.md" for name in ("README", "DESIGN", "CONTRIBUTING"))]
WORDS = 2500
# As long as the help of all commands, and a list of masks that nobody reads from start to end.
GENERATED = {"reference/command-line.md", "gallery/index.md"}
Case = Callable[[str, int], None]


def page_name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def without_code(text: str) -> str:
    """A page's text without its fences and code spans, which may look like links and headings."""
    text = re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.S | re.M)
    return re.sub(r"`[^`\n]+`", "code", text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, where GitHub and the site have the same, and of the
    reference's entries, whose members a strict build checks.
    """
    fenced = re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.S | re.M)
    found: Counter[str] = Counter()
    for heading in re.findall(r"^#+ +(.+?) *#*$", fenced, flags=re.M):
        plain = re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower()
        on_github, on_site = re.sub(r"\s", "-", plain), re.sub(r"[-\s]+", "-", plain)
        found[on_github] += on_github == on_site
    found.update(re.findall(r"^::: (\S+)$", fenced, flags=re.M))
    return {anchor for anchor, count in found.items() if count == 1}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links and images of a page whose file or anchor does not exist."""
    broken: list[str] = []
    for target in re.findall(r"\]\(<?([^)\s>]+)[^)]*\)", without_code(text)):
        if re.match(r"[a-z]+:", target) or target.endswith(".html"):
            continue  # pages that the build makes are the build's to check
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        is_folder = file.is_dir() and DOCS not in page.parents  # which GitHub shows
        if not (file.is_file() or is_folder) or target.startswith("/"):
            broken.append(f"{target}: no such file")
        elif DOCS in page.parents and DOCS not in file.parents:
            broken.append(f"{target}: is not a part of the site")
        elif anchor and file.suffix == ".md":
            there = anchors(text if file == page else file.read_text("utf-8"))
            if anchor not in there and not any(anchor.startswith(f"{name}.") for name in there):
                broken.append(f"{target}: no such heading")
    return broken


def images_without_words(text: str) -> list[str]:
    """Images whose alternative text is shorter than three words, in Markdown and in HTML."""
    plain = without_code(text)
    found = re.findall(r"!\[([^\]]*)\]\(", plain)
    found += [
        "".join(re.findall(r'\balt="([^"]*)"', tag)) for tag in re.findall(r"<img[^>]*>", plain)
    ]
    return [alt for alt in found if len(alt.split()) < 3]


def test_links_lead_somewhere(cases: Case) -> None:
    broken = {page.name: broken_links(page, page.read_text("utf-8")) for page in LINKED}
    assert not {name: links for name, links in broken.items() if links}
    cases("pages with links checked", len(LINKED))


def test_images_have_words_for_who_cannot_see_them() -> None:
    silent = {page_name(page): images_without_words(page.read_text("utf-8")) for page in PAGES}
    assert not {name: images for name, images in silent.items() if images}


@pytest.mark.parametrize(
    "text",
    [
        "[a](nowhere.md)",
        "[a](faq.md#nothing)",
        "[a](#nothing)",
        "[a](../README.md)",
        "[a](/faq.md)",
        "![a](images/nothing.png)",
        "# One\n# One\n[a](#one)",
        "# A – B\n[a](#a-b)",
        "```\n# Here\n```\n[a](#here)",
    ],
)
def test_a_broken_link_is_found(text: str) -> None:
    assert len(broken_links(DOCS / "index.md", text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[a](faq.md)",
        "# `One` two!\n[a](#one-two)",
        "`q[0](nowhere.md)`",
        "```python\n[a](nowhere.md)\n```",
        "[a](https://example.org/nowhere.md#x)",
        "[a](reference/masks.md#nbattn.Mask.draw)",
    ],
)
def test_other_links_are_not(text: str) -> None:
    assert broken_links(DOCS / "index.md", text) == []


def test_an_image_without_words_is_found() -> None:
    assert images_without_words("![](a.png) ![mask](b.png)") == ["", "mask"]
    assert images_without_words('<img src="a.png"> <img alt="keys of one query" src="b">') == [""]
    assert images_without_words("![the keys of a query](a.png)") == []


def test_the_navigation_has_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    assert Counter(re.findall(r"- (?:.+: )?(\S+\.md)$", text, flags=re.M)) == Counter(
        map(page_name, PAGES)
    )


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_has_one_title_and_a_length_that_people_read(page: Path) -> None:
    text = page.read_text("utf-8")
    fences = re.sub(r"^( *)(```+).*?^\1\2 *$", "", text, flags=re.S | re.M)
    assert len(re.findall(r"^# ", fences, flags=re.M)) == 1
    assert fences.lstrip().startswith("# ")
    assert len(re.findall(r"\S*\w\S*", text)) <= WORDS or page_name(page) in GENERATED


# The reference.

# Modules without `__all__`, and what of them is for users.
PUBLIC = {
    "errors": ["Mistake"],
    "export": ["decompositions", "fvcore_handles"],
    "integrations.swin": ["mask", "relative_bias_from", "table_from", "window_attention"],
    "integrations.transformers": ["apply", "layer_mask", "register", "restore", "unregister"],
    "program.device": ["named"],
    "recipes": ["sliding_tile"],
}
LISTED = (
    *("config", "distributed", "integrations.diffusers", "integrations.natten", "nn", "published"),
)


def public_names() -> Iterator[str]:
    yield from (f"nbattn.{name}" for name in nbattn.__all__ if name != "__version__")
    for module in LISTED:
        text = ROOT.joinpath("nbattn", *module.split("."), "__init__.py").read_text("utf-8")
        (names,) = re.findall(r"^__all__ = (\[.*?\])$", text, flags=re.M | re.S)
        yield from (f"nbattn.{module}.{name}" for name in ast.literal_eval(names))
    for module, names in PUBLIC.items():
        yield from (f"nbattn.{module}.{name}" for name in names)


def entries() -> list[str]:
    """What the reference describes from docstrings."""
    texts = [page.read_text("utf-8") for page in sorted((DOCS / "reference").glob("*.md"))]
    return [path for text in texts for path in re.findall(r"^::: (\S+)$", text, flags=re.M)]


def named_in_a_table() -> list[str]:
    """NATTEN's functions, which are made by loops, so that no docstring is theirs alone."""
    text = (DOCS / "reference" / "integrations.md").read_text("utf-8")
    cells = " ".join(re.findall(r"^\| (`.+?) \|", text, flags=re.M))
    return [f"nbattn.integrations.natten.{name}" for name in re.findall(r"`(\w+)`", cells)]


def test_the_reference_has_every_public_name_once(cases: Case) -> None:
    """Also those that have two names; without importing anything."""
    griffe = pytest.importorskip("griffe", reason="no griffe to read the package with")
    package = griffe.load("nbattn", search_paths=[ROOT])

    def origin(path: str) -> str:
        one = package[path.removeprefix("nbattn.")]
        try:  # a function of a module of its name is what Python finds, and not the module
            return f"{path}.{one.name}" if one.is_module else one.canonical_path
        except griffe.AliasResolutionError:
            return path

    described = Counter(map(origin, [*entries(), *named_in_a_table()]))
    wanted = {origin(path) for path in public_names()}
    assert {path: described[path] for path in wanted} == dict.fromkeys(wanted, 1)
    assert max(described.values()) == 1
    cases("public names", len(wanted))


# Pages that are made from the code.


def test_generated_pages_are_those_of_the_code() -> None:
    stale = [
        path.relative_to(ROOT).as_posix()
        for path, text in docs_tools.generated().items()
        if path.read_text("utf-8") != text
    ]
    assert not stale, f"{stale} are not what the code says; fix: .venv/bin/python -m docs_tools"


def test_examples_of_the_tools_run() -> None:
    modules = [markdown]
    if importlib.util.find_spec("griffe"):
        modules.append(importlib.import_module("docs_tools.docstrings"))
    for module in modules:
        result = doctest.testmod(module)
        assert result.attempted
        assert not result.failed


def test_every_option_is_on_the_page_of_the_command_line() -> None:
    page = command_line.markdown()
    assert "%(" not in page
    assert "planner's" in page  # an apostrophe opens no code
    for name in ("plan", "mask", "doctor", "bench", "tune", "demo", "schema"):
        shown = importlib.import_module(f"nbattn.cli.{name}").parser().format_help()
        section = page.partition(f"\n## nbattn {name}\n")[2].partition("\n## ")[0]
        for option in re.findall(r"^ +(?:-h, )?(--[\w-]+)", shown, flags=re.M):
            assert f"`{option}" in section
        examples = re.findall(r"^ +(nbattn [^\n\\]+)", shown, flags=re.M)
        assert examples
        assert all(line.strip() in section for line in examples)


def test_every_key_of_the_schema_is_in_its_tables() -> None:
    text = schema_keys.markdown()
    kinds = nbattn.config.schema()["$defs"]
    for kind in kinds.values():
        for key, about in kind["properties"].items():
            assert re.search(rf"\| `{key}` \|.*{re.escape(about['description'])}", text)
    assert "lists of integers" in text


FORCED = {
    "cpu": ("sdpa", "native", "flex"),
    "sm_90": ("sdpa", "flash:fa2", "cuda", "flex", "natten"),
}
SWITCHES = {"return_lse", "sink", "key_range", "extra_range", "relative_bias", "alibi_slopes"}
OPTIONS = {*SWITCHES, "softcap", "value_dim", "extra_keys", "deterministic"}


@pytest.mark.parametrize("device", FORCED)
def test_cells_are_what_plans_say(device: str, cases: Case) -> None:
    """By `nbattn.plan`, with and without a backward pass."""
    info = next(one for one in support.DEVICE_LIST if one.name == device)
    for feature, question in support.FEATURES.items():
        if not {*question} <= OPTIONS:
            continue
        answers = support.ask(info, **question)
        options = question | ({"softcap": 30.0} if "softcap" in question else {})
        for backend in FORCED[device]:
            ours = [one for name, one in answers.items() if name.split(" ")[0] == backend]
            said = (any(one.forward for one in ours), any(one.training for one in ours))
            planned = tuple(plans(backend, info, training, options) for training in (False, True))
            assert ours
            assert said == planned, (feature, backend)
            cases("cells of the support tables", 1)


def plans(backend: str, device: object, training: bool, options: dict[str, object]) -> bool:
    choice = {"backend": backend, "device": device, "training": training, "dtype": "bfloat16"}
    try:
        nbattn.plan(support.WINDOW, support.SHAPE, **choice, **options)
    except nbattn.BackendError:
        return False
    return True


def test_a_cell_lists_the_devices_that_differ() -> None:
    same = {"cpu": "✓", "sm_80": "✓", "sm_90": "✓"}
    assert support._by_device(same, str) == "✓"
    assert support._by_device({**same, "sm_120": "–"}, str) == "✓; sm_120 –"
    assert support._by_device({"cpu": "–", "sm_90": "✓"}, str) == "cpu –; sm_90 ✓"
    assert support._by_device({"cpu": "–", "sm_80": "✓", "sm_90": "✓"}, str) == "GPU ✓; cpu –"
    assert support._by_device({}, str) == "–"


@pytest.mark.deep
@pytest.mark.parametrize("device", support.DEVICE_LIST, ids=lambda device: device.name)
def test_gpus_of_a_generation_have_the_same_limits(device: support.DeviceInfo) -> None:
    number = (device.capability or 0) // 10
    (one,) = (one for one in support.GENERATIONS if (one.capability or 0) // 10 == number)
    for question in (*support.FEATURES.values(), *support.MASKS.values()):
        ours, theirs = support.ask(device, **question), support.ask(one, **question)
        said = [
            {name: (answer.forward, answer.training) for name, answer in answers.items()}
            for answers in (ours, theirs)
        ]
        assert said[0] == said[1]
        alone = support.ask(device, **question, trains=False)
        assert {n: one.forward for n, one in alone.items()} == {
            n: one.forward for n, one in ours.items()
        }


def test_the_font_has_every_sign_of_pictures_in_one_width() -> None:
    tools = pytest.importorskip("fontTools.ttLib", reason="no fontTools to read the font with")
    drawn = {sign for sign in signs.SIGNS if len(sign) == 1} - {"·"}  # every code font has the dot
    font = tools.TTFont(DOCS / "assets" / "signs.woff")
    assert {chr(code) for code in font.getBestCmap()} == drawn
    assert {font["hmtx"][name][0] for name in font.getBestCmap().values()} == {602}
    css = (DOCS / "assets" / "site.css").read_text("utf-8")
    (ranges,) = re.findall(r"unicode-range: ([^;]+);", css)
    assert {chr(int(code[2:], 16)) for code in ranges.split(", ")} == drawn


# The built site.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it: any warning is an error (with --quiet none is seen)."""
    pytest.importorskip("mkdocs", reason="no mkdocs to build the site with")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run([*words, str(folder)], capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """What a page makes a browser load, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        names = ["href"] if tag == "link" else [] if tag == "a" else ["src", "srcset", "data"]
        names += ["xlink:href", "poster"]
        self.urls += [known[name] or "" for name in names if known.get(name)]
        self.ids.add(known.get("id") or "")
        self.classes |= {*(known.get("class") or "").split()}


# URLs in the theme's script, none of which is loaded here: diagrams, which no page has; what
# browsers without ResizeObserver need; numbers of a repository, which the site does not name.
DORMANT = (
    *("https://unpkg.com/mermaid", "https://unpkg.com/resize-observer"),
    *("https://api.github.com", "https://${e}/api/v4/projects"),
)


def test_arguments_of_any_number_have_no_default(built: Path) -> None:
    text = (built / "reference" / "masks.html").read_text("utf-8")
    assert re.search(r"\*axes\s+\(Axis\)", re.sub(r"<[^>]+>", "", text))


def test_the_site_loads_nothing_from_elsewhere(built: Path, cases: Case) -> None:
    for page in built.rglob("*.html"):
        loads = Loads(page.read_text("utf-8"))
        outside = [url for url in loads.urls if re.match(r"(?:[a-z]+:)?//", url)]
        assert not outside, page
        assert "mermaid" not in loads.classes
        cases("built pages", 1)
    for sheet in built.rglob("*.css"):
        text = sheet.read_text("utf-8")
        assert not re.search(r"""@import|url\(\s*["']?(?:https?:)?//""", text), sheet
    for script in built.rglob("*.js"):
        urls = re.findall(r"""["'`](https?://[^"'`]+)["'`]""", script.read_text("utf-8"))
        loaded = [u for u in urls if not u.startswith(DORMANT) and "www.w3.org" not in u]
        assert not loaded, script


def test_the_built_site_has_its_pages_and_entries(built: Path) -> None:
    pages = {
        path.relative_to(built).with_suffix(".md").as_posix() for path in built.rglob("*.html")
    }
    assert {page_name(page) for page in PAGES} | {"404.md"} <= pages
    ids: set[str] = set()
    for page in (built / "reference").glob("*.html"):
        ids |= Loads(page.read_text("utf-8")).ids
    members = {"nbattn.Mask.neighborhood", "nbattn.Plan.explain", "nbattn.distributed.Halo.plot"}
    assert {*entries(), *members} <= ids


def test_examples_of_docstrings_are_code(built: Path) -> None:
    for page in (built / "reference").glob("*.html"):
        text = page.read_text("utf-8")
        assert "<blockquote>" not in text, page  # what Markdown makes of >>>
        assert "BLANKLINE" not in text, page
        assert "&gt;&gt;&gt;" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.S), page


def test_a_signature_is_that_of_the_last_overload(built: Path) -> None:
    text = (built / "reference" / "attention.html").read_text("utf-8")
    entry = text.partition('id="nbattn.attention"')[2].partition('id="nbattn.joint_attention"')[0]
    code = [re.sub(r"<[^>]+>", "", one) for one in re.findall(r"<pre>.*?</pre>", entry, re.S)]
    (signature,) = (one for one in code if one.lstrip().startswith("attention("))
    assert "return_lse: bool = False" in signature
    assert "query: Tensor,\n" in signature
    assert not re.search("more|unknown", signature)


CHROMIUM = shutil.which("chromium")
LOCAL = ("file:", "data:", "blob:")


@pytest.mark.deep
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_every_page_in_a_browser_from_a_disk(built: Path, width: int, cases: Case) -> None:
    """Nothing is asked of a network, nothing fails, no page is wider than the screen, pictures are
    there, and the search finds.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    pages = sorted(built.rglob("*.html"))
    pages.remove(built / "404.html")  # only a server shows it, from anywhere
    wrong: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("pageerror", lambda error: wrong.append(f"{error} in {tab.url}"))
        tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        tab.on(
            "request",
            lambda asked: None if asked.url.startswith(LOCAL) else wrong.append(asked.url),
        )
        for page in pages:
            tab.goto(page.as_uri(), wait_until="load")
            if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wrong.append(f"{page}: is wider than the screen")
            broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
            if tab.evaluate(broken):
                wrong.append(f"{page}: has a broken picture")
            cases("pages in a browser", 1)
        tab.goto((built / "index.html").as_uri())
        if width < 1000:
            tab.click("label.md-header__button[for=__search]")
        tab.click(".md-search__input")
        tab.keyboard.type("dilation")
        tab.wait_for_selector(".md-search-result__item", timeout=60_000)
        browser.close()
    assert not wrong
