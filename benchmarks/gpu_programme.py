"""Everything to find out on a GPU, in its order: `make gpu` runs it, and a second call goes on.

    PYTHONPATH=. python benchmarks/gpu_programme.py [--seconds 580] [--only sweep] [--dry]

Every step is a command with a time limit of its own. What it finds is a JSON line, written when
found, in the folder $OUT or `benchmarks/results/gpu`: one file per kind of finding, and
`programme.jsonl` with a line per step. A step that has ended is left out; a step that was stopped
goes on where it was. An empty $OUT starts with what `benchmarks/results/gpu` knows.
`--dry` runs every step here, without a GPU, with stand-ins.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from findings import about, append, read

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
LOST, LEFT = 3, 3  # exit statuses: the device was lost, or the time was up; a next call goes on
TAIL = 4000  # characters of a command's output that are kept
LEAST = 20  # seconds; a step does not begin with less


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        name: for `--only`, and in `programme.jsonl`.
        answers: what it finds out.
        words: the command; {out}, {seconds} and {python} are replaced.
        seconds: its time limit.
        parts: processes that share the tests of a test step; 0 for other steps.
        dry: the words that replace the command without a GPU; default: the same words.
    """

    name: str
    answers: str
    words: tuple[str, ...]
    seconds: int
    parts: int = 0
    dry: tuple[str, ...] | None = None


def tests(*words: str) -> tuple[str, ...]:
    """Return a command that runs tests with a line for each, without options of a project file."""
    return (
        "{python}", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "one_line_per_test",
        "--import-mode=importlib", "--findings={out}/{dry}tests.jsonl", *words,
    )  # fmt: skip


def script(name: str, *words: str) -> tuple[str, ...]:
    """Return a benchmark's command, which stops in time by itself."""
    output = f"--output={{out}}/{name}.jsonl"
    return ("{python}", f"benchmarks/{name}.py", output, "--seconds={seconds}", *words)


LAUNCHES = (
    "tests/gpu/test_launches.py", "tests/gpu/test_ptx.py", "tests/gpu/test_hopper_ptx.py",
    "tests/gpu/test_tensor_maps.py",
)  # fmt: skip
KERNELS, WARPGROUPS = "tests/gpu/test_kernels.py", "tests/gpu/test_warpgroups.py"
ADDED = "tests/gpu/test_added_scores.py"
TRITON = "tests/gpu/test_triton.py"
BIG, SANITIZER = "offsets_beyond", "sanitizer"
STAND_IN = ("-p", "gpu_stand_in")
NOTHING = ("{python}", "-c", "print('needs a GPU')")
NCU = (
    "ncu", "--set", "full", "--force-overwrite", "--kernel-name", "regex:nb_",
    "--launch-count", "4", "--export", "{out}/ncu-flux", "--csv", "--page", "details",
    "--log-file", "{out}/ncu-flux.csv", "{python}", "benchmarks/one_training_step.py",
)  # fmt: skip

