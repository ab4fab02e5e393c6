"""Tests of which components may import which, and of what an import loads, costs and leaves behind.

`ALLOWED` is the rule. Imports at module level and for type checkers follow it strictly; an import
inside a function follows it too, unless `EXCEPTIONS` names that function.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch_forks
from own_warnings import STRICT

from nbattn.backends import families

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "nbattn"
Sources = dict[str, str]  # module below the package ("" is the package itself) → source

# Component → what it may import: components, or single modules of one. The lowest comes first.
PROGRAM = "lazy errors axis synonyms packages mask piecewise_sum rows geometry grids program"
# tensor code of several families
SHARED = "symbolic backends.inputs backends.logsumexp backends.calls"
FAMILIES = {f"backends.{family.name}" for family in families.FAMILIES}
ALLOWED = {
    "version": "",
    "lazy": "",
    "errors": "",
    "machine": "version",
    "timing": "",
    "cache": "",
    "symbolic": "",
    "axis": "errors symbolic",
    "fixes": "lazy errors axis fixes",
    "synonyms": "axis",
    "packages": "",
    "windows": "errors axis symbolic fixes",
    "mask": "errors axis symbolic fixes windows",
    "mask_tables": "errors axis mask",
    "recipes": "errors axis mask fixes",
    "mistaken_masks": "errors axis mask fixes",
    "mistaken_windows": "errors axis mask fixes",
    "mistaken_words": "errors axis synonyms mask fixes mistaken_masks mistaken_windows",
    "mistaken_places": "errors axis mask fixes",
    "shapes": "errors axis mask symbolic",
    "key_ranges": "errors fixes mistaken_places",
    "joining": "errors fixes mistaken_places",
    "piecewise_sum": "",
    "rows": "axis",
    "alignment": "errors axis mask",
    "circles": "errors axis mask",
    "geometry": "errors axis mask fixes alignment circles piecewise_sum rows",
    "biases": "errors axis mask rows geometry",
    "grids": "errors fixes mistaken_places mask alignment circles geometry biases",
    "packing": "errors mask symbolic shapes grids",
    "added_scores": "errors mask symbolic geometry biases grids packing",
    "kernels": "errors packages version cache geometry grids kernels",
    "program": f"{PROGRAM} biases",
    "backends": f"{PROGRAM} {SHARED} biases kernels backends.families",
    **{family: f"{PROGRAM} {SHARED} biases kernels {family}" for family in sorted(FAMILIES)},
    "planner": f"{PROGRAM} fixes mistaken_places version machine cache backends.families planner",
    "execute": "errors mask program backends.families backends.inputs planner",
    "ops": "errors mask geometry grids packing program backends.inputs planner execute",
    "export": "errors axis mask symbolic rows biases backends.inputs backends.dense.reference ops"
    " export",
    "autograd": "errors program backends.inputs planner execute ops export",
    "mistaken_plans": "program backends.families backends.inputs autograd",
    "arguments": "errors axis mask symbolic key_ranges mistaken_masks shapes program"
    " added_scores packing backends.families planner",
    "known_calls": "mask grids backends.families backends.inputs planner execute autograd"
    " arguments",
    "functional": "errors mask program backends.families backends.inputs"
    " backends.dense.reference planner execute ops export autograd fixes shapes key_ranges joining"
    " grids packing"
    " arguments known_calls mistaken_words mistaken_places",
    "weights": "errors axis mask fixes rows geometry biases backends.inputs"
    " backends.dense.reference mistaken_words mistaken_places key_ranges packing functional",
    "joint": "errors axis mask fixes mistaken_words mistaken_places arguments functional",
    "plan_runs": "errors program backends.families backends.inputs planner autograd key_ranges"
    " arguments functional joint mistaken_plans",
    "pictures": "errors axis packages mask geometry program planner pictures",
    "explorer": "errors axis rows geometry program planner pictures explorer",
    "distributed": "lazy errors axis fixes mask mistaken_masks mistaken_words key_ranges joining"
    " rows geometry program backends.inputs arguments autograd functional pictures distributed",
    "nn": "lazy errors fixes mistaken_masks axis synonyms mask symbolic program planner shapes"
    " biases arguments packing functional joint distributed nn",
    "config": "errors fixes axis synonyms packages mask mask_tables geometry biases grids packing"
    " program backends.families planner arguments functional pictures nn config",
    "published": "errors mask program planner functional config published",
    "doctor": "errors packages version machine cache mask program backends.families kernels planner"
    " functional config doctor",
    "bench": "errors machine timing geometry biases program backends.families backends.inputs"
    " planner",
    "tune": "errors machine timing cache axis mask geometry program planner functional config"
    " bench backends.families backends.inputs",
    "demo": "errors axis packages mask geometry program planner functional nn config pictures demo",
    "cli": "errors fixes packages machine timing cache axis mask mask_tables geometry program"
    " backends.families planner functional nn config pictures explorer distributed doctor bench"
    " tune demo published cli version",
    "integrations": "lazy errors packages version axis mask geometry program backends.families"
    " arguments backends.tiled.costs backends.tiled.schedule backends.tiled.meaning planner export"
    " functional joint nn config recipes shapes symbolic integrations",
    "__main__": "cli",
    "": "lazy errors axis mask version",
}
# Functions that import upward when they are called → what they import.
EXCEPTIONS = {
    ("axis", "Axis.__new__"): "fixes",
    ("fixes.mask_names", "refusal"): "mask",
    ("fixes.masks", "from_text"): "mask",
    ("fixes.mask_names", "of_the_class"): "mask",
    ("fixes.mask_names", "_as_axes"): "mask",
    ("fixes.axis_names", "_of_a_window"): "mask",
    ("mask", "Mask.dense"): "geometry",
    ("mask", "Mask.from_dict"): "mask_tables",
    ("mask", "Mask.to_dict"): "mask_tables",
    ("mask_tables", "mask_of"): "config",
    ("mask", "Mask.draw"): "pictures.text",
    ("mask", "Mask.plot"): "pictures.plot",
    ("mask", "Mask.to_flex"): "backends.flex.run",
    ("mask", "Mask._repr_html_"): "pictures.notebook",
    ("mask", "Mask._repr_svg_"): "pictures.small_svg",
    ("functional", "attention"): "distributed.tensors",
    ("joint", "joint_attention"): "distributed.tensors",
    ("planner.plan", "Plan._repr_html_"): "pictures.notebook",
    ("planner.plan", "Plan._repr_svg_"): "pictures.tiles",
    ("planner.plan", "Plan.plot"): "pictures.tiles",
    ("config", "Config._repr_html_"): "config.notebook",
    ("planner.plan", "Plan.to_html"): "explorer.page",
    ("planner.plan", "Plan.run"): "plan_runs",
    ("planner.joint_plan", "JointPlan.run"): "plan_runs",
    ("planner.plan", "Plan.warmup"): "plan_runs",
}
# Component → packages it may import at module level. In a family only the modules that touch
# tensors may import torch; its meaning, candidates and costs import no more than numpy, anywhere.
PLAIN = ("program", *(f"{family}.{part}" for family in FAMILIES for part in ("meaning", "costs")))
PLAIN = (*PLAIN, *(f"{family}.candidates" for family in FAMILIES))
# and so are the plain numbers of parts of axes, of which halos are made
PARTS = ("chunks", "local_axes", "shards", "halos", "halo_text", "halo_picture", "traffic")
PARTS = tuple(f"distributed.{part}" for part in PARTS)
PLAIN = (*PLAIN, *PARTS)
# What the planner reads of the Triton kernels loads no triton.
PLAIN = (
    *PLAIN,
    "backends.triton.tiles",
    "backends.triton.choice",
    "backends.triton.kernels.numbers",
)
# Modules around another library, which are loaded only when one of its objects is there, or when
# its kernels run.
PEERS = {
    "backends.triton.kernels": "triton",
    "backends.triton.launch": "triton",
    "integrations.alibi_models": "transformers",
    "integrations.diffusers.ltx_decoder": "diffusers",
    "integrations.diffusers.processors": "diffusers",
}
FOREIGN = {
    **dict.fromkeys(
        ["version", "lazy", "errors", "symbolic", "axis", "fixes", "synonyms", "packages"],
        "",
    ),
    **dict.fromkeys(["windows", "mask", "mask_tables"], ""),
    **dict.fromkeys(["alignment", "circles", "published", "doctor", "__main__", ""], ""),
    **dict.fromkeys(
        ["piecewise_sum", "rows", "geometry", "biases", "grids", "pictures", "explorer"],
        "numpy",
    ),
    **dict.fromkeys(["mistaken_masks", "mistaken_windows", "mistaken_words"], ""),
    **dict.fromkeys(["mistaken_places", "mistaken_plans"], ""),
    "recipes": "",
    **dict.fromkeys(["shapes", "key_ranges", "joining", "packing", "added_scores"], "torch"),
    **dict.fromkeys(["program"], "numpy"),
    **dict.fromkeys(["planner", "backends", "execute", "ops", "autograd"], "numpy torch"),
    **dict.fromkeys(["export"], "torch"),
    **dict.fromkeys(
        ["arguments", "known_calls", "functional", "weights", "joint", "plan_runs", "nn"],
        "numpy torch",
    ),
    **dict.fromkeys(["integrations", "distributed", "bench", "tune", "demo"], "numpy torch"),
    **dict.fromkeys(["machine", "timing", "cache", "cli"], ""),
    "kernels": "numpy",
    "config": "pydantic pydantic_core",
}


class Import(NamedTuple):
    """One import: of a module below nbattn, or of a foreign top-level package."""

    target: str
    foreign: bool
    level: str  # "module", "typing", or the qualified name of the function around it


def within(module: str, names: str) -> bool:
    """Whether a module is one of the named components or modules, or lies in one."""
    return any(module == name or module.startswith(f"{name}.") for name in names.split())


def component_of(module: str) -> str:
    """The component of a module: a folder or file of the package, or the folder of a family."""
    parts = module.split(".")
    family = ".".join(parts[:2])
    return family if family in FAMILIES else parts[0]


@cache
def imports(module: str, source: str, package: bool, modules: frozenset[str]) -> list[Import]:
    """Every import of a module, constant `import_module("nbattn…")` calls included."""

    def resolve(node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = ["nbattn", *filter(None, module.split("."))]
        parts = parts[: len(parts) - node.level + package]
        return ".".join([*parts, *filter(None, [node.module])])

    def names(node: ast.AST) -> list[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = resolve(node)
            inner = base.removeprefix("nbattn").removeprefix(".")
            below = [f"{inner}.{alias.name}".lstrip(".") for alias in node.names]
            return [f"nbattn.{b}" if b in modules else base for b in below]
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            constants = [a.value for a in node.args if isinstance(a, ast.Constant)]
            return [name for name in constants if isinstance(name, str) and name[:1] != "."]
        return []

    def walk(node: ast.AST, level: str, scope: tuple[str, ...]) -> Iterator[Import]:
        for name in names(node):
            top, _, rest = name.partition(".")
            if top == "nbattn" or top not in sys.stdlib_module_names:
                yield Import(rest if top == "nbattn" else top, top != "nbattn", level)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            scope = (*scope, node.name)
            if not isinstance(node, ast.ClassDef):
                level = ".".join(scope)
        typing = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for field, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    only_types = typing and field == "body" and level == "module"
                    yield from walk(child, "typing" if only_types else level, scope)

    return list(walk(ast.parse(source), "module", ()))


def graph(sources: Sources, packages: set[str]) -> dict[str, list[Import]]:
    modules = frozenset(sources)
    return {m: imports(m, s, m in packages, modules) for m, s in sources.items()}


def may_import(module: str, found: Import) -> bool:
    component, target = component_of(module), found.target
    if found.foreign:
        if any(within(module, plain) for plain in PLAIN):
            return found.level == "typing" or target == "numpy"
        peers = " ".join(names for peer, names in PEERS.items() if within(module, peer))
        free = found.level not in ("module", "typing") or within(target, peers)
        return free or found.level == "typing" or within(target, FOREIGN[component.split(".")[0]])
    if module == "" and found.level != "module":
        return True  # the index of public names: it loads them when they are asked for
    if any(
        within(target, upward)
        for (name, function), upward in EXCEPTIONS.items()
        if name == module and found.level in (function, "typing")
    ):
        return True
    return within(target, ALLOWED[component])


def forbidden_imports(sources: Sources, packages: set[str]) -> list[str]:
    return [
        f"nbattn.{module} -> {'' if found.foreign else 'nbattn.'}{found.target} ({found.level})"
        for module, all_found in graph(sources, packages).items()
        for found in all_found
        if component_of(module) in ALLOWED and not may_import(module, found)
    ]


def components_without_a_rule(sources: Sources) -> list[str]:
    return sorted({component_of(module) for module in sources} - set(ALLOWED))


def cycle(sources: Sources, packages: set[str]) -> list[str]:
    edges = {
        module: {f.target for f in found if not f.foreign and f.level == "module"}
        for module, found in graph(sources, packages).items()
    }
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def stale_exceptions(sources: Sources, packages: set[str]) -> list[str]:
    """Exceptions whose function exists but no longer imports upward."""
    found = graph(sources, packages)
    return [
        f"{module} {function}"
        for (module, function), upward in EXCEPTIONS.items()
        if f"def {function.split('.')[-1]}(" in sources.get(module, "")
        if not any(i.level == function and within(i.target, upward) for i in found[module])
    ]


def read_package() -> tuple[Sources, set[str]]:
    sources: Sources = {}
    packages: set[str] = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text("utf-8")
        if parts[-1] == "__init__":
            packages.add(name)
    return sources, packages


def test_the_table_lists_components_from_the_bottom_up():
    order = list(ALLOWED)
    for component, allowed in ALLOWED.items():
        for target in map(component_of, allowed.split()):
            below = order.index(target) < order.index(component)
            assert target == component or below, (component, target)
    assert set(FOREIGN) == set(ALLOWED) - FAMILIES


def test_every_import_of_the_package_is_allowed(cases):
    sources, packages = read_package()
    assert "mask" in sources
    cases("imports", sum(map(len, graph(sources, packages).values())))
    assert components_without_a_rule(sources) == []
    assert forbidden_imports(sources, packages) == []
    assert cycle(sources, packages) == []
    assert stale_exceptions(sources, packages) == []


FORBIDDEN = {
    "upward": ("mask", "from nbattn import geometry"),
    "upward_plain_import": ("mask", "import nbattn.geometry"),
    "upward_relative": ("planner.plan", "from ..backends.tiled import run"),
    "upward_for_types": (
        "geometry",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nbattn.ops",
    ),
    "upward_in_a_function": ("geometry", "def f():\n    from nbattn.planner import plan"),
    "upward_in_another_method": (
        "mask",
        "class Mask:\n    def area(self):\n        import nbattn.geometry",
    ),
    "upward_in_a_class_body": ("mask", "class Mask:\n    import nbattn.geometry"),
    "upward_by_string": ("geometry", "import importlib\nimportlib.import_module('nbattn.ops')"),
    "errors_import_anything": ("errors", "from nbattn.axis import Axis"),
    "backend_to_backend": ("backends.tiled", "from nbattn.backends.dense.run import run"),
    "family_to_family_relative": ("backends.tiled.run", "from ..dense import run"),
    "family_to_planner": ("backends.tiled.run", "from nbattn.planner.plan import Plan"),
    "family_to_reference": ("backends.tiled.run", "from nbattn.backends.dense import reference"),
    "table_to_family": ("backends.families", "from nbattn.backends.dense import reference"),
    "operator_to_reference": (
        "ops",
        "def f():\n    from nbattn.backends.dense.reference import attend",
    ),
    "package_itself": ("planner.plan", "from nbattn import Mask"),
    "eager_package": ("", "from nbattn.functional import attention"),
    "mask_loads_numpy": ("mask", "import numpy as np"),
    "geometry_loads_torch": ("geometry", "import torch"),
    "meaning_calls_torch": ("backends.flash.meaning", "def f():\n    import torch"),
    "optional_package": (
        "backends.cuda",
        "try:\n    import cupy\nexcept ImportError:\n    cupy = None",
    ),
    "triton_beside_its_kernels": ("backends.cuda.run", "import triton"),
    "triton_where_plans_are_made": ("backends.triton.kernels.numbers", "import triton"),
}
PERMITTED = {
    "downward": ("geometry", "from nbattn.mask import Mask\nimport numpy as np\nimport math"),
    "exception": (
        "mask",
        "class Mask:\n    def draw(self):\n        from nbattn.pictures import text",
    ),
    "programs": ("backends.tiled.run", "from nbattn.program import program\nimport torch"),
    "optional_when_called": ("backends.cuda", "def f():\n    import cupy"),
    "triton_in_its_kernels": ("backends.triton.kernels.forward", "import triton"),
    "execute_runs_families": ("execute", "from nbattn.backends import families"),
    "definition": ("functional", "from nbattn.backends.dense import reference"),
    "lazy_package": ("", "def __getattr__(name):\n    from nbattn.functional import attention"),
    "foreign_types": (
        "mask",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy",
    ),
}
MODULES = """
    errors axis mask geometry pictures pictures.text ops functional execute program program.program
    planner planner.plan planner.cost_table backends backends.families backends.cuda
    backends.cuda.run backends.dense backends.dense.run backends.dense.reference
    backends.flash.meaning backends.tiled backends.tiled.run backends.triton.kernels.forward
    backends.triton.kernels.numbers
