"""Tables of what ranks send each other in one attention, against an all-gather. Nothing is
measured: the numbers are counts of keys, from `nbattn.distributed.halo`.

    python benchmarks/halo_table.py           prints them
    python benchmarks/halo_table.py --write   writes benchmarks/results/halo-table.md
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import nbattn
from nbattn import Mask
from nbattn.distributed import Halo, halo
from nbattn.distributed.traffic import short_bytes
from nbattn.published import grids

RESULT = Path(__file__).parent / "results" / "halo-table.md"
RANKS = (8, 64, 512, 4096)
DTYPE = "bfloat16"
EVEN = 1.25  # the largest part of a mesh against the largest of the most even mesh


class Case(NamedTuple):
    """One attention: its mask, its grid, and the heads of its keys and values.

    `note` says where they are from, and what is assumed.
    """

    name: str
    mask: Mask
    space: tuple[int, ...]
    kv_heads: int
    head_dim: int
    note: str


def cases() -> list[Case]:
    """Return the attentions of the table."""
    flux, video = grids.named("flux"), grids.named("hunyuan_video")
    decoder = grids.named("ltx2_decoder")
    weather, text = nbattn.load("weather"), nbattn.load("mistral")
    stages = grids.of(decoder, (1024, 1536), 121)
    found = [
        Case(
            "FLUX, 8192 x 8192 pixels",
            nbattn.load("flux_4k").masks["strided"],
            grids.of(flux, (8192, 8192), 1)[0],
            flux.layers[0].heads,
            flux.layers[0].head_dim,
            "windows published for 4096 x 4096 pixels (`flux_4k/strided`); that 8K has the same "
            "is an assumption. Its 512 tokens of text are on every rank",
        ),
        Case(
            "HunyuanVideo, 129 frames of 720 x 1280",
            nbattn.load("hunyuan_video").masks["strided"],
            grids.of(video, (720, 1280), 129)[0],
            video.layers[0].heads,
            video.layers[0].head_dim,
            "windows published for 30 x 48 x 80 tokens (`hunyuan_video/strided`); that this grid "
            "has the same is an assumption. Its 256 tokens of text are on every rank",
        ),
    ]
    for number in (4, 5):
        layers = decoder.layers[number - 1]
        assert isinstance(layers.windows, Mask)
        note = "the model's own windows"
        name = f"LTX-2.5's decoder, 121 frames of 1024 x 1536, stage {number}"
        space = stages[number - 1]
        found.append(Case(name, layers.windows, space, layers.heads, layers.head_dim, note))
    layer = weather.layers["local"]
    head_dim = layer.dim // layer.num_heads
    note = (
        "windows and heads of `configs/weather.toml`, which are an example and no published "
        "model's; longitudes are a circle"
    )
    globe = Case(
        "Weather, 0.1 degrees",
        weather.masks["local"],
        (1800, 3600),
        layer.num_heads,
        head_dim,
        note,
    )
    kv_heads, head_dim = (text.plans["prefill"].key or (0, 0))[-2:]
    note = "windows and heads of `configs/mistral.toml`; the length is an assumption"
    document = Case(
        "Document, 10 million tokens",
        text.masks["decoder"],
        (10_000_000,),
        kv_heads,
        head_dim,
        note,
    )
    return [*found, globe, document]


def meshes(ranks: int, space: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the ways to cut axes into powers of two, as many parts as ranks."""
    powers = [1 << power for power in range(ranks.bit_length())]
    for parts in product(powers, repeat=len(space)):
        fits = all(n <= length for n, length in zip(parts, space, strict=True))
        if fits and math.prod(parts) == ranks:
            yield parts


def best(case: Case, ranks: int) -> Halo:
    """Return the halo of the mesh with which ranks receive the least, among those that cut the
    space nearly as evenly as any: torch's chunks can leave ranks without a part.
    """
    halos = [halo(case.mask, case.space, parts) for parts in meshes(ranks, case.space)]
    shards = [int(one.own.max()) for one in halos]
    even = [one for one, size in zip(halos, shards, strict=True) if size <= EVEN * min(shards)]
    return min(even, key=lambda one: int(one.received.max()))


