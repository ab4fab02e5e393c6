"""Tests of the command `bench`: what is printed and written, misuse and exit status."""

import json
import os
import pty
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TextIO

import pytest
import torch
import torch_only
from fake_bench import fake, plan

import nbattn
from nbattn import Mask, bench
from nbattn.cli import main
from nbattn.config import Config, PlanConfig
from nbattn.program.request import Request

torch_only = torch_only.torch_only  # a fixture: no native kernels


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`config(name=plan, …)`: what `nbattn.config.load` finds in any file."""

    def install(**plans: nbattn.Plan) -> None:
        found = Config(plans={name: plan_config(plan.request) for name, plan in plans.items()})
        monkeypatch.setattr("nbattn.config.load", lambda path: found)

    return install


def plan_config(request: Request) -> PlanConfig:
    """A request as a configuration has it."""
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


# The command. The clock is fake and the machine's threads are given, so that every byte is known.


TABLE = """\
small forward: query [1, 16, 2, 8] key [1, 16, 2, 8] float32 cpu
  candidate            ms  x chosen   GFLOP/s  estimated ms
  tiled/tile         2000      0.50  1.54e-06      ESTIMATE
  sdpa/mask          4000      1.00  7.68e-07      ESTIMATE  chosen
  reference/dense    6000      1.50  5.12e-07      ESTIMATE
  regret 2.00: tiled/tile is faster than the chosen sdpa/mask

hopper forward: query [1, 16, 2, 8] key [1, 16, 2, 8] bfloat16 sm_90
  not measured: planned for sm_90; this machine has cpu

1 thread, fake
estimated: by the planner from device data, not a time
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
    assert _hide_estimates(out) == TABLE


