"""Tests of house rules: budgets of size, annotations, module docstrings, and forbidden content.

Every rule is a function from files to a list of violations, so that it can be shown to fail: each
has a sample here that breaks it. A function's length runs from `def` to its last line without its
docstring; a nested function counts as itself and as part of its parent.
"""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nbattn"
Function = ast.FunctionDef | ast.AsyncFunctionDef
Files = dict[str, str]  # path from the root → text

MODULE_LINES, MODULE_MEDIAN = 500, 200
FUNCTION_LINES, FUNCTION_P90, FUNCTION_MEDIAN = 80, 40, 10
REASONS_LINES = 60
CUDA_LINES = 400
PAGE_LINES = 500  # of a script or a style sheet of a page
DRAWING_LINES = 80
CONTRIBUTING_LINES = 120
DRAWERS = {"utils", "util", "common", "helpers", "helper", "misc"}


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def is_triton(function: Function) -> bool:
    """Whether Triton compiles it: parameters have the types of its calls."""
    names = (ast.unparse(decorator).partition("(")[0] for decorator in function.decorator_list)
    return "triton.jit" in names


def length(function: Function) -> int:
    """A kernel's parameters, one a line, do not count."""
    first = function.body[0].lineno - 1 if is_triton(function) else function.lineno
    lines = function.end_lineno - first + 1
    if ast.get_docstring(function) is not None:
        lines -= function.body[0].end_lineno - function.body[0].lineno + 1
    return lines