def by(lengths: tuple[int, ...]) -> str:
    """Format lengths."""
    return " x ".join(f"{length:,}" if len(lengths) == 1 else str(length) for length in lengths)


HEADS = ("ranks", "mesh", "a rank receives", "from", "of its shard", "all-gather", "is more by",
         "shard and halo", "all keys")  # fmt: skip


def rows(case: Case) -> Iterator[tuple[str, ...]]:
    """Yield a row for every number of ranks."""
    for ranks in RANKS:
        found = best(case, ranks)
        moved = found.bytes(kv_heads=case.kv_heads, head_dim=case.head_dim, dtype=DTYPE)
        yield (
            f"{ranks:,}",
            by(found.parts),
            short_bytes(moved.received),
            f"{moved.messages} ranks" if moved.messages > 1 else f"{moved.messages} rank",
            percent(moved.received / moved.shard),
            short_bytes(moved.all_gather),
            times(moved.saving),
            short_bytes(moved.held),
            short_bytes(moved.everything),
        )


def percent(share: float) -> str:
    """Format a share."""
    return f"{100 * share:.3g} %" if share < 10 else f"{100 * share:,.0f} %"


def times(ratio: float) -> str:
    """Format a ratio."""
    return f"{ratio:,.0f} times" if ratio >= 100 else f"{ratio:.3g} times"


def table(heads: tuple[str, ...], lines: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """Yield a table of Markdown."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---:|' * len(heads)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"


def grown() -> Iterator[tuple[str, ...]]:
    """Yield rows in which ranks have as many tokens each, and the sequence grows with the ranks."""
    *_, decoder, _, document = cases()
    for ranks in RANKS:
        side = round(ranks ** (1 / 3))
        clip = decoder._replace(space=tuple(side * n for n in (32, 64, 64)))
        text = document._replace(space=(20_000 * ranks,))
        line = [f"{ranks:,}"]
        for case, parts in ((clip, (side,) * 3), (text, (ranks,))):
            found = halo(case.mask, case.space, parts)
            moved = found.bytes(kv_heads=case.kv_heads, head_dim=case.head_dim, dtype=DTYPE)
            line += [by(case.space), short_bytes(moved.received), short_bytes(moved.all_gather)]
        yield tuple(line)


HEAD = """\
Bytes of keys and values in one attention, forward, bfloat16, one sample; of the rank that receives
the most. Meshes are of powers of two: of those whose largest part is at most 1.25 times that of the
most even one, the one with which a rank receives the least. A ring brings as many bytes as an
all-gather, a rank's shard at a time. A backward pass sends gradients of the same keys and values
the other way. Counted, not measured: `python benchmarks/halo_table.py --write`."""


def page() -> str:
    """Return all tables."""
    lines = [HEAD]
    for case in cases():
        heads = f"{case.kv_heads} heads of {case.head_dim}"
        lines += ["", f"**{case.name}**: {by(case.space)} tokens, {heads}, `{case.mask!r}`;"]
        lines += [f"{case.note}.", "", *table(HEADS, rows(case))]
    lines += [
        "",
        "**What a rank receives follows the surface of its part and the window, not the "
        "sequence**: here ranks have as many",
        "tokens each, 32 x 64 x 64 of stage 5's video or 20,000 of the document, and the sequence "
        "grows with the ranks.",
        "",
    ]
    heads = ("ranks", "video", "a rank receives", "all-gather")
    heads = (*heads, "document", "a rank receives", "all-gather")
    return "\n".join([*lines, *table(heads, grown())]) + "\n"


def main() -> None:
    """Print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    if parser.parse_args().write:
        RESULT.write_text(page(), encoding="utf-8")
    else:
        print(page(), end="")


if __name__ == "__main__":
    main()
