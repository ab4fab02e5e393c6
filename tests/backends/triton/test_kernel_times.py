"""Tests of one kernel run alone: which launches are repeated, and what `nbattn tune` keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton_interpreter

import nbattn
from nbattn import Axis, Mask, bench, timing, tune
from nbattn.backends.inputs import Inputs
from nbattn.backends.triton import kernel_times, launch, measured_tiles
from nbattn.backends.triton.kernels.numbers import Variant
from nbattn.backends.triton.meaning import TritonArguments
from nbattn.planner import planner
from nbattn.program.device import DEVICES

pytestmark = pytest.mark.skipif(
    triton_interpreter.missing() is not None, reason=str(triton_interpreter.missing())
)
MASK, SHAPE, EXTRA = Mask(Axis(4, 4, border="shift")), (1, 40, 2, 16), 3


class Counting(triton_interpreter.Launcher):
    """The interpreter; a tile of `wrong` rows computes something else."""

    wrong = 0

    def launch(
        self,
        kernel: str,
        grid: tuple[int, ...],
        arguments: Mapping[str, Any],
        variant: Variant,
        warps: int,
        stages: int,
    ) -> None:
        super().launch(kernel, grid, arguments, variant, warps, stages)
        if kernel == "forward" and variant.row_count == self.wrong:
            arguments["out"].add_(1)

    @property
    def names(self) -> list[str]:
        """The kernels that were launched."""
        return [kernel for kernel, *_ in self.launched]


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """CPU tensors on a device whose kernels the interpreter runs."""
    counting = Counting()
    monkeypatch.setattr(launch, "launcher", lambda: counting)
    monkeypatch.setattr(bench, "why_not_here", lambda _request: "")
    planner.forget()
    yield counting
    planner.forget()


def plan(**named: Any) -> nbattn.Plan:
    device = replace(DEVICES["gfx942"], providers=("triton",))
    return nbattn.plan(
        MASK, SHAPE, **{"dtype": "float32", "device": device, "backend": "triton", **named}
    )


def arguments(planned: nbattn.Plan) -> TritonArguments:
    assert planned.chosen.program is not None
    (call,) = planned.chosen.program.calls
    assert isinstance(call.arguments, TritonArguments)
    return call.arguments


def inputs() -> tuple[Inputs, torch.Tensor]:
    torch.manual_seed(0)
    *given, grad = (torch.randn(SHAPE) for _ in range(4))
    extra = (torch.randn(1, EXTRA, 2, 16) for _ in range(2))
    named = dict(zip(("extra_key", "extra_value"), extra, strict=True))
    return Inputs(*given, **named, relative_bias=torch.randn(2, 17), scale=0.25), grad


EVERYTHING = {"training": True, "relative_bias": True, "extra_keys": EXTRA}


@pytest.mark.parametrize(
    ("kernel", "function"),
    [
        ("fwd", "forward"),
        ("dq", "grad_query"),
        ("dkdv", "grad_key"),
        ("dextra", "grad_extra"),
        ("dbias", "grad_table"),
    ],
)
def test_one_kernel_is_launched_alone(launcher: Counting, kernel: str, function: str) -> None:
    planned = plan(**EVERYTHING)
    own = getattr(arguments(planned), measured_tiles.FIELDS[kernel])
    assert planned.chosen.program is not None
    ((_, attempt),) = kernel_times.kernels(planned.chosen.program, kernel, [own], *inputs())
    ran = attempt()
    assert len(ran.results) == (1 if kernel in ("dq", "dbias") else 2)
    assert all(result.isfinite().all() for result in ran.results)
    launcher.launched.clear()
    ran.run()
    assert launcher.names == [function]


def fake() -> timing.Clock:
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
    planned, effort = plan(**EVERYTHING), bench.Effort(clock=fake(), rounds=1)
    found = tune.tiles(planned, effort=effort)
    request, build_of = planned.request, arguments(planned).build
    for kernel in measured_tiles.FIELDS:
        ranked = measured_tiles.ranked(kernel, request, request.axes(), build_of)
        names = [measured_tiles.name(kernel, one.tiles) for one in ranked[: tune.TILES]]
        assert len(names) > (kernel != "dextra"), "few extra keys have one tile"
        assert {name for name in found if name.startswith(f"{kernel} ")} >= {*names}
    launcher.launched.clear()
    assert tune.tiles(planned, effort=effort, known=found) == found
    assert not launcher.launched, "what is known is not measured again"
    better = tune.retiled(planned, found)
    assert arguments(better).forward != arguments(planned).forward
    assert tune.retiled(planned, {}) is planned


@pytest.mark.usefixtures("on_cpu")
def test_a_tile_with_other_results_has_no_time(launcher: Counting) -> None:
    planned, effort = plan(), bench.Effort(clock=fake(), rounds=1)
    request, given = planned.request, arguments(planned)
    ranked = measured_tiles.ranked("fwd", request, request.axes(), given.build)[: tune.TILES]
    wrong = next(one.tiles for one in ranked if one.tiles.row_count != given.forward.row_count)
    launcher.wrong = wrong.row_count
    found = tune.tiles(planned, effort=effort)
    assert measured_tiles.name("fwd", given.forward) in found
    assert measured_tiles.name("fwd", wrong) not in found


def test_packed_grids_have_no_tiles_to_measure(launcher: Counting) -> None:
    grids = [(4, 5), (3, 3)]
    planned = nbattn.plan(
        Mask.neighborhood((3, 3)), (29, 2, 16), grids=grids, dtype="float32",
        device=replace(DEVICES["gfx942"], providers=("triton",)), backend="triton",
    )  # fmt: skip
    assert tune.tiles(planned, effort=bench.Effort(clock=fake(), rounds=1)) == {}
    assert not launcher.launched
