"""Tests that test files mirror modules: each module has its file, and each file names a module.

`nbattn/a/b.py` has `tests/a/test_b.py`, and may have `tests/a/test_b_*.py` besides; `__init__.py`
has `test_init.py`, where it holds more than a docstring. What has no file of its own is in
`TESTED_IN`, with the file that tests it. `tests/whole/` tests what no single module does alone.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {"whole", "gpu", "emulator", "instruments"}
TESTED_IN = {
    "__init__": "whole/test_imports",
    "__main__": "cli/test_init",
    "backends/calls": "backends/flash/test_run",
    "backends/cuda/costs": "backends/cuda/test_candidates",
    "backends/dense/costs": "whole/test_golden_plans",
    "backends/flash/costs": "backends/flash/test_candidates",
    "backends/flex/costs": "backends/flex/test_candidates",
    "backends/natten/costs": "backends/natten/test_candidates",
    "backends/logsumexp": "whole/test_values",
    "backends/triton/kernels/delta": "backends/triton/kernels/test_forward",
    "backends/triton/kernels/grad_extra": "backends/triton/kernels/test_forward",
    "backends/triton/kernels/grad_key": "backends/triton/kernels/test_forward",
    "backends/triton/kernels/grad_query": "backends/triton/kernels/test_forward",
    "backends/triton/kernels/grad_table": "backends/triton/kernels/test_forward",
    "backends/triton/kernels/numbers": "backends/triton/kernels/test_forward",
    "backends/tiled/added": "backends/tiled/test_run",
    "backends/tiled/candidates": "planner/test_planner",
    "backends/tiled/costs": "planner/test_planner",
    "backends/tiled/meaning": "planner/test_proof",
    "backends/tiled/schedule": "backends/tiled/test_run",
    "cache": "planner/test_cost_table",
    "circles": "whole/test_fixes",
    "cli/arguments": "cli/test_init",
    "cli/bench_chart": "cli/test_bench",
    "cli/model_chart": "cli/test_plan_model",
    "cli/picture_files": "cli/test_mask",
    "cli/values": "cli/test_plan",
    "config/schema_texts": "cli/test_schema",
    "demo/pictures": "demo/test_denoise",
    "demo/report": "demo/test_digits",
    "demo/trial": "demo/test_denoise",
    "config/notebook": "pictures/test_notebook",
    "distributed/__init__": "test_lazy",
    "distributed/given": "whole/test_fixes",
    "distributed/known_plans": "distributed/test_sharded",
    "distributed/tracing": "distributed/test_sharded",
    "distributed/one_rank": "distributed/test_sharded",
    "distributed/traffic": "distributed/test_halos",
    "doctor/probe": "doctor/test_init",
    "export/graph_steps": "export/test_standard_form",
    "fixes/axis_names": "whole/test_fixes",
    "fixes/code": "config/test_notation",
    "fixes/signatures": "whole/test_fixes",
    "fixes/mask_names": "whole/test_fixes",
    "fixes/masks": "whole/test_fixes",
    "integrations/__init__": "test_lazy",
    "integrations/natten/__init__": "integrations/natten/test_install",
    "integrations/natten/context": "integrations/natten/test_install",
    "integrations/natten/parameters": "integrations/natten/test_fused",
    "joining": "test_functional",
    "kernels/check": "doctor/test_init",
    "kernels/layout": "kernels/test_launch",
    "kernels/store": "kernels/test_cubins",
    "kernels/variant": "kernels/test_nvrtc",
    "pictures/cells": "pictures/test_matrix",
    "pictures/queries": "pictures/test_plot",
    "pictures/repeats": "pictures/test_matrix",
    "pictures/signs": "pictures/test_text",
    "pictures/small_svg": "pictures/test_notebook",
    "pictures/style": "pictures/test_plot",
    "nn/options": "nn/test_inputs",
    "mistaken_places": "whole/test_fixes",
    "mistaken_plans": "whole/test_fixes",
    "mistaken_windows": "whole/test_fixes",
    "mistaken_words": "whole/test_fixes",
    "mistaken_masks": "whole/test_fixes",
    "planner/gpus": "planner/test_devices",
    "plan_runs": "test_functional",
    "program/__init__": "test_lazy",
    "program/band_pieces": "backends/flash/test_candidates",
    "program/blocks": "planner/test_plan",
    "program/candidate": "planner/test_planner",
    "program/costs": "planner/test_planner",
    "published/__init__": "published/test_planning",
    "rows": "test_geometry",
    "shapes": "test_arguments",
    "symbolic": "whole/test_compiled_masks",
    "timing": "cli/test_tune",
    "version": "planner/test_cost_table",
}


def stem_of(module: str) -> str:
    """What follows `test_` in the name of a module's file."""
    return module.rpartition("/")[2].strip("_")


def modules() -> set[str]:
    """Every module that is more than a docstring, as a path without its end."""
    package = ROOT / "nbattn"
    paths = [path for path in package.rglob("*.py") if len(ast.parse(path.read_text()).body) > 1]
    return {path.relative_to(package).with_suffix("").as_posix() for path in paths}


def files() -> set[str]:
    """Every file of tests, as a path without its end."""
    tests = ROOT / "tests"
    return {path.relative_to(tests).with_suffix("").as_posix() for path in tests.rglob("test_*.py")}


def owners(file: str, known: set[str]) -> set[str]:
    """The modules that a file of tests names: its own, or the start of its name."""
    folder, _, name = file.rpartition("/")
    stem = name.removeprefix("test_")
    here = {module for module in known if module.rpartition("/")[0] == folder}
    return {one for one in here if stem == stem_of(one) or stem.startswith(f"{stem_of(one)}_")}


def own_file(module: str) -> str:
    folder = module.rpartition("/")[0]
    return f"{folder}/test_{stem_of(module)}" if folder else f"test_{stem_of(module)}"


def test_every_module_has_a_file_or_is_in_the_table() -> None:
    missing = {module for module in modules() if own_file(module) not in files()}
    assert missing == set(TESTED_IN)
    assert set(TESTED_IN.values()) <= files()


def test_every_file_names_a_module() -> None:
    known = modules()
    own = {file for file in files() if file.split("/")[0] not in ELSEWHERE}
    assert len(own) > 60
    assert not [file for file in sorted(own) if not owners(file, known)]


def test_a_file_that_names_no_module_is_found() -> None:
    known = {"mask", "cli/__init__", "planner/plan"}
    assert owners("test_mask", known) == owners("test_mask_converters", known) == {"mask"}
    assert owners("cli/test_init", known) == {"cli/__init__"}
    assert owners("planner/test_plan", known) == {"planner/plan"}
    for file in ("test_masks", "cli/test_mask", "planner/test_planner", "test_init"):
        assert not owners(file, known)