STEPS = (
    Step(
        "doctor", "does the installation work?",
        ("{python}", "-m", "nbattn", "doctor", "--deep"), 90,
    ),
    Step(
        "launches", "do arguments, maps, streams, graphs and PTX do on hardware what they should?",
        tests(*LAUNCHES), 300, 1,
        tests(*STAND_IN, *LAUNCHES, "-k", "loaded_kernel_in or ldmatrix_on or stmatrix"),
    ),
    Step(
        "warpgroups", "do the kernels of warpgroups compute the masks and the values?",
        tests(WARPGROUPS, KERNELS, "-k", f"(warpgroups or wgmma) and not ({BIG} or {SANITIZER})"),
        400, 8, tests(*STAND_IN, WARPGROUPS, "-k", "second_launch or refused"),
    ),
    Step(
        "kernels", "do the kernels compute the masks and the values?",
        tests(KERNELS, ADDED, "-k", f"not {BIG} and not {SANITIZER}"), 560, 8,
        tests(*STAND_IN, KERNELS, "-k", "cuda_values and decode and float32"),
    ),
    Step(
        "offsets", "and beyond 2^31 elements?", tests(KERNELS, "-k", BIG, "--each=280"), 300, 1,
        tests(*STAND_IN, KERNELS, "-k", f"{BIG} and bfloat16"),
    ),
    Step(
        "sweep", "which of the tiles with the lowest estimates is the fastest?",
        script("gpu_tiles", "--few"), 400, 0,
        script("gpu_tiles", "--few", "--dry", "--only=1-D 32k D128"),
    ),
    Step("ncu", "what do the kernels of FLUX wait for?", NCU, 240, 0, NOTHING),
    Step(
        "FLUX", "how fast beside FlexAttention and SDPA?",
        script("gpu_neighborhood", "--quick", "--only=FLUX"), 300, 0, NOTHING,
    ),
    Step(
        "Hunyuan", "the same in 3-D", script("gpu_neighborhood", "--quick", "--only=Hunyuan"), 300,
        0, NOTHING,
    ),
    Step(
        "LTX", "small windows: how much faster than the kernels for sm_80?",
        script("gpu_neighborhood", "--quick", "--only=LTX"), 200, 0, NOTHING,
    ),
    Step(
        "1-D", "a long line", script("gpu_neighborhood", "--quick", "--only=1-D"), 200, 0, NOTHING,
    ),
    Step(
        "triton", "do the Triton kernels compute the same, and what is compiled when?",
        tests(TRITON, "-k", f"not {BIG} and not {SANITIZER}"), 560, 8,
        tests(*STAND_IN, TRITON, "-k", "triton_values and decode and float32"),
    ),
    Step(
        "triton sweep", "which tile of each Triton kernel is the fastest?",
        script("gpu_triton_tiles"), 560, 0, script("gpu_triton_tiles", "--dry", "--only=NAT 7"),
    ),
    Step(
        "triton speed", "how fast are they beside CUDA's and FlexAttention at its best tiling?",
        script("gpu_triton"), 560, 0, script("gpu_triton", "--dry", "--only=NAT 7"),
    ),
    Step(
        "triton offsets", "do they compute beyond 2^31 elements?",
        tests(TRITON, "-k", BIG, "--each=280"), 300, 1,
        tests(*STAND_IN, TRITON, "-k", f"{BIG} and bfloat16"),
    ),
    Step(
        "diffusers", "LTX-2.5's decoder and a Flux block both ways, and a real stage's memory",
        (
            "{python}", "benchmarks/diffusers_attention.py", "--device=cuda",
            "--output={out}/diffusers.json", "--overwrite",
        ), 300, 0, NOTHING,
    ),
    Step(
        "sanitizer", "do the tools find an access or a race?",
        tests(KERNELS, TRITON, "-k", SANITIZER, "--each=310"), 560, 4,
        tests(*STAND_IN, KERNELS, "-k", SANITIZER),
    ),
    Step(
        "flash", "do the dialects' formulas hold on the real kernels?",
        tests("tests/gpu/test_flash.py"), 400, 8,
        tests(*STAND_IN, "tests/gpu/test_flash.py", "-k", "planner"),
    ),
    Step(
        "flash speed", "what does a plan lose against the best one?", script("gpu_flash"), 500, 0,
        NOTHING,
    ),
    Step(
        "all tiles", "is one of the other tiles faster?", script("gpu_tiles"), 560, 0,
        script("gpu_tiles", "--dry", "--only=NAT 7"),
    ),
    Step(
        "costs", "the cost table of all that",
        ("{python}", "benchmarks/fit_costs.py", "{out}", "--output={out}/costs.json"), 60,
    ),
)  # fmt: skip


def begin(out: Path) -> None:
    """Create the folder; if it has no findings, copy those of earlier calls."""
    out.mkdir(parents=True, exist_ok=True)
    if not [*out.glob("*.jsonl")]:
        for path in RESULTS.glob("*.jsonl"):
            shutil.copyfile(path, out / path.name)


def environment() -> dict[str, str]:
    """Return the variables of every command: nothing is installed, and all share one cache."""
    folders = (ROOT, ROOT / "tests", ROOT / "tests" / "instruments", ROOT / "benchmarks")
    return {
        "NBATTN_CACHE": str(Path.home() / ".cache" / "nbattn-gpu"),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        **os.environ,
    } | {"PYTHONPATH": os.pathsep.join(map(str, folders))}  # fmt: skip


def commands(step: Step, out: Path, seconds: float, dry: bool) -> list[list[str]]:
    """Return the commands of a step, one per part."""
    words = (step.dry or step.words) if dry else step.words
    values = {
        "dry": "dry-" * dry,
        "out": str(out),
        "python": sys.executable,
        "seconds": str(int(seconds)),
    }
    plain = [word.format(**values) for word in words]
    parts = 1 if dry else step.parts
    return [[*plain, f"--part={n}/{parts}"] for n in range(1, parts + 1)] if step.parts else [plain]


def run(step: Step, out: Path, seconds: float, dry: bool) -> dict[str, Any]:
    """Run a step; processes that lost the device are started again while there is time."""
    start, known = time.monotonic(), environment()
    waiting = commands(step, out, seconds - 10, dry)
    statuses: list[int] = []
    text, timed_out = "", False
    while waiting:
        left = seconds - (time.monotonic() - start)
        found = together(waiting, known, left)
        text += "".join(output for _, output in found)
        timed_out = any(status is None for status, _ in found)
        again = [
            words
            for words, (status, _) in zip(waiting, found, strict=True)
            if step.parts and status not in (None, 0, 1, 5)
        ]
        statuses = [-1 if status is None else status for status, _ in found]
        if timed_out or seconds - (time.monotonic() - start) < LEAST:
            break
        waiting = again
    return {
        "step": step.name, "answers": step.answers, "statuses": statuses, "timed_out": timed_out,
        "seconds": round(time.monotonic() - start, 1), "output": text[-TAIL:],
        "ended": not timed_out and ends(step, statuses), **({"dry": True} if dry else {}),
    }  # fmt: skip


