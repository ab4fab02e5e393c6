"""Tests of measuring for `nbattn bench`: what is measured, and what is skipped and why."""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch_only
from fake_bench import DINAT, SHAPE, fake, plan

from nbattn import Mask, Plan, bench, execute
from nbattn.bench import Effort, Tensors
from nbattn.planner import devices

torch_only = torch_only.torch_only  # a fixture: no native kernels

# Who is measured.


def test_every_candidate_runs_by_its_own_name() -> None:
    job = bench.measure("dinat", plan(), Effort(clock=fake(2, 4, 6, 8), rounds=1))
    assert job.timed == [
        ("sdpa/dense+fold", 2), ("tiled/tile", 4), ("sdpa/mask", 6), ("reference/dense", 8),
    ]  # fmt: skip
    assert job.regret == 1
    assert all(row.error is not None and row.error < 1e-5 for row in job.rows)


def test_every_candidate_runs_its_own_program(
    monkeypatch: pytest.MonkeyPatch, cases: Callable[[str, int], None]
) -> None:
    ran: list[object] = []
    forward = execute.forward

    def spy(plan: Plan, *rest: Any, **named: Any) -> Any:
        ran.append(plan.chosen)
        return forward(plan, *rest, **named)

    monkeypatch.setattr(execute, "forward", spy)
    masks = [Mask.full(2), Mask.causal(), DINAT, Mask.neighborhood((7, 7)), Mask.sliding_window(9)]
    for mask in masks:
        made = plan(mask, (1, *(28,) * mask.rank, 2, 32))
        for candidate in bench.candidates(made, Effort()):
            if candidate.backend == "reference":
                continue  # runs as plain torch
            Tensors.of(made.request).runner(made, candidate)()
            assert ran.pop() is candidate
            cases("bench: candidates by themselves", 1)


def test_a_backend_of_the_plan_does_not_hide_the_others() -> None:
    made = plan(backend="sdpa", require=("mask",))
    names = [candidate.name for candidate in bench.candidates(made, Effort())]
    assert names == ["sdpa/mask"]  # require= is the user's choice
    names = [candidate.name for candidate in bench.candidates(plan(backend="tiled"), Effort())]
    assert names[0] == "tiled/tile"
    assert set(names[1:]) == {"sdpa/dense+fold", "sdpa/mask", "reference/dense"}


def test_backends_limit_all_but_the_chosen_one() -> None:
    effort = Effort(backends=("tiled",))
    assert [c.name for c in bench.candidates(plan(), effort)] == ["sdpa/dense+fold", "tiled/tile"]
    effort = Effort(by_name=False)
    names = [c.name for c in bench.candidates(plan(), effort)]
    assert names == ["sdpa/dense+fold", "tiled/tile", "sdpa/mask"]


