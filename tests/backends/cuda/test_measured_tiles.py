"""Tests of measured tiles: which one wins, which count, and that none changes what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cost_tables
import cuda_plans
import pytest
import torch
from emulator import build
from emulator.launcher import Launcher

import nbattn
from nbattn import Axis, Mask, bench
from nbattn.backends.cuda import measured_tiles
from nbattn.backends.cuda.tiles import Tiles
from nbattn.kernels import launch
from nbattn.planner import cost_table, devices, planner
from nbattn.planner.cost_table import Entry

folder = cost_tables.folder  # the fixture: a cache of its own for every test
MASK, SHAPE = Mask(Axis(3, 3, border="shift"), Axis(6, 6)), (1, 12, 24, 1, 64)
USUAL = {"dtype": "bfloat16", "training": True, "relative_bias": True}  # all kernels
GPU = cost_table.Fingerprint("sm_90", "H100", 0, torch.__version__, nbattn.__version__)


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_table, "fingerprint", lambda _name: GPU)


def plan(**named: Any) -> nbattn.Plan:
    return cuda_plans.planned(MASK, SHAPE, **{**USUAL, **named})


def tiles_of(planned: nbattn.Plan) -> dict[str, Tiles]:
    arguments = cuda_plans.arguments(planned)
    return {kernel: getattr(arguments, f) for kernel, f in measured_tiles.FIELDS.items()}


def ranked(kernel: str, planned: nbattn.Plan) -> list[Tiles]:
    request, arguments = planned.request, cuda_plans.arguments(planned)
    found = measured_tiles.ranked(kernel, "mma", request, request.axes(), arguments.build)
    return [one.tiles for one in found]


def write(folder: Path, times: Mapping[str, float], **changed: Any) -> None:
    key = cost_table.tile_key(plan().request)
    cost_tables.write(folder, Entry(replace(GPU, **changed), "2026-11-28", tiles={key: times}))


def slowest_first(planned: nbattn.Plan) -> dict[str, float]:
    """Times that reverse the order of the estimates."""
    return {
        measured_tiles.name(kernel, tiles): 1e-3 / (1 + place)
        for kernel in measured_tiles.FIELDS
        for place, tiles in enumerate(ranked(kernel, planned))
    }


def test_the_first_of_the_ranked_tiles_is_the_planners() -> None:
    planned = plan()
    assert {k: ranked(k, planned)[0] for k in measured_tiles.FIELDS} == tiles_of(planned)


def test_the_tile_measured_fastest_wins(folder: Path) -> None:
    before = plan()
    last = {kernel: ranked(kernel, before)[-1] for kernel in measured_tiles.FIELDS}
    assert all(last[kernel] != tiles for kernel, tiles in tiles_of(before).items())
    write(folder, slowest_first(before))
    after = plan()
    assert tiles_of(after) == last
    assert tiles_of(plan(training=False))["fwd"] == last["fwd"]
    assert after.verify()
    assert after.chosen.cost != before.chosen.cost
    assert after.chosen.cost.useful_pairs == before.chosen.cost.useful_pairs


def test_a_kernel_without_measured_tiles_keeps_its_own(folder: Path) -> None:
    before = plan()
    times = {n: s for n, s in slowest_first(before).items() if n.startswith("dq ")}
    write(folder, times)
    kept = tiles_of(plan())
    assert kept["dq"] == ranked("dq", before)[-1]
    assert {k: t for k, t in kept.items() if k != "dq"} == {
        k: t for k, t in tiles_of(before).items() if k != "dq"
    }


@pytest.mark.parametrize("changed", [{"model": "H200"}, {"torch": "1.0"}, {"device": "sm_80"}])
def test_a_table_of_another_device_does_not_count(folder: Path, changed: dict[str, str]) -> None:
    before = tiles_of(plan())
    write(folder, slowest_first(plan()), **changed)
    assert tiles_of(plan()) == before


@pytest.mark.parametrize("other", [{"dtype": "float16"}, {"softcap": 2.0}, {"extra_keys": 1}])
def test_tiles_of_another_request_do_not_count(folder: Path, other: dict[str, Any]) -> None:
    before = tiles_of(plan(**other))
    write(folder, slowest_first(plan()))
    assert tiles_of(plan(**other)) == before


def test_only_legal_tiles_count(folder: Path) -> None:
    """A name that no kernel is built for, of whatever time."""
    before = tiles_of(plan())
    huge = measured_tiles.name("fwd", Tiles((1, 64, 64), (1, 64, 64), 4, 2, 2))
    write(folder, {huge: 1e-9, "fwd": 1e-9, "": 1e-9, "dkdv 1x1x1/1x1x1 1w1b1s": 1e-9})
    assert tiles_of(plan()) == before


@pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
def test_measured_tiles_compute_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and gradients, in the emulator."""
    launcher, used = Launcher(), set[str]()
    load = launcher.launch
    monkeypatch.setattr(
        launcher, "launch", lambda v, *rest: (used.add(str(v.constants)), load(v, *rest))[1]
    )
    monkeypatch.setattr(devices, "device_info", lambda *_: cuda_plans.device("sm_90"))
    monkeypatch.setattr(launch, "launcher", lambda: launcher)
    torch.manual_seed(0)
    made = [torch.randn(SHAPE).half().requires_grad_() for _ in range(3)]
    made.append(torch.randn(1, 13, 25).requires_grad_())

    def results() -> list[torch.Tensor]:
        planner.forget()
        given = {"relative_bias": made[3], "backend": "cuda", "require": ("mma",)}
        out = nbattn.attention(*made[:3], MASK, **given)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), made)]

    before = results()
    variants = set(used)
    key = cost_table.tile_key(plan(dtype="float16").request)
    times = slowest_first(plan(dtype="float16"))
    cost_tables.write(folder, Entry(GPU, "2026-11-28", tiles={key: times}))
    after = results()
    assert used - variants, "the same tiles again"
    assert bench.disagreement(after, before) <= bench.TOLERANCE["float16"]


def test_tiles_of_warpgroups_are_measured_under_names_of_their_own(folder: Path) -> None:
    """And chosen by their times."""
    before = plan(relative_bias=False, require=("wgmma",))
    names: set[str] = set()
    for kernel, tiles in tiles_of(before).items():
        if tiles is None:
            continue
        request, build = before.request, cuda_plans.arguments(before).build
        found = [
            measured_tiles.name(kernel, one.tiles)
            for family in ("mma", "wgmma")
            for one in measured_tiles.ranked(kernel, family, request, request.axes(), build)
        ]
        assert len(found) == len(set(found)) > 10
        names |= set(found)
    slowest = {name: 1e-3 / (1 + place) for place, name in enumerate(sorted(names)[::-1])}
    key = cost_table.tile_key(before.request)
    cost_tables.write(folder, Entry(GPU, "2026-11-28", tiles={key: slowest}))
    planner.forget()
    after = tiles_of(plan(relative_bias=False, require=("wgmma",)))
    assert after["fwd"] != tiles_of(before)["fwd"]
    assert after["fwd"].instructions == "wgmma"