def percentile(values: list[int], share: float) -> int:
    """The smallest value that at least this share of the values does not exceed."""
    ranked = sorted(values)
    return ranked[max(0, -int(-share * len(ranked) // 1) - 1)]


def module_sizes(files: Files) -> list[str]:
    sizes = {path: len(text.splitlines()) for path, text in files.items()}
    violations = [f"{p}: {n} lines > {MODULE_LINES}" for p, n in sizes.items() if n > MODULE_LINES]
    if sizes and (median := statistics.median(sizes.values())) > MODULE_MEDIAN:
        violations.append(f"median module: {median} lines > {MODULE_MEDIAN}")
    return violations


def function_sizes(files: Files) -> list[str]:
    sizes: list[int] = []
    violations: list[str] = []
    for path, text in files.items():
        for function in functions(ast.parse(text)):
            limit = REASONS_LINES if function.name == "reasons" else FUNCTION_LINES
            sizes.append(size := length(function))
            if size > limit:
                violations.append(
                    f"{path}:{function.lineno} {function.name}: {size} lines > {limit}"
                )
    if sizes and (median := statistics.median(sizes)) > FUNCTION_MEDIAN:
        violations.append(f"median function: {median} lines > {FUNCTION_MEDIAN}")
    if sizes and (p90 := percentile(sizes, 0.9)) > FUNCTION_P90:
        violations.append(f"90th percentile of functions: {p90} lines > {FUNCTION_P90}")
    return violations


def annotations(files: Files) -> list[str]:
    violations: list[str] = []
    for path, text in files.items():
        tree = ast.parse(text)
        methods = {f for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body}
        for function in (one for one in functions(tree) if not is_triton(one)):
            known = function.args
            positional = [*known.posonlyargs, *known.args]
            static = any(ast.unparse(d) == "staticmethod" for d in function.decorator_list)
            if function in methods and not static:
                positional = positional[1:]
            named = [*positional, *known.kwonlyargs, known.vararg, known.kwarg]
            missing = [a.arg for a in named if a is not None and a.annotation is None]
            missing += [] if function.returns else ["return"]
            violations += [f"{path}:{function.lineno} {function.name}: {name}" for name in missing]
    return violations


def module_docstrings(files: Files) -> list[str]:
    """A first paragraph that is a sentence: a capital, four words or more, a full stop."""
    violations: list[str] = []
    for path, text in files.items():
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
        sentence = " ".join(first.split())
        if not re.fullmatch(r"[A-Z`\"'].*\.", sentence) or len(sentence.split()) < 4:
            violations.append(f"{path}: its docstring does not start with a sentence: {sentence!r}")
    return violations


def drawing_size(files: Files) -> list[str]:
    text = files.get("nbattn/pictures/text.py", "")
    tree = ast.parse(text)
    owners = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | Function)]
    strings = [n.body[0] for n in owners if n.body and ast.get_docstring(n) is not None]
    prose = {line for s in strings for line in range(s.lineno, s.end_lineno + 1)}
    code = [
        line
        for number, line in enumerate(text.splitlines(), 1)
        if number not in prose and line.strip() and not line.lstrip().startswith("#")
    ]
    return (
        [f"nbattn/pictures/text.py: {len(code)} > {DRAWING_LINES}"]
        if len(code) > DRAWING_LINES
        else []
    )


def cuda_sizes(files: Files) -> list[str]:
    sizes = {p: len(t.splitlines()) for p, t in files.items() if p.endswith((".cu", ".cuh"))}
    return [f"{path}: {n} lines > {CUDA_LINES}" for path, n in sizes.items() if n > CUDA_LINES]


def page_sizes(files: Files) -> list[str]:
    sizes = {p: len(t.splitlines()) for p, t in files.items() if p.endswith((".js", ".css"))}
    return [f"{path}: {n} lines > {PAGE_LINES}" for path, n in sizes.items() if n > PAGE_LINES]


def contributing_size(files: Files) -> list[str]:
    lines = len(files.get("CONTRIBUTING.md", "").splitlines())
    return [f"CONTRIBUTING.md: {lines} lines"] if lines > CONTRIBUTING_LINES else []


def drawers(files: Files) -> list[str]:
    parts = {path: {Path(part).stem.lower() for part in Path(path).parts} for path in files}
    return [f"{path}: name what it holds" for path, names in parts.items() if names & DRAWERS]


def empty_files(files: Files) -> list[str]:
    return [f"{path}: is empty" for path, text in files.items() if not text.strip()]


def machine_paths(files: Files) -> list[str]:
    return matches(files, r"(?<![\w.})])/(?:work|root|home)/")


def unfinished(files: Files) -> list[str]:
    return matches(files, r"\b(?:TO" + r"DO|FIX" + r"ME)\b")


def clocks(files: Files) -> list[str]:
    """Tests that measure time; `time.time()` dates files."""
    tests = {path: text for path, text in files.items() if path.startswith("tests/")}
    return matches(tests, r"\b(?:[pt](?:rocess|hread)_time|[p]erf_counter|[m]onotonic|[t]imeit)")


def matches(files: Files, pattern: str) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


@pytest.fixture(scope="module")
def package() -> Files:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


@pytest.fixture(scope="module")
def tree() -> Files:
    """The text of every file that git tracks, or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    files: Files = {}
    for name in filter(None, listed.stdout.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in content:
            files[name] = content.decode("utf-8")
    return files


PACKAGE_RULES = [
    module_sizes,
    function_sizes,
    annotations,
    module_docstrings,
    drawing_size,
]
TREE_RULES = [
    cuda_sizes,
    page_sizes,
    contributing_size,
    drawers,
    empty_files,
    machine_paths,
    unfinished,
    clocks,
]


@pytest.mark.parametrize("rule", PACKAGE_RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Callable[[Files], list[str]], package: Files, cases):
    assert package, "no module found"
    cases("house rules: modules", len(package))
    assert not (violations := rule(package)), "\n".join(violations)


@pytest.mark.parametrize("rule", TREE_RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Callable[[Files], list[str]], tree: Files, cases):
    assert "pyproject.toml" in tree
    cases("house rules: files", len(tree))
    assert not (violations := rule(tree)), "\n".join(violations)


def body(lines: int, name: str = "f", doc: str = "") -> str:
    """A function of this many lines that count."""
    return f"def {name}() -> None:\n{doc}" + "    x = 1\n" * (lines - 1)


def many(*sizes: int) -> str:
    return "".join(body(size, f"f{i}") for i, size in enumerate(sizes))


DOC = '    """One.\n\n    Two.\n    """\n'
VIOLATIONS: list[tuple[Callable[[Files], list[str]], Files]] = [
    (module_sizes, {"a.py": "x = 1\n" * 501, "b.py": "", "c.py": ""}),
    (module_sizes, {"a.py": "x = 1\n" * 201, "b.py": "x = 1\n" * 201, "c.py": ""}),
    (function_sizes, {"a.py": body(81) + many(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)}),
    (function_sizes, {"a.py": body(61, "reasons") + many(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)}),
    (function_sizes, {"a.py": many(2, 2, 11, 11, 11)}),
    (function_sizes, {"a.py": many(2, 2, 2, 2, 2, 2, 2, 2, 41, 41)}),
    (function_sizes, {"a.py": "@triton.jit\n" + body(81) + many(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)}),
    (annotations, {"a.py": "def f(x) -> int: ..."}),
    (annotations, {"a.py": "@triton.autotune\ndef f(x) -> int: ..."}),
    (annotations, {"a.py": "def f(x: int): ..."}),
    (annotations, {"a.py": "def f(*, x) -> int: ..."}),
    (annotations, {"a.py": "def f(*x) -> int: ..."}),
    (annotations, {"a.py": "async def f(**x) -> int: ..."}),
    (annotations, {"a.py": "class C:\n    def f(self, x) -> int: ..."}),
    (annotations, {"a.py": "class C:\n    @staticmethod\n    def f(x) -> int: ..."}),
    (annotations, {"a.py": "class C:\n    def f(self) -> None:\n        def g(x) -> None: ..."}),
    (module_docstrings, {"a.py": "x = 1"}),
    (module_docstrings, {"a.py": '"""Tests of nothing at all"""'}),
    (module_docstrings, {"a.py": '"""Tools."""'}),
    (drawing_size, {"nbattn/pictures/text.py": '"""Doc."""\n' + "x = 1\n" * 81}),
    (cuda_sizes, {"cuda/fwd.cu": "\n" * 401}),
    (cuda_sizes, {"cuda/window.cuh": "\n" * 401}),
    (page_sizes, {"nbattn/explorer/assets/explorer.js": "\n" * 501}),
    (page_sizes, {"docs/assets/site.css": "\n" * 501}),
    (contributing_size, {"CONTRIBUTING.md": "\n" * 121}),
    (drawers, {"nbattn/utils.py": "x"}),
    (drawers, {"nbattn/common/mask.py": "x"}),
    (drawers, {"tests/Helpers.py": "x"}),
    (empty_files, {"nbattn/planner/__init__.py": "\n"}),
    (machine_paths, {"a.md": "see /" + "work/notes"}),
    (machine_paths, {"a.toml": 'p = "/' + 'home/me"'}),
    (machine_paths, {"a.py": "p='/" + "root/x'"}),
    (unfinished, {"a.py": "# TO" + "DO later"}),
    (unfinished, {"a.cu": "// FIX" + "ME: race"}),
    (clocks, {"tests/test_a.py": "start = time.perf_" + "counter()"}),
    (clocks, {"tests/gpu/test_a.py": "from time import mono" + "tonic_ns"}),
]
LEGAL: list[tuple[Callable[[Files], list[str]], Files]] = [
    (module_sizes, {"a.py": "x = 1\n" * 500, "b.py": "x = 1\n" * 200, "c.py": ""}),
    (function_sizes, {"a.py": body(80, "f", DOC) + many(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)}),
    (function_sizes, {"a.py": body(60, "reasons", DOC) + many(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)}),
    (function_sizes, {"a.py": many(2, 2, 10, 10, 10)}),
    (function_sizes, {"a.py": many(2, 2, 2, 2, 2, 2, 2, 2, 40, 40)}),
    (annotations, {"a.py": "class C:\n    def f(self, x: int, *a: int, **k: int) -> int: ..."}),
    (annotations, {"a.py": "class C:\n    @classmethod\n    def f(cls) -> int: ..."}),
    (
        function_sizes,
        {
            "a.py": "@triton.jit\ndef f(\n    a,\n    b,\n):\n"
            + "    x = 1\n" * 79
            + many(2, 2, 2, 2, 2, 2, 2, 2, 2, 2)
        },
    ),
    (annotations, {"a.py": "f = lambda x: x"}),
    (annotations, {"a.py": "@triton.jit\ndef f(x, y): ..."}),
    (annotations, {"a.py": "@triton.jit(do_not_specialize=X)\ndef f(x, y): ..."}),
    (
        module_docstrings,
        {"a.py": '"""What a query reads: intervals,\ncounts and tiles.\n\nMore"""'},
    ),
    (drawing_size, {"nbattn/pictures/text.py": '"""Doc.\n\n1\n"""\n\n# why\n' + "x = 1\n" * 80}),
    (drawers, {"nbattn/commonplace.py": "x"}),
    (machine_paths, {"a.md": "https://example.org/home/ and src/root/x and net" + "work/"}),
    (unfinished, {"a.md": "mastodon"}),
    (clocks, {"tests/test_a.py": "time.time()", "benchmarks/a.py": "time.perf_" + "counter()"}),
]


@pytest.mark.parametrize(("rule", "files"), VIOLATIONS)
def test_the_rule_finds_its_violation(rule: Callable[[Files], list[str]], files: Files):
    assert len(rule(files)) == 1


@pytest.mark.parametrize(("rule", "files"), LEGAL)
def test_the_rule_accepts_files_at_the_limit(rule: Callable[[Files], list[str]], files: Files):
    assert rule(files) == []