"""
PACKAGES = {"", "program", "planner", "backends", "backends.tiled", "backends.dense"}


def sample(module: str, source: str) -> Sources:
    return {**dict.fromkeys(["", *MODULES.split()], ""), module: source}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_forbidden_import_is_found(name):
    assert len(forbidden_imports(sample(*FORBIDDEN[name]), PACKAGES)) == 1


@pytest.mark.parametrize("name", PERMITTED)
def test_allowed_import_is_accepted(name):
    assert forbidden_imports(sample(*PERMITTED[name]), PACKAGES) == []


def test_unknown_component_import_cycle_and_unused_exception_are_found():
    assert components_without_a_rule(sample("shed", "")) == ["shed"]
    circle = {
        **sample("planner.plan", "from nbattn.planner import cost_table"),
        "planner.cost_table": "from .plan import Plan",
    }
    assert set(cycle(circle, PACKAGES)) == {"planner.plan", "planner.cost_table"}
    assert stale_exceptions(sample("mask", "class Mask:\n    def draw(self): ..."), PACKAGES)


# What follows runs in fresh interpreters, outside the checkout.

OPTIONAL = [
    "cupy",
    "flash_attn",
    "natten",
    "pydantic",
    "rich",
    "yaml",
    "matplotlib",
    "transformers",
]


def fresh(code: str, tmp_path: Path, *, has_torch: bool = False) -> object:
    """What the code leaves in `result`, from an interpreter of its own, which may have loaded torch
    already.
    """
    words = ["-c", f"{STRICT}{code}\nimport json; print(json.dumps(result))"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if has_torch:
        run = torch_forks.run(words, env, tmp_path)
    else:
        run = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "statement",
    [
        "import nbattn",
        "import nbattn.mask",
        "from nbattn import Axis, Mask",
        "import nbattn.errors",
    ],
)
def test_masks_load_neither_torch_nor_numpy(statement, tmp_path):
    heavy = ["torch", "numpy", *OPTIONAL]
    code = f"import sys\n{statement}\nresult = [m for m in {heavy} if m in sys.modules]"
    assert fresh(code, tmp_path) == []


def test_parts_of_axes_load_no_torch(tmp_path):
    code = f"""
