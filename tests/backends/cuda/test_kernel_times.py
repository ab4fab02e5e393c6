"""Tests of one kernel run alone: which launches are repeated, and what `nbattn tune` keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cuda_plans
import pytest
import torch
from emulator import build
from emulator.launcher import Launcher

import nbattn
from nbattn import Axis, Mask, bench, timing, tune
from nbattn.backends.cuda import kernel_times, measured_tiles
from nbattn.backends.inputs import Inputs
from nbattn.kernels import launch
from nbattn.planner import cost_table, planner
from nbattn.planner.cost_table import Entry

pytestmark = pytest.mark.skipif(build.missing() is not None, reason=str(build.missing()))
MASK, SHAPE = Mask(Axis(4, 4, border="shift")), (1, 70, 2, 16)


class Counting(Launcher):
    """The emulator; `names` are the kernels that were launched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.wrong = ""  # a tile that computes something else

    def launch(
        self, variant: Any, blocks: int, tensors: Any, numbers: bytes, maps: Any = ()
    ) -> None:
        self.names.append(variant.entry)
        super().launch(variant, blocks, tensors, numbers, maps)
        if self.wrong and self.wrong in str(variant.constants) and "out" in tensors:
            tensors["out"].add_(1)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """CPU tensors on a device whose kernels the emulator runs."""
    counting = Counting()
    monkeypatch.setattr(launch, "launcher", lambda: counting)
    monkeypatch.setattr(bench, "why_not_here", lambda _request: "")
    planner.forget()
    yield counting
    planner.forget()


def plan(**named: Any) -> nbattn.Plan:
    device = replace(cuda_plans.device("sm_90"), kind="cuda")
    return nbattn.plan(
        MASK, SHAPE, **{"dtype": "bfloat16", "device": device, "backend": "cuda", **named}
    )


def inputs() -> tuple[Inputs, torch.Tensor]:
    torch.manual_seed(0)
    *given, grad = (torch.randn(SHAPE).bfloat16() for _ in range(4))
    return Inputs(*given, relative_bias=torch.randn(2, 17), scale=0.25), grad


@pytest.mark.parametrize(
    ("kernel", "entry"),
    [
        ("fwd", "nb_fwd_mma"),
        ("dq", "nb_dq_mma"),
        ("dkdv", "nb_dkdv_mma"),
        ("dbias", "nb_dbias_simt"),
    ],
)
def test_one_kernel_is_launched_alone(launcher: Counting, kernel: str, entry: str) -> None:
    planned = plan(training=True, relative_bias=True)
    own = getattr(cuda_plans.arguments(planned), measured_tiles.FIELDS[kernel])
    ((_, attempt),) = kernel_times.kernels(planned.chosen.program, kernel, [own], *inputs())
    ran = attempt()
    assert all(result.isfinite().all() for result in ran.results)
    launcher.names.clear()
    ran.run()
    assert launcher.names == [entry]


def fake(launcher: Counting) -> timing.Clock:
    """Every kernel takes its own time: the later it is first timed, the less."""
    known: dict[int, float] = {}
    alive: list[object] = []

    def time(run: timing.Action) -> float:
        if id(run) not in known:
            alive.append(run)
            known[id(run)] = 100.0 - len(known)
        return known[id(run)]

    return timing.Clock("fake", time, min, min)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of requests for a GPU lie on the CPU."""
    of = bench.Tensors.of
    cpu = nbattn.plan(Mask.full(), (1, 4, 1, 16), device="cpu").request.device
    monkeypatch.setattr(bench.Tensors, "of", lambda request: of(replace(request, device=cpu)))


@pytest.mark.usefixtures("on_cpu")
def test_tune_measures_the_ranked_tiles_of_every_kernel(
    launcher: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "TILES", 2)
    planned, effort = (
        plan(training=True, require=("mma",), relative_bias=True),
        bench.Effort(clock=fake(launcher), rounds=1),
    )
    found = tune.tiles(planned, effort=effort)
    request, build_of = planned.request, cuda_plans.arguments(planned).build
    for kernel in measured_tiles.FIELDS:
        ranked = measured_tiles.ranked(kernel, "mma", request, request.axes(), build_of)
        names = [measured_tiles.name(kernel, one.tiles) for one in ranked[: tune.TILES]]
        assert len(names) > 1
        assert {name for name in found if name.startswith(f"{kernel} ")} >= {*names}
    launcher.names.clear()
    assert tune.tiles(planned, effort=effort, known=found) == found
    assert not launcher.names, "what is known is not measured again"
    better = tune.retiled(planned, found)
    assert cuda_plans.arguments(better).forward != cuda_plans.arguments(planned).forward
    assert tune.retiled(planned, {}) is planned


@pytest.mark.usefixtures("on_cpu")
def test_a_tile_with_other_results_has_no_time(launcher: Counting) -> None:
    planned, effort = plan(require=("mma",)), bench.Effort(clock=fake(launcher), rounds=1)
    request, arguments = planned.request, cuda_plans.arguments(planned)
    ranked = measured_tiles.ranked("fwd", "mma", request, request.axes(), arguments.build)[:3]
    wrong = next(one.tiles for one in ranked if one.tiles.rows != arguments.forward.rows)
    launcher.wrong = f"'NB_QUERY_TILE_2', {wrong.rows[2]})"
    found = tune.tiles(planned, effort=effort)
    assert measured_tiles.name("fwd", arguments.forward) in found
    assert measured_tiles.name("fwd", wrong) not in found


def test_tables_keep_tiles_and_join_them() -> None:
    gpu = cost_table.Fingerprint("sm_90", "H100", 0, "2.13.0", "0.1.0")
    old = Entry(gpu, "2026-11-27", tiles={"{}": {"fwd a": 2.0, "fwd b": 1.0}})
    assert cost_table.decode(cost_table.encode((old,))) == (old,)
    new = Entry(gpu, "2026-11-28", tiles={"{}": {"fwd a": 3.0}, '{"a": 1}': {"dq c": 1.0}})
    (joined,) = tune.joined((old,), new)
    assert joined.tiles == {"{}": {"fwd a": 3.0, "fwd b": 1.0}, '{"a": 1}': {"dq c": 1.0}}
    without = Entry(gpu, "2026-11-27")
    assert "tiles" not in cost_table.encode((without,))
    assert cost_table.decode(cost_table.encode((without,))) == (without,)