def test_training_plans_are_measured_forward_and_both_ways() -> None:
    forward, both = bench.passes(plan(training=True))
    assert (forward.request.training, both.request.training) == (False, True)
    assert len(list(bench.passes(plan()))) == 1
    flops = [bench.Job("", job_plan).useful_flops for job_plan in (forward, both)]
    assert flops == [2 * 2 * 28**2 * 49 * 64, 3.5 * flops[0]]


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "training": {"training": True},
    "bfloat16 training": {"training": True, "dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "float64": {"dtype": "float64"},
    "lse": {"return_lse": True},
    "lse and training": {"return_lse": True, "training": True},
    "grouped heads, own value size": {"key_shape": (1, 28, 28, 1, 32), "value_dim": 16},
    "packed": {"packed": True},
    "everything": {"softcap": 1.0, "sink": True, "key_range": True, "extra_keys": 3},
    "everything, training": {
        "softcap": 1.0, "sink": True, "key_range": True, "extra_keys": 3, "training": True,
    },
    "deterministic": {"deterministic": True},
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_candidates_agree_whatever_the_request_has(name: str) -> None:
    mask = Mask.neighborhood((5, 3))
    made = plan(mask, (2, 13, 9, 2, 32), **{**REQUESTS[name], **_keys(REQUESTS[name])})
    job = bench.measure(name, made, Effort(clock=fake(*range(2, 20)), rounds=1))
    assert not job.skipped
    assert [row.reason for row in job.rows] == [""] * len(job.rows)
    assert len(job.timed) >= 2


def _keys(named: dict[str, Any]) -> dict[str, Any]:
    return {"key_shape": (2, 13, 9, 1, 32)} if "key_shape" in named else {}


def test_training_has_the_gradients_of_all_that_is_trained() -> None:
    named = {"sink": True, "relative_bias": True, "extra_keys": 3, "training": True}
    made = plan(Mask.neighborhood((5, 3)), (2, 13, 9, 2, 32), **named)
    tensors = bench.Tensors.of(made.request)
    shapes = [tuple(t.shape) for t in tensors.runner(made, made.chosen)()]
    grid, extra = (2, 13, 9, 2, 32), (2, 3, 2, 32)
    assert shapes == [grid, grid, grid, grid, (2,), extra, extra, (2, 9, 5)]


def test_the_tensors_match_the_request() -> None:
    made = plan(key_shape=(1, 28, 28, 1, 32), packed=True, extra_keys=2, key_range=True).request
    tensors = bench.Tensors.of(made)
    assert tensors.query.shape == SHAPE
    assert not tensors.query.is_contiguous()
    one = tensors.query.untyped_storage().data_ptr()
    assert tensors.key.untyped_storage().data_ptr() == one
    assert tensors.value.untyped_storage().data_ptr() == one
    assert tensors.extras["extra_key"].shape == (1, 2, 1, 32)
    assert tensors.extras["key_range"].tolist() == [[[0, 25], [0, 25]]]
    assert torch.equal(bench.Tensors.of(made).value, tensors.value)


# Who is not, and why.


def test_a_wrong_mask_is_reported_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key too many in one row of 784."""
    run = Plan.run

    def tampered(self: Plan, query: Any, key: Any, value: Any, **named: Any) -> Any:
        out = run(self, query, key, value, **named)
        if self.chosen.backend == "tiled":
            out = out.clone()
            out[0, 9, 9, 0] = (49 * out[0, 9, 9, 0] + value[0, 0, 0, 0]) / 50
        return out

    monkeypatch.setattr(Plan, "run", tampered)
    for dtype in ("float32", "bfloat16", "float16"):
        effort = Effort(clock=fake(2, 3, 4), rounds=1, backends=("tiled", "sdpa"))
        job = bench.measure("dinat", plan(dtype=dtype), effort)
        row = next(row for row in job.rows if row.name == "tiled/tile")
        assert row.wrong
        assert row.seconds is None
        limit = bench.TOLERANCE[dtype]
        assert row.reason.startswith("WRONG: a row differs by 0.0")
        assert row.reason.endswith(f" of its norm, the limit is {limit:g}")
        assert "tiled/tile" not in dict(job.timed)


def test_a_wrong_gradient_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is right; the gradient that arrives is a tenth of a percent too large."""
    run = Plan.run

    def tampered(self: Plan, **named: Any) -> Any:
        out = run(self, **named)
        if self.chosen.backend == "tiled":
            out.register_hook(lambda grad: 1.001 * grad)
        return out

    monkeypatch.setattr(Plan, "run", tampered)
    effort = Effort(clock=fake(2, 3, 4), rounds=1, backends=("tiled", "sdpa"))
    job = bench.measure("dinat", plan(training=True), effort)
    assert [row.name for row in job.rows if row.wrong] == ["tiled/tile"]


def test_a_failing_candidate_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Plan.run

    def failing(self: Plan, **named: Any) -> Any:
        if self.chosen.backend == "tiled":
            raise RuntimeError("no luck")
        return run(self, **named)

    monkeypatch.setattr(Plan, "run", failing)
    job = bench.measure("dinat", plan(), Effort(clock=fake(2, 3, 4), rounds=1))
    row = next(row for row in job.rows if row.name == "tiled/tile")
    assert (row.reason, row.wrong) == ("fails: no luck", True)
    assert len(job.timed) == 3


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([[1.0, 0.0]], [[1.0, 0.0]], 0.0),
        ([[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]], 0.0),
        ([[1.5, 0.0]], [[1.0, 0.0]], 0.25),
        ([[NAN, 0.0]], [[1.0, 0.0]], INF),
        ([[INF, 0.0]], [[1.0, 0.0]], INF),
        ([[1.0, 0.0]], [[NAN, 0.0]], INF),
        ([[-INF, 0.0]], [[-INF, 0.0]], 0.0),
        ([[-9.0, 0.0]], [[-INF, 0.0]], INF),
        ([[NAN, 0.0], [9.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]], INF),
        ([[1.0]], [[1.0, 0.0]], INF),
        ([[0.0, 1.0]], [[0.0, 0.0]], INF),
    ],
)
def test_disagreement_is_the_worst_relative_error(found: Any, expected: Any, error: float) -> None:
    got = bench.disagreement([torch.tensor(found)], [torch.tensor(expected)])
    assert got == pytest.approx(error) or (error == INF and got > 1e100)


