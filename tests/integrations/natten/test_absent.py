"""Tests of NATTEN's modules and names that the drop-in refuses."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import pytest

from nbattn.integrations import natten
from nbattn.integrations.natten import fused
from nbattn.integrations.natten.absent import AbsentError


@pytest.fixture(autouse=True)
def natten_uninstalled_after() -> Iterator[None]:
    yield
    natten.uninstall()


# Generation, statement, what the problem begins with, and the fix.
REFUSED = (
    (
        "0.21",
        "from natten.backends.configs.cutlass import get_all_forward_configs",
        "natten.backends chooses",
        "backend=None: nbattn chooses.",
    ),
    (
        "0.17",
        "from natten.libnatten import compute_delta",
        "natten.libnatten has NATTEN's compiled kernels.",
        "import natten.functional.",
    ),
    (
        "0.21",
        "from natten._libnatten import compute_delta",
        "natten._libnatten has NATTEN's compiled kernels.",
        "import natten.functional.",
    ),
    (
        "0.21",
        "import natten.utils.varlen",
        "natten.utils.varlen describes packed sequences.",
        fused.PER_SEQUENCE,
    ),
    (
        "0.17",
        "from natten.functional import FusedNeighborhoodAttention3D",
        "natten.functional.FusedNeighborhoodAttention3D is not in nbattn's natten, generation ",
        "one of natten.functional.__all__.",
    ),
    (
        "0.21",
        "from natten import VarlenLayout",
        "natten.VarlenLayout is not in",
        "one of natten.__all__.",
    ),
    ("0.21", "import natten.profiler.ops", "natten.profiler is not in", "one of natten.__all__."),
    ("0.14", "from natten.functional import na2d", "natten.functional.na2d is not in", "0.17"),
    ("0.14", "import natten.context", "natten.context is not in", "0.17"),
    ("0.17", "from natten.functional import attention", "natten.functional.attention is", "0.21"),
    ("0.21", "import natten.natten2d", "natten.natten2d is not in", "0.17"),
)


@pytest.mark.parametrize(("generation", "statement", "problem", "fix"), REFUSED)
def test_message_of_an_absent_name(generation: str, statement: str, problem: str, fix: str) -> None:
    natten.install(replace=True, generation=generation)
    with pytest.raises(ImportError) as error:
        exec(statement, {})
    assert isinstance(error.value, AbsentError)
    assert error.value.problem.startswith(problem)
    if fix.startswith("0."):
        fix = f'nbattn.integrations.natten.install(generation="{fix}") before natten is imported.'
    assert error.value.fix == fix


def test_code_that_asks_for_a_name_gets_an_answer() -> None:
    top = natten.install(replace=True, generation="0.14")
    assert not hasattr(top, "context")
    assert not hasattr(top.functional, "na2d")
    assert getattr(top.functional, "attention", None) is None


def test_without_the_drop_in_other_imports_are_as_before() -> None:
    before = list(sys.meta_path)
    natten.install(replace=True)
    natten.install(replace=True, generation="0.17")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nattenuated'"):
        importlib.import_module("nattenuated")
    natten.uninstall()
    assert sys.meta_path == before