def _hide_estimates(text: str) -> str:
    """Bounds are a tuned model's: not for exact texts."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        words = line.split()
        if len(words) >= 5 and "/" in words[0] and words[0] != "candidate":
            lines[number] = line.replace(f"{words[4]:>12}", "    ESTIMATE", 1)
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
        assert set(job["request"]) == names - {"held", "grids"}
        assert {candidate["name"] for candidate in job["candidates"]} >= {
            job["chosen"],
            job["best"],
        }
        assert all(len(candidate["samples"]) == 7 for candidate in job["candidates"])
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_usable_is_a_failure(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    config(hopper=plan(device="sm_90"))
    assert main(["bench", "any.toml"]) == 1
    assert capsys.readouterr().out.endswith(
        "nothing could be measured on this machine; --device cpu measures its CPU\n"
    )


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


def test_a_busy_machine_is_reported_on_stderr(
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


def test_bench_of_a_mask_given_as_text(
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
        "the request is incomplete: --mask and --query are missing, and no plans of a CONFIG are "
        "selected.\n  fix:   nbattn bench --mask 'sliding_window(511)' --query 1,4096,8,64\n",
    ),
    (
        ["--mask", "causal()"],
        "the request is incomplete: --query is missing, and no plans of a CONFIG are selected.\n"
        "  fix:   nbattn bench --mask 'causal()' --query 1,4096,8,64\n",
    ),
    (
        ["a.toml", "nobody"],
        "a.toml has no plan 'nobody'; its plans are dinat.\n  fix:   nbattn bench a.toml dinat\n",
    ),
    (
        ["a.toml", "--backends", "tiled,magic"],
        "backend 'magic' is not known; backends are reference, sdpa, tiled",
    ),
    (
        ["a.toml", "--json", "no/such/folder.json"],
        "no/such/folder.json cannot be created: no/such is not a directory.\n"
        "  fix:   --json folder.json\n",
    ),
    (["a.toml", "--png", "."], ". is a directory.\n  fix:   --png nbattn.png\n"),
    (["a.toml", "--device", "abacus"], "device='abacus' is not known: one of cpu, "),
    (
        ["a.toml", "--rounds", "0"],
        "--rounds: '0' is not a whole number from 1 to 1000000.\n",
    ),
    (
        ["a.toml", "--rounds", "²"],
        "--rounds: '²' is not a whole number from 1 to 1000000.\n",
    ),
    (
        ["a.toml", "--threads", "x"],
        "--threads: 'x' is not a whole number from 1 to 1000000.\n",
    ),
    (
        ["a.toml", "--seconds", "nan"],
        "--seconds: 'nan' is not a number of seconds above 0.\n",
    ),
    (
        ["--mask", "causal()", "--query", "1,b"],
        "--query: '1,b' is not a shape.\n  fix:   nbattn bench --mask 'causal()' --query 1,56",
    ),
]


@pytest.mark.parametrize(("words", "message"), MISUSE, ids=lambda case: " ".join(case)[:40])
def test_bench_misuse_is_one_message_and_exit_status_2(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    config: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    config(dinat=plan())
    status = main(["bench", *words])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith(f"nbattn bench: {message}")
    assert "\n  fix:   " in err


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("calls", [2, 8], ids=["before_a_round", "in_a_round"])
def test_ctrl_c_keeps_and_prints_what_was_measured(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    calls: int,
) -> None:
    small = plan(Mask.neighborhood(3), (1, 16, 2, 8))
    config(first=small, second=small)
    reads = fake(*range(2, 20))
    timed: list[object] = []

    def stopping(run: Callable[[], object]) -> float:
        timed.append(run)
        if len(timed) == calls:  # three repeats are counted first, then the first round begins
            raise KeyboardInterrupt
        return reads.time(run)

    monkeypatch.setattr(bench.machine, "busy", lambda: 0.0)
    monkeypatch.setattr(bench, "clock", lambda *_: replace(reads, time=stopping))
    out = tmp_path / "times.json"
    assert main(["bench", "any.toml", "--json", str(out)]) == 130
    text, errors = capsys.readouterr()
    assert errors == ""
    assert "second" not in text
    has_times = calls == 8
    assert f"interrupted in job 1 of 2{'; its times are of fewer rounds' * has_times}\n" in text
    assert ("stopped before its first round" in text) is not has_times
    (job,) = json.loads(out.read_text())["jobs"]
    assert job["interrupted"] is True
    assert any(candidate["samples"] for candidate in job["candidates"]) is has_times
    assert text.endswith(f"written: {out}\n")


def test_png_without_matplotlib(
    capsys: pytest.CaptureFixture[str], config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config(dinat=plan())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "a.toml", "--png", "a.png"]) == 2
    assert capsys.readouterr().err == (
        "nbattn bench: --png needs matplotlib, which is not installed.\n"
        "  fix:   pip install matplotlib\n"
    )


def test_bench_help_has_examples_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    out = capsys.readouterr().out
    assert all(part in out for part in ("examples:", "exit status:", "regret", "CONFIG", "--png"))


def on_a_terminal(run: Callable[[TextIO], int]) -> tuple[int, bytes]:
    """What a function returns, and what the terminal shows that it writes to."""
    parent, child = pty.openpty()
    seen = list[bytes]()

    def read() -> None:
        with suppress(OSError):  # the other end is closed
            while part := os.read(parent, 4096):
                seen.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(child, "w", encoding="utf-8") as terminal:
        status = run(terminal)
    reader.join()
    os.close(parent)
    return status, b"".join(seen)


@pytest.fixture
def same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("same_threads_after")
def test_on_a_terminal_rows_appear_as_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one run with the real clock."""
    file = tmp_path / "small.toml"
    plan = 'small = { mask = "m", query = [1, 8, 1, 8], dtype = "float32", device = "cpu" }'
    file.write_text(f"[masks]\nm = {{ neighborhood = {{ kernel_size = 3 }} }}\n[plans]\n{plan}\n")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")

    def run(terminal: TextIO) -> int:
        with redirect_stdout(terminal):
            return main(["bench", str(file), "--rounds", "1", "--threads", "1"])

    status, seen = on_a_terminal(run)
    assert status == 0, seen.decode()
    assert b"checked, waits for its first round" in seen
    assert b"measuring, round 1; Ctrl-C stops and keeps what is measured" in seen
    assert b"\x1b[1msmall forward" in seen
    assert b"median process CPU time" in seen