import sys, importlib
for name in {PARTS}:
    importlib.import_module(f"nbattn.{{name}}")
result = ["torch" in sys.modules, dir(importlib.import_module("nbattn.distributed"))]
"""
    assert fresh(code, tmp_path) == [False, ["Halo", "attention", "halo"]]


def test_a_submodule_is_loaded_when_it_is_named(tmp_path):
    code = """
import sys, nbattn
names = dir(nbattn)
before = "nbattn.program" in sys.modules
kind = nbattn.program.device.named("sm_90").kind
result = [before, kind, dir(nbattn) == names, dir(nbattn.integrations), "torch" in sys.modules]
"""
    assert fresh(code, tmp_path) == [
        False,
        "cuda",
        True,
        ["diffusers", "natten", "swin", "transformers"],
        False,
    ]


def test_attention_loads_torch_and_no_optional_package(tmp_path):
    code = f"""
import sys, nbattn
before = "torch" in sys.modules
nbattn.attention
result = [before, "torch" in sys.modules, [m for m in {OPTIONAL} if m in sys.modules]]
"""
    assert fresh(code, tmp_path) == [False, True, []]


def test_attention_works_where_optional_packages_are_absent(tmp_path):
    code = f"""
import sys
for name in {[*OPTIONAL, "triton"]}:
    sys.modules[name] = None
