"""Tests of `nbattn tune`: what it measures, prints, writes and refuses."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_only

import nbattn
from nbattn import Mask, bench, timing, tune
from nbattn.cli import main
from nbattn.config import Config, PlanConfig
from nbattn.planner import cost_table, planner

torch_only = torch_only.torch_only  # a fixture: no native kernels

MASK, SHAPE = Mask.neighborhood((7, 7), dilation=4), (1, 28, 28, 2, 32)


def plan(**named: Any) -> nbattn.Plan:
    return nbattn.plan(MASK, SHAPE, **{"dtype": "float32", "device": "cpu", **named})


def planned(**named: Any) -> PlanConfig:
    return PlanConfig(mask=MASK, query=SHAPE, **{"dtype": "float32", "device": "cpu", **named})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, one thread, two small matrices, and clocks that run nothing: rates are of
    2 s each; candidates take 8 s, 7 s, 6 s … in the order of their bounds, which that reverses.
    """
    monkeypatch.setenv("NBATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(tune, "_PRODUCTS", {"cpu": (4, 8)})
    monkeypatch.setattr(tune, "_COPIED", {"cpu": 1000})
    monkeypatch.setattr(tune, "clock", lambda threads, kind: ticking([2.0] * 9))
    monkeypatch.setattr(bench, "clock", lambda threads, kind: ticking(range(8, 1, -1)))
    planner.forget()
    yield tmp_path / "cache"
    monkeypatch.undo()
    planner.forget()


def ticking(seconds: Sequence[float]) -> timing.Clock:
    """Every function its own time, in the order in which functions are first timed."""
    known: dict[int, float] = {}
    alive: list[object] = []

    def time(run: timing.Action) -> float:
        if id(run) not in known:
            alive.append(run)
            known[id(run)] = seconds[len(known)]
        return known[id(run)]

    return timing.Clock("fake", time, min, min)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(**plans: PlanConfig) -> None:
        found = Config(plans=plans)
        monkeypatch.setattr("nbattn.config.load", lambda path: found)

    return install


def table(folder: Path) -> tuple[cost_table.Entry, ...]:
    return cost_table.decode((folder / "costs.json").read_bytes())


def test_rates_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = cost_table.fingerprint("cpu")
    assert here is not None
    assert main(["tune", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == (
        f"cpu: {here.model}, 1 thread, torch {torch.__version__}\n"
        "  float16 products   6.4e-08 GFLOP/s (so far: 85)\n"
        "  bfloat16 products  6.4e-08 GFLOP/s (so far: 250)\n"
        "  float32 products   6.4e-08 GFLOP/s (so far: 85)\n"
        "  float64 products   6.4e-08 GFLOP/s (so far: 40)\n"
        "  copies               1e-06 GB/s (so far: 8)\n"
        "  a small call         2e+06 us (so far: 4)\n"
        f"written: {folder / 'costs.json'} (0 requests)\n"
    )
    (found,) = table(folder)
    assert found.fingerprint == here
    assert found.rates == cost_table.Rates(
        tuple((dtype, 64.0) for dtype in ("float16", "bfloat16", "float32", "float64")), 1000.0, 2.0
    )
    assert plan().request.device.peak("float32") == pytest.approx(64)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_times_of_a_configuration_change_the_choice(
    folder: Path, capsys: pytest.CaptureFixture[str], config: Callable[..., None]
) -> None:
    config(both=planned(training=True), tiled=planned(backend="tiled"), gpu=planned(device="sm_90"))
    assert plan(training=True).chosen.name == "sdpa/dense+fold"
    assert main(["tune", "any.toml", "--device", "cpu", "--quick"]) == 0
    # --device: the plan for a GPU is measured here, as a plan for this CPU
    out = capsys.readouterr().out
    line = "sdpa/mask 6e+03 ms, tiled/tile 7e+03 ms, sdpa/dense+fold 8e+03 ms\n"
    assert f"  both forward: {line}" in out
    assert f"  both forward + backward: {line}" in out
    assert f"  tiled forward: {line}" in out
    assert out.endswith("(2 requests)\n")
    assert plan(training=True).chosen.name == "sdpa/mask"
    assert "ranked by measured times" in plan().explain()


def test_plans_for_other_devices_are_left_out(
    folder: Path, capsys: pytest.CaptureFixture[str], config: Callable[..., None]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    config(gpu=planned(device="sm_90"))
    assert main(["tune", "any.toml"]) == 0
    assert "  not measured: gpu: planned for sm_90; tune measures cpu\n" in capsys.readouterr().out


def test_a_dry_run_measures_and_writes_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    config: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config(both=planned(training=True))
    monkeypatch.setattr(tune, "clock", None)
    assert main(["tune", "any.toml", "--device", "cpu", "--dry-run"]) == 0
    names = "sdpa/dense+fold, tiled/tile, sdpa/mask"
    assert capsys.readouterr().out.splitlines()[1:] == [
        "would measure: products, copies, calls",
        f"would measure: both forward: {names}",
        f"would measure: both forward + backward: {names}",
        f"would write: {folder / 'costs.json'}",
    ]
    assert not folder.exists()
    monkeypatch.setenv("NBATTN_CACHE", "off")
    assert main(["tune", "--device", "cpu", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("would write: nothing: NBATTN_CACHE=off\n")


def test_output_writes_there_and_nowhere_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: Callable[..., None]
) -> None:
    config(one=planned())
    path = tmp_path / "shared.json"
    assert main(["tune", "any.toml", "--device", "cpu", "--output", str(path)]) == 0
    assert len(cost_table.decode(path.read_bytes())[0].times) == 1
    out = capsys.readouterr().out
    assert out.endswith(f"written: {path} (1 request); the planner does not read it\n")
    assert not folder.exists()


def test_a_wrong_candidate_has_no_time_and_the_status_is_1(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    config: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = nbattn.Plan.run

    def tampered(self: nbattn.Plan, **named: Any) -> Any:
        out = run(self, **named)
        return out + 1 if self.chosen.backend == "tiled" else out

    monkeypatch.setattr(nbattn.Plan, "run", tampered)
    config(one=planned())
    assert main(["tune", "any.toml", "--device", "cpu"]) == 1
    assert "\n    tiled/tile: WRONG: a row differs by " in capsys.readouterr().out
    ((times,),) = [entry.times.values() for entry in table(folder)]
    assert set(times) == {"sdpa/dense+fold", "sdpa/mask"}
    found = plan()
    assert found.chosen.name == "sdpa/dense+fold"
    assert "ranked by estimates (only 2 of 3 candidates are measured: " in found.explain()


def test_a_dtype_that_the_device_lacks_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = torch.ones

    def lacking(*shape: int, **named: Any) -> torch.Tensor:
        if named["dtype"] == torch.float64:
            raise RuntimeError("no such products")
        return ones(*shape, **named)

    monkeypatch.setattr(torch, "ones", lacking)
    assert "float64" not in dict(tune.rates("cpu", effort=tune.QUICK).flops)


def test_the_real_clock_gives_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The true thing; of its numbers only the sign is known."""
    monkeypatch.setattr(tune, "_PRODUCTS", {"cpu": (64,)})
    monkeypatch.setattr(tune, "_COPIED", {"cpu": 1 << 20})
    monkeypatch.setattr(tune, "DTYPES", ("float32",))
    monkeypatch.setattr(timing, "TURN", 0.001)
    effort = bench.Effort(clock=timing.clock(1), rounds=1)
    found = tune.rates("cpu", effort=effort)
    for rate in (dict(found.flops)["float32"], found.bandwidth, found.launch):
        assert 0 < rate < math.inf


def test_a_gpu_sleeps_while_the_host_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else events around a short kernel would time the host."""
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("event")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, other: "Event") -> float:
            return 3.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: order.append("sleep"))
    assert timing.clock(device="cuda").time(lambda: order.append("run")) == pytest.approx(3e-3)
    assert order == ["sleep", "event", "run", "event", "wait"]


def off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NBATTN_CACHE", "off")
    return (
        "nbattn tune: NBATTN_CACHE=off: the cost table has no folder.\n"
        "  fix:   --output costs.json\n"
    )


def refused(reason: str) -> str:
    return (
        f"nbattn tune: the cost table cannot be written: {reason}; NBATTN_CACHE names another "
        "folder.\n  fix:   --output costs.json\n"
    )


def relative(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NBATTN_CACHE", "cache")
    return refused("NBATTN_CACHE='cache' is neither an absolute path nor \"off\"")


def writable_by_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.mkdir()
    folder.chmod(0o777)
    return refused(f"{folder} is writable by others: chmod go-w {folder}")


def read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.mkdir(mode=0o700)
    access = tune.cache.os.access  # root may write anything, so the answer is given here
    monkeypatch.setattr(tune.cache.os, "access", lambda p, m: p != folder and access(p, m))
    return refused(f"{folder} cannot be written")


def below_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder.write_text("")
    monkeypatch.setenv("NBATTN_CACHE", str(folder / "deeper"))
    return refused(f"{folder / 'deeper'} cannot be created: Not a directory")


@pytest.mark.parametrize("case", [off, relative, writable_by_others, read_only, below_a_file])
def test_unwritable_folders_are_reported_before_measuring(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    case: Callable[[Path, pytest.MonkeyPatch], str],
) -> None:
    message = case(folder, monkeypatch)
    monkeypatch.setattr(tune, "rates", None)  # never called
    assert main(["tune", "--device", "cpu"]) == 2
    assert capsys.readouterr() == ("", message)


MISUSE: list[tuple[list[str], str]] = [
    (
        ["--query", "1,2,3,4"],
        "nbattn tune: the request is incomplete: --mask is missing, and no plans of a CONFIG ",
    ),
    (
        ["a.toml", "nobody"],
        "nbattn tune: a.toml has no plan 'nobody'; its plans are one.\n"
        "  fix:   nbattn tune a.toml one\n",
    ),
    (["--device", "abacus"], "nbattn tune: device='abacus' is not known: one of cpu, "),
    (["--device", "sm_75"], "nbattn tune: sm_75 cannot be measured: this machine has none."),
    (["--output", "no/file"], "nbattn tune: no/file cannot be created: no is not a directory.\n"),
    (["--threads", "0"], "nbattn tune: --threads: '0' is not a whole number from 1 to 1000000.\n"),
]


@pytest.mark.parametrize(("words", "message"), MISUSE, ids=lambda case: " ".join(case)[:40])
def test_tune_misuse_is_one_message_and_exit_status_2(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    config: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config(one=planned())
    monkeypatch.setattr(tune, "rates", None)  # never called
    status = main(["tune", *words])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err


def test_several_threads_on_a_busy_machine_are_not_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(bench.machine, "busy", lambda: 1.25)
    monkeypatch.setattr(tune, "rates", None)  # never called
    assert main(["tune", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "nbattn tune: other programs use 1.2 cores: wall times of 2 threads are unreliable: wait "
        "until the machine is idle, or measure one thread by its CPU time.\n"
        "  fix:   --threads 1\n"
    )
    assert not (folder / "costs.json").exists()
    for others in (0.2, None):
        monkeypatch.setattr(bench.machine, "busy", lambda others=others: others)
        assert bench.why_unreliable("cpu") == ""


def test_a_second_run_adds_to_the_first(
    folder: Path, config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cost_table.Rates((("float32", 85e9),), 8e9, 4e-6)
    monkeypatch.setattr(tune, "rates", lambda kind, effort: found)
    for named in ({}, {"training": True}):
        config(one=planned(**named))
        assert main(["tune", "any.toml", "--device", "cpu"]) == 0
    assert len(table(folder)[0].times) == 2
    assert json.loads((folder / "costs.json").read_text())["format"] == 1


def test_tune_help_has_examples_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    out = capsys.readouterr().out
    assert all(
        part in out for part in ("The table is", "examples:", "exit status:", "NBATTN_CACHE")
    )


def test_an_interruption_writes_the_finished_plans(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    config: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config(one=planned(training=True))
    measure, calls = bench.measure, list[str]()

    def second_is_interrupted(*given: Any) -> bench.Job:
        calls.append("")
        job = measure(*given)
        return job if len(calls) == 1 else bench.Job(job.name, job.plan, interrupted=True)

    monkeypatch.setattr(bench, "measure", second_is_interrupted)
    assert main(["tune", "any.toml", "--device", "cpu"]) == 130
    out, err = capsys.readouterr()
    assert out.endswith(f"written: {folder / 'costs.json'} (1 request)\n")
    assert err == "nbattn tune: interrupted; the plans that were finished are written.\n"
    assert len(table(folder)[0].times) == 1