def ends(step: Step, statuses: list[int]) -> bool:
    """Whether a step has found what it can: failed tests are an answer, too."""
    if step.parts:
        return all(status in (0, 1, 5) for status in statuses)
    return all(status != LEFT and status >= 0 for status in statuses)


def together(
    waiting: list[list[str]], known: dict[str, str], seconds: float
) -> list[tuple[int | None, str]]:
    """Run commands at the same time; return status (None: stopped) and output of each."""
    started = [
        subprocess.Popen(
            words, cwd=ROOT, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )
        for words in waiting
        if shutil.which(words[0])
    ]  # fmt: skip
    if not started:
        return [(0, f"{waiting[0][0]} is not installed")]
    end, found = time.monotonic() + max(1.0, seconds), list[tuple[int | None, str]]()
    for process in started:
        try:
            output, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            found.append((process.returncode, output))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            found.append((None, output))
    return found


def state(row: dict[str, Any] | None) -> str:
    """Return how far a step is."""
    if row is None:
        return "not begun"
    return f"{'ended' if row['ended'] else 'to go on'}, {row['seconds']} s"


def summary(out: Path) -> list[str]:
    """Return lines about what is known: steps, tests that did not pass, the fastest tiles."""
    steps = {row["step"]: row for row in read(out / "programme.jsonl")}
    lines = [f"{step.name}: {state(steps.get(step.name))}: {step.answers}" for step in STEPS]
    ended = [row for row in read(out / "tests.jsonl") if "outcome" in row]
    counts = Counter(row["outcome"] for row in ended)
    lines.append(f"tests: {', '.join(f'{n} {name}' for name, n in sorted(counts.items()))}")
    lines += [f"  {row['outcome']}: {row['test']}" for row in ended
              if row["outcome"] not in ("passed", "skipped")]  # fmt: skip
    best: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in read(out / "gpu_tiles.jsonl") + read(out / "gpu_triton_tiles.jsonl"):
        family = row.get("family", f"cuda {row.get('instructions', '')}".strip())
        key = (row.get("workload", ""), family, row.get("kernel", ""))
        if row.get("seconds") and row["seconds"] < best.get(key, {"seconds": 1e9})["seconds"]:
            best[key] = row
    lines += [
        f"  {workload}: {family}: {row['tile']}: {row['seconds'] * 1e3:.3g} ms, "
        f"{row['useful_tflops']:.3g} useful TFLOP/s"
        for (workload, family, _), row in best.items()
    ]
    lines += [
        f"  {row['name']}: {'training' if row['training'] else 'forward'}: {row['peer']}: "
        f"{row['seconds'] * 1e3:.3g} ms, {row['useful_tflops']:.3g} useful TFLOP/s"
        + (f", goal {row['goal_tflops']}" if row.get("goal_tflops") else "")
        for row in read(out / "gpu_neighborhood.jsonl")
        if row["kind"] == "workload" and row.get("seconds")
    ]
    return lines


def main(words: list[str] | None = None) -> int:
    """Run the steps that are not answered until the time is up; 3 if something is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=580, help="of this call")
    parser.add_argument("--only", help="only steps whose name contains this", metavar="STEP")
    parser.add_argument("--dry", action="store_true", help="without a GPU")
    parser.add_argument("--output", type=Path, help=f"default: $OUT, else {RESULTS}")
    options = parser.parse_args(words)
    out: Path = (options.output or Path(os.environ.get("OUT") or RESULTS)).resolve()
    begin(out)
    end = time.monotonic() + options.seconds
    for step in STEPS:
        rows = [r for r in read(out / "programme.jsonl") if r["step"] == step.name]
        known = any(row["ended"] and row.get("dry", False) == options.dry for row in rows)
        if known or (options.only and options.only not in step.name):
            continue
        left = end - time.monotonic()
        if left < LEAST:
            break
        print(f"{step.name}: {step.answers}", flush=True)
        row = run(step, out, min(step.seconds, left), options.dry)
        append(out / "programme.jsonl", {**row, **about()})
        print(f"  {'ended' if row['ended'] else 'stopped'} after {row['seconds']} s", flush=True)
    print("\n".join(summary(out)))
    rows = read(out / "programme.jsonl")
    ended = {r["step"] for r in rows if r["ended"] and r.get("dry", False) == options.dry}
    asked = {s.name for s in STEPS if not options.only or options.only in s.name}
    return 0 if asked <= ended else LEFT


if __name__ == "__main__":
    sys.exit(main())