import torch, nbattn
query = torch.randn(1, 5, 2, 4)
result = list(nbattn.attention(query, query, query, nbattn.Mask.sliding_window(1)).shape)
"""
    assert fresh(code, tmp_path, has_torch=True) == [1, 5, 2, 4]


@pytest.mark.parametrize("statement", ["import nbattn", "import torch, nbattn"])
def test_import_writes_no_file_and_adds_no_handler(statement, tmp_path):
    *foreign, ours = statement.removeprefix("import ").split(", ")
    code = f"""
import logging, os, sys
sys.dont_write_bytecode = True
for name in {foreign}:
    __import__(name)
writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
result = []

def watch(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & writes:
        result.append(str(args[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen"):
        result.append(event)

loggers = lambda: [logging.getLogger(), *logging.root.manager.loggerDict.values()]
handlers = lambda: [h for l in loggers() for h in getattr(l, "handlers", [])]
before = handlers()
sys.addaudithook(watch)
import {ours}
if {foreign}:
    nbattn.attention
result += [repr(h) for h in handlers() if h not in before and type(h) is not logging.NullHandler]
"""
    assert fresh(code, tmp_path, has_torch="torch" in foreign) == []
    assert list(tmp_path.iterdir()) == []


def test_plans_for_triton_load_none_of_its_kernels(tmp_path):
    code = """
import sys
sys.modules["triton"] = None
import nbattn
mask = nbattn.Mask.neighborhood((7, 7))
plan = nbattn.plan(mask, (1, 64, 64, 2, 64), device="gfx942", training=True)
plan.verify()
kernels = "nbattn.backends.triton.kernels."
result = [plan.chosen.name, [m for m in sys.modules if m.startswith(kernels)]]
"""
    expected = ["triton/window", ["nbattn.backends.triton.kernels.numbers"]]
    assert fresh(code, tmp_path, has_torch=True) == expected


def test_importing_attention_does_little_beyond_torch(tmp_path):
    """Counted in modules and in lines of Python, the import system's own included."""
    code = f"""
import sys
sys.path.append({str(ROOT / "tests" / "instruments")!r})
import torch.utils.flop_counter  # which brings triton, where torch is built with it
from work import lines
before = set(sys.modules)

def load():
    import nbattn
    nbattn.attention

took = lines(load)
result = [took, sorted(set(sys.modules) - before)]
"""
    took, loaded = fresh(code, tmp_path, has_torch=True)
    packages = {module.split(".")[0] for module in loaded}
    assert packages - sys.stdlib_module_names <= {"nbattn", "numpy", "torch"}
    assert len(loaded) <= 90
    assert took <= 200_000
