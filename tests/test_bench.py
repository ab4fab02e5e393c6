"""Owns `nbattn bench`: who is measured, who is refused and why, and what is printed and written."""

import json
import math
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from own_warnings import module

import nbattn
from nbattn import Mask, Plan, bench, execute, timing
from nbattn.bench import Effort, Tensors
from nbattn.cli import main
from nbattn.config import Config, PlanConfig
from nbattn.program.request import Request

ROOT = Path(__file__).resolve().parents[1]
DINAT, SHAPE = Mask.neighborhood((7, 7), dilation=4), (1, 28, 28, 2, 32)


def plan(mask: Mask = DINAT, shape: Sequence[int] = SHAPE, **named: Any) -> nbattn.Plan:
    return nbattn.plan(mask, shape, **{"dtype": "float32", "device": "cpu", **named})


def fake(*seconds: float) -> timing.Clock:
    """Every function takes its own time, in the order in which functions are first timed, and none
    is run. Above `timing.LONG`, so that a turn is one run.
    """
    known: dict[int, float] = {}
    kept: list[object] = []  # so that no two share an id

    def time(run: timing.Action) -> float:
        if id(run) not in known:
            kept.append(run)
            known[id(run)] = seconds[len(known)]
        return known[id(run)]

    return timing.Clock("fake", time, min, min)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`config(name=plan, …)`: what `nbattn.config.load` finds in any file."""

    def install(**plans: nbattn.Plan) -> None:
        found = Config(plans={name: said(plan.request) for name, plan in plans.items()})
        monkeypatch.setattr("nbattn.config.load", lambda path: found)

    return install


def said(request: Request) -> PlanConfig:
    """A request as configurations say it."""
    return PlanConfig(
        mask=request.mask,
        query=(request.batch, *request.query_space, request.heads, request.head_dim),
        dtype=request.dtype,
        device=request.device.name,
        training=request.training,
        backend=request.backend,
    )


def use(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """A fake clock for the commands, on a machine that is idle."""
    reads = fake(*seconds)
    monkeypatch.setattr(bench.machine, "busy", lambda: 0.0)
    monkeypatch.setattr(bench, "clock", lambda threads, device: reads)


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
        for one in bench.candidates(made, Effort()):
            if one.backend == "reference":
                continue  # runs as plain torch
            Tensors.of(made.request).runner(made, one)()
            assert ran.pop() is one
            cases("bench: candidates by themselves", 1)


def test_a_backend_of_the_plan_does_not_hide_the_others() -> None:
    made = plan(backend="sdpa", require=("mask",))
    names = [one.name for one in bench.candidates(made, Effort())]
    assert names == ["sdpa/mask"]  # require= is the user's word
    names = [one.name for one in bench.candidates(plan(backend="tiled"), Effort())]
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
    flops = [bench.Job("", one).useful_flops for one in (forward, both)]
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


def test_the_tensors_are_what_the_request_says() -> None:
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


def test_one_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_disagreement(found: Any, expected: Any, error: float) -> None:
    got = bench.disagreement([torch.tensor(found)], [torch.tensor(expected)])
    assert got == pytest.approx(error) or (error == INF and got > 1e100)


def test_what_is_too_large_or_too_slow_is_skipped_with_both_numbers() -> None:
    flux = plan(Mask.neighborhood((80, 80)), (1, 256, 256, 24, 128))
    reference = next(one for one in flux.candidates if one.backend == "reference")
    assert bench.obstacle(flux.request, reference, 1e9) == (
        "1.15e+03 GiB of dense scores, the limit is 1 GiB"
    )
    job = bench.measure("flux", flux, Effort(seconds=1.0))
    assert job.skipped.startswith("sdpa/") or job.skipped.startswith("tiled/tile: its bound is ")
    assert job.skipped.endswith(" s, the limit 1 s")
    assert all(row.reason and not row.wrong for row in job.rows)


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


# The command. The clock is fake and the machine's threads are given, so that every byte is known.

TABLE = """\
small forward: query [1, 16, 2, 8] key [1, 16, 2, 8] float32 cpu
  candidate           ms   x chosen    GFLOP/s   bound ms
  tiled/tile        2000       0.50   1.54e-06      BOUND
  sdpa/mask         4000       1.00   7.68e-07      BOUND   chosen
  reference/dense   6000       1.50   5.12e-07      BOUND
  regret 2.00: tiled/tile is faster than the chosen sdpa/mask

