"""Time models of diffusers both ways, in turns: LTX-2.5's stage 5 against its own FlexAttention, a
Flux block against its own SDPA; and decode a real stage, with its memory. `--device cuda` on a GPU.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import records
import report
import torch
from diffusers.models.autoencoders import ltx2_diffusion_decoder as ltx
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nbattn import Mask, machine
from nbattn.integrations.diffusers import apply, forwards, restore, sequences
from nbattn.timing import Action, clock, extra_memory, interleave

LIMITS = {"LTX stage 5": 20.0, "Flux attention": 4.0}  # the own time / nbattn's
HEADS, DIM, SIDE, TEXT = 4, 64, 64, 128  # Flux has 24 heads of 128: too many for a CPU here
STAGE4 = (69, 64, 96)  # of a 512 x 768 clip
TILE5 = (24, 96, 96)  # a part of a tile of 79 x 192 x 192
Row = dict[str, Any]


def paired(case: str, which: str, ways: dict[str, Action], options: argparse.Namespace) -> Row:
    """Return the medians of interleaved rounds, and how many times as long the own way takes."""
    taken = interleave(ways, clock=clock(1, options.device), rounds=options.rounds)
    seconds = {name: samples.median for name, samples in taken.items()}
    ratio = seconds["own"] / seconds["nbattn"]
    row: Row = {"case": case, "pass": which, "seconds": seconds, "ratio": ratio}
    if case in LIMITS:
        row |= {"limit": LIMITS[case], "met": ratio >= LIMITS[case]}
    return row


def stage5(options: argparse.Namespace) -> list[Row]:
    """Time the attention of stage 5, whose own block mask is made beforehand."""
    side = 12 if options.quick else 24
    attn = ltx.LTX2VideoVaeNeighborhoodAttention(256, (11, 11, 11)).to(options.device)
    x = torch.randn(1, side, side, side, 256, device=options.device)
    blocks = attn.build_block_mask(x)
    own: Any = attn.processor
    apply(attn)
    ours: Any = attn.processor
    ways = {"nbattn": lambda: ours(attn, x), "own": lambda: own(attn, x, blocks)}
    with torch.no_grad():
        torch.testing.assert_close(ways["nbattn"](), ways["own"](), rtol=0, atol=1e-4)
        return [paired("LTX stage 5", "forward", ways, options) | {"space": [side] * 3}]


def both(run: Callable[[], Any], leaves: list[Tensor]) -> Action:
    """Return a function that runs forward and backward."""

    def action() -> None:
        found = run()
        found = found if isinstance(found, tuple) else (found,)
        torch.autograd.grad([one.sum() for one in found], leaves)

    return action


def flux(options: argparse.Namespace) -> list[Row]:
    """Time attention of text and image alone, and the whole block, forward and training."""
    torch.manual_seed(0)
    mask, device = Mask.neighborhood((16, 16)), options.device
    tokens = sequences.Tokens((SIDE, SIDE), TEXT)
    length = TEXT + SIDE * SIDE
    shape = (1, length, HEADS, DIM)
    qkv: list[Any] = [torch.randn(shape, device=device, requires_grad=True) for _ in range(3)]
    first: list[Any] = [part.detach().transpose(1, 2).contiguous().requires_grad_() for part in qkv]
    named: dict[str, Any] = {"before": TEXT, "text": "joint", "scale": None}
    alone: dict[str, Callable[[], Any]] = {
        "nbattn": lambda: sequences.attend(qkv[0], qkv[1], qkv[2], mask, tokens, **named),
        "own": lambda: scaled_dot_product_attention(*first),
    }
    models = [_model(device), apply(_model(device), mask)]
    image = torch.randn(1, SIDE * SIDE, HEADS * DIM, device=device, requires_grad=True)
    text = torch.randn(1, TEXT, HEADS * DIM, device=device, requires_grad=True)
    step = torch.randn(1, HEADS * DIM, device=device)
    turns = models[0].pos_embed(torch.zeros(length, 3, device=device))

    def block(model: Any) -> Any:
        with forwards.running(forwards.Pass(tokens, 0)):
            return model.transformer_blocks[0](image, text, step, turns)

    whole = {"own": lambda: block(models[0]), "nbattn": lambda: block(models[1])}
    rows: list[Row] = []
    for case, ways in (("Flux attention", alone), ("Flux block", whole)):
        leaves = {name: qkv if name == "nbattn" else first for name in ways}
        if ways is whole:
            leaves = {name: [image, text] for name in ways}
        with torch.no_grad():
            rows.append(paired(case, "forward", ways, options))
        training = {name: both(run, leaves[name]) for name, run in ways.items()}
        rows.append(paired(case, "training", training, options))
    return rows


def _model(device: str) -> Any:
    made: Any = FluxTransformer2DModel(
        num_layers=1, num_single_layers=0, num_attention_heads=HEADS, attention_head_dim=DIM,
        in_channels=16, joint_attention_dim=32, pooled_projection_dim=16,
        axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    return made.to(device)


def real(options: argparse.Namespace) -> list[Row]:
    """Run one block of a real stage, on half of its frames and on all: time and peak memory."""
    rows: list[Row] = []
    for name, space, width, kernel in (
        ("stage 4", STAGE4, 512, (3, 5, 5)), ("stage 5, part of a tile", TILE5, 256, (11, 11, 11))
    ):  # fmt: skip
        block = apply(ltx.LTX2VideoVaeNABlock(width, kernel)).to(options.device)
        for frames in (space[0] // 2, space[0]):
            x = torch.randn(1, frames, *space[1:], width, device=options.device)
            with torch.no_grad():
                taken = interleave(
                    {"nbattn": lambda block=block, x=x: block(x)},
                    clock=clock(options.threads, options.device), rounds=1,
                )  # fmt: skip
                extra = _extra(lambda block=block, x=x: block(x), options.device)
            rows.append({
                "case": f"LTX {name}", "pass": "forward", "space": [frames, *space[1:]],
                "seconds": {"nbattn": taken["nbattn"].typical}, "extra_bytes": extra,
                "extra_over_input": None if extra is None else extra / (x.numel() * 4),
                "quadratic_bool_bytes": (x.numel() // width) ** 2,
            })  # fmt: skip
        restore(block)
    return rows


def _extra(run: Action, device: str) -> int | None:
    if device == "cpu":
        return extra_memory(run)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def table(rows: list[Row]) -> Table:
    """Return the table of all rows."""
    shown = Table(title="diffusers, float32", title_justify="left", box=SIMPLE_HEAD)
    for name in ("case", "pass", "nbattn, ms", "own, ms", "ratio", "limit", "extra / input"):
        shown.add_column(name, justify="left" if name in ("case", "pass") else "right")
    for row in rows:
        times = (row["seconds"].get(name) for name in ("nbattn", "own"))
        limit = f"{row['limit']:g}{'' if row['met'] else '!'}" if "limit" in row else ""
        extra = row.get("extra_over_input")
        shown.add_row(
            row["case"] + ("" if "space" not in row else f" {'x'.join(map(str, row['space']))}"),
            row["pass"], *("" if t is None else f"{1e3 * t:.4g}" for t in times),
            f"{row['ratio']:.2f}" if "ratio" in row else "", limit,
            "" if extra is None else f"{extra:.2f}",
        )  # fmt: skip
    return shown


def main() -> None:
    """Measure, print and write JSON."""
    default = f"diffusers-attention-{machine.today()}.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--note", default="", help="what else is to be known of the machine")
    parser.add_argument("--quick", action="store_true", help="small, writes no file")
    parser.add_argument("--paired", action="store_true", help="without the real stages: 2 minutes")
    records.add_output(parser, default)
    options = parser.parse_args()
    path = None if options.quick else records.destination(options, default)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    rows = [
        *stage5(options),
        *flux(options),
        *([] if options.quick or options.paired else real(options)),
    ]
    report.console().print(table(rows))
    if path is not None:
        record = {"machine": records.machine(), "versions": records.versions(), "rows": rows}
        method = f"medians of {options.rounds} interleaved rounds, {clock(1, options.device).title}"
        busy = {"note": options.note, "busy_cores": machine.busy()}
        records.write(path, record | {"threads": options.threads, "method": method, **busy})


if __name__ == "__main__":
    main()