def test_large_or_slow_candidates_are_skipped_with_both_numbers() -> None:
    flux = plan(Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128))
    reference = next(candidate for candidate in flux.candidates if candidate.backend == "reference")
    assert bench.why_skipped(flux.request, reference, 1e9) == (
        "1.15e+03 GiB of dense scores, the limit is 1 GiB"
    )
    job = bench.measure("flux", flux, Effort(seconds=1.0))
    assert job.skipped.startswith("sdpa/") or job.skipped.startswith("tiled/tile: its estimate is ")
    assert job.skipped.endswith(" s, the limit 1 s")
    assert all(row.reason and not row.wrong for row in job.rows)


def test_packed_grids_are_dense_one_by_one() -> None:
    made = plan(Mask.causal(), (64_000, 1, 8), grids=[64] * 1000)
    (reference,) = (one for one in made.candidates if one.backend == "reference")
    assert not bench.why_skipped(made.request, reference, 1e9)


def test_tensors_over_half_of_the_memory_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.machine, "memory", lambda: 3 << 20)
    job = bench.measure("large", plan(Mask.full(), (1, 2048, 4, 64)), Effort())
    assert job.skipped == "its tensors take 0.00781 GiB of 0.00293 GiB of memory"


def test_a_device_that_is_not_here_is_skipped() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    job = bench.measure("hopper", plan(device="sm_90"), Effort())
    assert job.skipped == "planned for sm_90; this machine has cpu"
    assert job.rows == ()


# GPUs of others, as torch would show them.


class Gpu:
    """The parts of `torch.cuda` and `torch.xpu` that are asked of a GPU."""

    memory = 1 << 20

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def get_device_name(_: object) -> str:
        return "Intel(R) Data Center GPU Max 1550"

    @classmethod
    def get_device_properties(cls, _: object) -> Any:
        return SimpleNamespace(total_memory=cls.memory)


@pytest.fixture
def intel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("is_available", "get_device_name", "get_device_properties"):
        monkeypatch.setattr(torch.xpu, name, getattr(Gpu, name))
    devices._data.cache_clear()
    yield
    devices._data.cache_clear()


@pytest.mark.usefixtures("intel")
def test_plans_for_the_intel_gpu_that_is_here_can_run() -> None:
    assert bench.why_not_here(plan(device="xe").request) == ""
    other = "planned for sm_90; this machine has cpu and xe"
    assert bench.why_not_here(plan(device="sm_90").request) == other


@pytest.mark.usefixtures("intel")
def test_the_memory_is_that_of_the_gpu_of_a_plan() -> None:
    job = bench.measure("large", plan(Mask.full(), (1, 2048, 4, 64), device="xe"), Effort())
    assert job.skipped == "its tensors take 0.00781 GiB of 0.000977 GiB of memory"
