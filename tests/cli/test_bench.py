"""Tests of the command `bench`: what is printed and written, misuse and exit status."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import torch_only
from fake_bench import fake, plan
from own_warnings import module

import nbattn
from nbattn import Mask, bench
from nbattn.cli import main
from nbattn.config import Config, PlanConfig
from nbattn.program.request import Request

torch_only = torch_only.torch_only  # a fixture: no native kernels

ROOT = Path(__file__).resolve().parents[1]


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
  candidate           ms   x chosen    GFLOP/s   estimate ms
  tiled/tile        2000       0.50   1.54e-06      ESTIMATE
  sdpa/mask         4000       1.00   7.68e-07      ESTIMATE   chosen
  reference/dense   6000       1.50   5.12e-07      ESTIMATE
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
    assert _hide_estimates(out) == TABLE


def _hide_estimates(text: str) -> str:
    """Bounds are a tuned model's: not for exact texts."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        words = line.split()
        if len(words) >= 5 and "/" in words[0] and words[0] != "candidate":
            lines[number] = line.replace(f"{words[4]:>11}", "   ESTIMATE", 1)
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
    (["a.toml", "--device", "abacus"], "nbattn bench: device='abacus' is not known: one of cpu, "),
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
    try:
        status = main(["bench", *words])
    except SystemExit as stopped:  # argparse
        status = stopped.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert message in err
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


def test_bench_help_has_examples_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
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
