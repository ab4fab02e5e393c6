"""Tests that a new kernel family needs only its folder and one row: the small family made here is
planned, refused with reasons, run, listed by doctor and shown by explain().
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from own_warnings import STRICT

import nbattn
from nbattn.backends import families
from nbattn.errors import InputError
from nbattn.program.device import DEVICES

PACKAGE = Path(nbattn.__file__).parent

# The family "mean": with one key head it computes full masks by plain torch, on CPUs.
FOLDER = {
    "__init__.py": '"""The family of full attention in plain torch."""\n',
    "meaning.py": '''
"""What it supports, and what a call computes."""
import math
from dataclasses import dataclass
import numpy as np
from nbattn.program.blocks import blocks_of_groups
from nbattn.program.limits import Limits

MEAN = Limits(name="mean", kinds=("cpu",), softcap=False, key_range=False, lse=False)


@dataclass(frozen=True, slots=True)
class Everything:
    """Every query attends to every key."""

    def key_runs(self, number, queries, keys):
        counts = np.zeros((queries, 2), dtype=np.int64)
        counts[:, 1] = keys
        return np.zeros_like(counts), counts, 1

    def allowed(self, queries, keys):
        return np.ones((math.prod(queries), math.prod(keys)), dtype=bool)

    def blocks(self, request, call, *, backward):
        return blocks_of_groups(call.query, call.key, full=True)

    def describe(self):
        return "all keys"
''',
    "costs.py": '''
"""What it costs: nothing but the products."""
from nbattn.program import costs


def of(request, useful):
    return costs.roofline(request, useful=useful, computed=useful, calls=1, rate=1e15)
''',
    "candidates.py": '''
"""What it offers: one call for full masks."""
from nbattn import geometry
from nbattn.backends.mean import costs
from nbattn.backends.mean.meaning import MEAN, Everything
from nbattn.program.candidate import Candidate, refused
from nbattn.program.limits import Reason, whole_axes
from nbattn.program.program import Call, Program, whole


def candidates(request, axes):
    reasons = MEAN.reasons(request.needs) + whole_axes(axes)
    if not all(axis.spec.is_full for axis in axes):
        reasons.append(Reason("mask", "computes full masks only"))
    if request.heads_per_key_head != 1:
        reasons.append(Reason("heads", "needs as many heads as key heads"))
    if reasons:
        return [refused("mean", "everything", *reasons)]
    call = Call(whole(request.query_space), whole(request.key_space), Everything())
    cost = costs.of(request, geometry.pairs(axes))
    return [Candidate("mean", "everything", (), Program((call,)), cost)]
''',
    "run.py": '''
"""Its calls on tensors."""
import torch
from nbattn.backends.inputs import repeated


def _attend(inputs):
    query, key, value = (t.flatten(1, -3).transpose(1, 2) for t in inputs[:3])
    weights = (query @ key.mT * inputs.scale).softmax(-1)
    out = (weights @ value).transpose(1, 2)
    return out.reshape(*inputs.query.shape[:-1], -1)


def forward(program, inputs, *, return_lse):
    with torch.no_grad():
        return _attend(inputs).contiguous(), None


def backward(program, inputs, out, lse, grad_out, grad_lse):
    return repeated(_attend, inputs, grad_out)
''',
}
ROW = """    Family(
        name="mean",
        backends=(Backend(name="mean", gives_lse_on=(), needs_lse_on=()),),
        strategies=("everything",),
    ),
)
"""
USE = """
import json, torch, nbattn
from nbattn import Axis, Mask, doctor
from nbattn.doctor import probe

shape = (2, 6, 5, 4, 8)
named = {"dtype": "float32", "device": "cpu"}
plan = nbattn.plan(Mask.full(2), shape, **named)
window = nbattn.plan(Mask(Axis(1, 1), Axis()), shape, **named)
try:
    nbattn.plan(Mask(Axis(1, 1), Axis()), shape, **named, backend="mean", softcap=5.0)
    refusal = ""
except nbattn.BackendError as error:
    refusal = str(error)
query = torch.randn(shape, requires_grad=True)
key, value = torch.randn(2, *shape)
results = {}
for backend in ("auto", "reference"):
    out = nbattn.attention(query, key, value, Mask.full(2), backend=backend)
    (grad,) = torch.autograd.grad(out.square().sum(), query)
    results[backend] = out.detach(), grad
errors = [float((a - b).abs().max()) for a, b in zip(*results.values())]
tried = {}
for name, part in probe._parts([], True):  # in the doctor's second process, which loads torch again
    if name in ("torch", "mean on cpu"):
        tried[name] = part()