hopper forward: query [1, 16, 2, 8] key [1, 16, 2, 8] bfloat16 sm_90
  not measured: planned for sm_90; this machine has cpu

1 thread(s), fake
"""


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("one_thread")
def test_the_table_piped_is_plain(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = Mask.neighborhood(3)
    small = plan(mask, (1, 16, 2, 8), backend="sdpa")  # whatever is cheapest
    config(small=small, hopper=plan(mask, (1, 16, 2, 8), device="sm_90", dtype="bfloat16"))
    use(monkeypatch, 4, 6, 2)
    assert main(["bench", "any.toml", "--rounds", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert _hide_bounds(out) == TABLE


def _hide_bounds(text: str) -> str:
    """Bounds are a tuned model's: not for exact texts."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        words = line.split()
        if len(words) >= 5 and "/" in words[0] and words[0] != "candidate":
            lines[number] = line.replace(f"{words[4]:>8}", "   BOUND", 1)
    return "\n".join(lines) + "\n"


@pytest.mark.usefixtures("one_thread")
def test_json_and_png_are_written(
    tmp_path: Path, config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config(small=plan(Mask.neighborhood(3), (1, 16, 2, 8), training=True))
    use(monkeypatch, *range(2, 20))
    out, png = tmp_path / "times.json", tmp_path / "times.png"
    assert main(["bench", "any.toml", "--json", str(out), "--png", str(png)]) == 0
    found = json.loads(out.read_text())
    assert [job["pass"] for job in found["jobs"]] == ["forward", "training"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["cores"] >= 1
    for job in found["jobs"]:
        names = {field.name for field in fields(Request) if field.init}
        assert set(job["request"]) == names - {"held"}
        assert {one["name"] for one in job["candidates"]} >= {job["chosen"], job["best"]}
        assert all(len(one["samples"]) == 7 for one in job["candidates"])
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_usable_is_a_failure(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    config(hopper=plan(device="sm_90"))
    assert main(["bench", "any.toml"]) == 1
    assert capsys.readouterr().out.endswith("nothing could be measured on this machine\n")


def test_another_device_than_the_configurations(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config(hopper=plan(Mask.neighborhood(3), (1, 16, 2, 8), device="sm_90"))
    use(monkeypatch, *range(2, 20))
    assert main(["bench", "any.toml", "--device", "cpu"]) == 0
    assert "float32 cpu\n" in capsys.readouterr().out


def test_a_wrong_candidate_is_exit_status_1(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config(dinat=plan())
    use(monkeypatch, *range(2, 20))
    monkeypatch.setattr(bench, "TOLERANCE", {"float32": 0.0})
    assert main(["bench", "any.toml", "--backends", "tiled"]) == 1
    out = capsys.readouterr().out
    assert "WRONG: a row differs by " in out
    assert out.splitlines()[-1] == "WRONG or failed: tiled/tile on dinat forward"


def test_a_busy_machine_is_said_on_stderr(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config(small=plan(Mask.neighborhood(3), (1, 16, 2, 8)))
    use(monkeypatch, *range(2, 20))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(bench.machine, "busy", lambda: 1.25)
    assert main(["bench", "any.toml"]) == 0
    assert capsys.readouterr().err == (
        "nbattn bench: other programs use 1.2 cores: wall times of 2 threads are unreliable\n"
    )


def test_a_mask_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, *range(2, 20))
    shapes = ["--query", "1,16,2,8", "--key", "1,20,1,8", "--dtype", "float32"]
    words = [
        "bench",
        "--mask",
        "sliding_window(4, align=4)",
        *shapes,
        "--training",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert (
        "sliding_window(4, align=4) forward: query [1, 16, 2, 8] key [1, 20, 1, 8] float32 cpu\n"
        in out
    )
    assert "sliding_window(4, align=4) forward + backward: " in out


MISUSE: list[tuple[list[str], str]] = [
    (
        [],
        "nbattn bench: the request is missing: give CONFIG, or --mask and --query.\n"
        "  fix:   nbattn bench CONFIG, or nbattn bench --mask ",
    ),
    (
        ["--mask", "causal()"],
        "nbattn bench: the request is missing: give CONFIG, or --mask and --query.\n",
    ),
    (
        ["a.toml", "nobody"],
        "nbattn bench: a.toml has no plan 'nobody'.\n  fix:   plans of a.toml: dinat.\n",
    ),
    (
        ["a.toml", "--backends", "tiled,magic"],
        "nbattn bench: backend 'magic' is not known.\n  fix:   one of 'reference', 'sdpa', 'tiled'",
    ),
    (
        ["a.toml", "--json", "no/such/folder.json"],
        "nbattn bench: no/such/folder.json cannot be created: no/such is not a directory.\n"
        "  fix:   a file in a directory that exists.\n",
    ),
    (["a.toml", "--png", "."], "nbattn bench: . is a directory.\n"),
    (["a.toml", "--device", "abacus"], "nbattn bench: device='abacus' is not known.\n"),
    (
        ["a.toml", "--rounds", "0"],
        "argument --rounds: '0' is not a whole number from 1 to 1000000\n",
    ),
    (
        ["a.toml", "--rounds", "²"],
        "argument --rounds: '²' is not a whole number from 1 to 1000000\n",
    ),
    (
        ["a.toml", "--threads", "x"],
        "argument --threads: 'x' is not a whole number from 1 to 1000000\n",
    ),
    (
        ["a.toml", "--seconds", "nan"],
        "argument --seconds: 'nan' is not a number of seconds above 0",
    ),
    (
        ["--mask", "causal()", "--query", "1,b"],
        "argument --query: '1,b' is not a shape; write 1,56",
    ),
]


@pytest.mark.parametrize(("words", "said"), MISUSE, ids=lambda case: " ".join(case)[:40])
def test_misuse_is_one_message_and_exit_status_2(
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    config: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    config(dinat=plan())
    try:
        status = main(["bench", *words])
    except SystemExit as stopped:  # argparse
        status = stopped.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_png_without_matplotlib(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config(dinat=plan())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "a.toml", "--png", "a.png"]) == 2
    assert capsys.readouterr().err == (
        "nbattn bench: --png needs matplotlib, which is not installed.\n"
        "  fix:   pip install 'nbattn[viz]', or omit --png.\n"
    )


def test_help_reads_like_a_manual(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    out = capsys.readouterr().out
    assert all(part in out for part in ("examples:", "exit status:", "regret", "CONFIG", "--png"))


def test_on_a_terminal_there_is_a_bar_and_bold_titles(tmp_path: Path) -> None:
    """The one run with the real clock, in a process of its own."""
    file = tmp_path / "small.toml"
    plan = 'small = { mask = "m", query = [1, 8, 1, 8], dtype = "float32", device = "cpu" }'
    file.write_text(f"[masks]\nm = {{ neighborhood = {{ kernel_size = 3 }} }}\n[plans]\n{plan}\n")
    options = [str(file), "--rounds", "1", "--threads", "1"]
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, *module("nbattn"), "bench", *options]
    with subprocess.Popen(command, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        seen = b""
        while True:
            try:
                part = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            seen += part
    os.close(parent)
    assert process.returncode == 0, seen.decode()
    assert b"plans" in seen
    assert b"\x1b[1msmall forward" in seen
    assert b"median process CPU time" in seen
