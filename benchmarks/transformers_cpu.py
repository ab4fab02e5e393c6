"""Time a small Mistral of transformers on a CPU: attn_implementation "nbattn" against "sdpa"."""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import statistics
from typing import Any, NamedTuple

import records
import report
import torch
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

import nbattn
from nbattn import machine
from nbattn.integrations import transformers as integration
from nbattn.timing import Samples, clock, interleave

EQUAL, FASTER = 1.05, 1.0  # limits of nbattn's time / sdpa's time
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS, MIDDLE = 512, 8, 2, 64, 4, 1792
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Case(NamedTuple):
    """One forward pass: number of tokens, window, and limit of its time relative to sdpa's."""

    tokens: int
    window: int
    target: float | None
    note: str


CASES = [
    Case(128, 8192, None, "equal work, tiny"),
    Case(512, 8192, EQUAL, "equal work"),
    Case(2048, 8192, EQUAL, "equal work"),
    Case(4096, 8192, EQUAL, "equal work"),
    Case(4096, 1024, FASTER, "window 1/4"),
    Case(4096, 256, FASTER, "window 1/16"),
    Case(8192, 1024, FASTER, "window 1/8"),
]


def models(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """Return the same model with both implementations."""
    try:
        import transformers
    except ImportError:
        raise SystemExit("This needs a package: pip install 'transformers>=5.24,<6'") from None

    transformers.logging.set_verbosity_error()
    config = transformers.MistralConfig(
        vocab_size=1000,
        hidden_size=HIDDEN,
        intermediate_size=MIDDLE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=16384,
        sliding_window=case.window,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    first = transformers.MistralModel(config).to(dtype).eval()
    second = copy.deepcopy(first)
    second.set_attn_implementation("nbattn")
    return {"sdpa": first, "nbattn": second}


def measure(case: Case, dtype: str, threads: int, rounds: int) -> dict[str, Any]:
    """Measure one row: both times, their ratio, the difference of the outputs, the plan."""
    pair = models(case, DTYPES[dtype])
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 1000, (1, case.tokens), generator=generator)
    runs = {
        name: lambda model=model: model(text, use_cache=False).last_hidden_state
        for name, model in pair.items()
    }
    with torch.inference_mode():
        theirs, ours = (runs[name]() for name in ("sdpa", "nbattn"))
        taken = interleave(runs, clock=clock(threads), rounds=rounds)
    error = ((ours - theirs).float().norm() / theirs.float().norm()).item()
    ratio = paired(taken["nbattn"], taken["sdpa"])
    return {
        **case._asdict(),
        "dtype": dtype,
        "plan": plan(case, dtype),
        "relative_difference": error,
        "ratio": ratio,
        "met": None if case.target is None else ratio <= case.target,
        **{f"{name}_seconds": samples.typical for name, samples in taken.items()},
        **{f"{name}_samples": samples.seconds for name, samples in taken.items()},
    }


def paired(first: Samples, second: Samples) -> float:
    """Return the median ratio of rounds, since a slow phase affects both times of a round."""
    pairs = zip(first.seconds, second.seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def plan(case: Case, dtype: str) -> str:
    """Return the name of the candidate that a layer's attention runs."""
    mask = nbattn.Mask.from_transformers(case.window, offset=0)
    shapes = (1, case.tokens, HEADS, HEAD_DIM), (1, case.tokens, KV_HEADS, HEAD_DIM)
    return nbattn.plan(mask, *shapes, dtype=dtype, device="cpu").chosen.name


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the table of all rows."""
    shown = Table(title="small Mistral, forward", title_justify="left", box=SIMPLE_HEAD)
    for name in ("tokens", "window", "dtype", "sdpa ms", "nbattn ms", "ratio", "target", "apart"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("plan")
    for row in rows:
        verdict = "" if row["met"] is None else "met" if row["met"] else "MISSED"
        shown.add_row(
            f"{row['tokens']}", f"{row['window']}", row["dtype"],
            f"{1e3 * row['sdpa_seconds']:.1f}", f"{1e3 * row['nbattn_seconds']:.1f}",
            f"{row['ratio']:.3f}", "" if row["target"] is None else
            f"<= {row['target']:.2f} {verdict}", f"{row['relative_difference']:.0e}", row["plan"],
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="rounds per case; default 7")
    parser.add_argument("--quick", action="store_true", help="short cases; writes no file")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    default = f"transformers-{machine.today()}.json"
    records.add_output(parser, default)
    options = parser.parse_args()
    path = None if options.quick else records.destination(options, default)
    torch.set_num_threads(options.threads)
    integration.register()
    cases = [case for case in CASES if not options.quick or case.tokens <= 512]
    jobs = [(case, dtype) for dtype in options.dtypes.split(",") for case in cases]
    record: dict[str, Any] = {
        "date": machine.now(),
        "machine": records.machine(),
        "versions": records.versions()
        | {"transformers": importlib.metadata.version("transformers")},
        "threads": options.threads,
        "method": "MistralModel forward in inference mode, no cache, batch 1; "
        f"{LAYERS} layers, hidden {HIDDEN}, {HEADS} heads, {KV_HEADS} key heads of {HEAD_DIM}; "
        f"paired rounds in one process, {'CPU' if options.threads == 1 else 'wall'} time; "
        "ratio: median of the rounds' nbattn / sdpa",
        "rows": [],
    }
    console = report.console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for case, dtype in progress.track(jobs):
            record["rows"].append(measure(case, dtype, options.threads, options.rounds))
    console.print(table(record["rows"]))
    record["load_average_after"] = machine.load()
    if path is not None:
        records.write(path, record)
        console.print(f"wrote {path}")


if __name__ == "__main__":
    main()