backends = {b["name"]: b for b in doctor._backends(tried)}
print(json.dumps({
    "chosen": plan.chosen.name,
    "proved": plan.verify() and bool(plan.support().all()),
    "blocks": len(list(plan.schedule())),
    "explained": plan.explain(),
    "refused": window.explain(),
    "refusal": refusal,
    "asked": nbattn.plan(Mask.full(2), shape, **named, require=("everything",)).chosen.name,
    "errors": errors,
    "doctor": backends["mean"],
}))
"""


@pytest.fixture(scope="module")
def results_with_the_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the package with the family gives."""
    root = tmp_path_factory.mktemp("family")
    shutil.copytree(PACKAGE, root / "nbattn", ignore=shutil.ignore_patterns("__pycache__"))
    folder = root / "nbattn" / "backends" / "mean"
    folder.mkdir()
    for name, text in FOLDER.items():
        (folder / name).write_text(text.lstrip())
    table = root / "nbattn" / "backends" / "families.py"
    text = table.read_text()
    end = text.index("\n)\n", text.index("FAMILIES: tuple[Family, ...] = ("))
    table.write_text(text[: end + 1] + ROW + text[end + 3 :])
    run = subprocess.run(
        [sys.executable, "-c", STRICT + USE],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_new_family_is_planned_and_proved(results_with_the_family: dict[str, Any]) -> None:
    assert (
        results_with_the_family["chosen"] == results_with_the_family["asked"] == "mean/everything"
    )
    assert results_with_the_family["proved"]
    assert results_with_the_family["blocks"] == 1


def test_a_new_family_runs_forward_and_backward(results_with_the_family: dict[str, Any]) -> None:
    assert max(results_with_the_family["errors"]) < 1e-4


def test_a_new_family_is_refused_with_all_its_reasons(
    results_with_the_family: dict[str, Any],
) -> None:
    assert "mean/everything: has no softcap" in results_with_the_family["refusal"]
    assert "mean/everything: computes full masks only" in results_with_the_family["refusal"]
    (reason,) = [
        one
        for one in results_with_the_family["refused"].splitlines()
        if one.split()[:2] == ["refused", "mean"]
    ]
    assert reason.endswith("computes full masks only")


def test_explain_and_doctor_show_a_new_family(results_with_the_family: dict[str, Any]) -> None:
    assert results_with_the_family["explained"].startswith("plan    mean/everything: estimated ")
    assert not results_with_the_family["doctor"]["usable"]  # doctor tries a window
    assert results_with_the_family["doctor"]["reason"] == "computes full masks only"


# The table itself.


def test_names_are_unique_and_every_module_is_there() -> None:
    names = [row.name for family in families.FAMILIES for row in family.backends]
    assert len(names) == len({*names})
    assert len(families.BACKENDS) == len({*families.BACKENDS})
    assert families.BACKENDS[0] == families.AUTO
    for family in families.FAMILIES:
        assert family.folder == f"nbattn.backends.{family.name}"
        for row in family.backends:
            runner = families.runner(row.name)
            assert callable(runner.attend if row.name == "reference" else runner.forward)
            for provider in row.providers:
                assert families.runner(f"{row.name}:{provider}") is runner


def test_every_family_has_its_four_files() -> None:
    for family in families.FAMILIES:
        names = {path.stem for path in (PACKAGE / "backends" / family.name).glob("*.py")}
        assert {"meaning", "candidates", "costs", "run"} <= names


def test_packages_are_those_that_families_need() -> None:
    assert set(families.INSTALL) <= set(families.PACKAGES)
    assert families.packages_on("cpu") == ("c++",)
    assert families.packages_on("xpu") == ("triton",)
    assert {"cupy", "triton"} < set(families.packages_on("cuda"))
    assert families.packages_on("mps") == ()
    for kind in ("cpu", "cuda", "xpu", "mps"):
        assert set(families.installed(kind)) <= set(families.packages_on(kind))
    assert {*families.packages_on("cpu"), *families.packages_on("cuda")} == set(families.PACKAGES)
    assert "torch" not in families.PACKAGES


def test_triton_works_where_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from nbattn.backends.triton import launch

    for problem, working in ((None, True), ("Triton is not installed", False)):
        monkeypatch.setattr(launch, "missing", lambda problem=problem: problem)
        for kind in ("cuda", "xpu"):
            assert ("triton" in families.installed(kind)) == working
        assert "triton" not in families.installed("cpu")
        assert families.is_missing("triton") != working
    assert families.install("triton") == 'pip install "triton>=3.6"'


def test_what_is_assumed_of_devices_is_a_package_of_theirs() -> None:
    for info in DEVICES.values():
        assert set(info.assumed) <= set(families.packages_on(info.kind))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("magic", (), ()),
            "backend='magic' is not known: one of auto, reference, sdpa, tiled, flash, ",
        ),
        (("auto", ("crop",), ()), "require names 'crop', which is neither a strategy (dense, "),
        (("auto", (), ("crop",)), "forbid names 'crop', which is neither a strategy (dense, "),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(names: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        families.check_names(*names)
    assert error.value.problem.startswith(message)
