"""The table of other libraries' windows in docs/migrating/index.md, generated from the converters.

    python tests/instruments/dialect_table.py

prints it. The keys of a query are taken from the mask, not written down: a converter that counts
wrongly changes the table, and the test of the pages sees it.
"""

from __future__ import annotations

import nbattn
from nbattn import geometry

# What one has there, and what to write here.
ROWS = (
    ("NATTEN `kernel_size=7`", "Mask.neighborhood(7)"),
    ("NATTEN `kernel_size=8, dilation=2`", "Mask.neighborhood(8, dilation=2)"),
    ("NATTEN `kernel_size=7, is_causal=True`", "Mask.neighborhood(7, is_causal=True)"),
    ("`window_size=(512, 0)` of flash-attn 2, 3, torch `varlen_attn`", "Mask.from_flash((512, 0))"),
    ("flash-attn `causal=True`", "Mask.from_flash(causal=True)"),
    ("flash-attn 4 `window_size=(None, 64)`", "Mask.from_flash((None, 64))"),
    ("FlashInfer `window_left=512, causal=True`", "Mask.from_flash((512, -1), causal=True)"),
    ("FlashInfer `window_left=512`", "Mask.from_flash((512, -1))"),
    ("transformers `sliding_window=512`, causal", "Mask.from_transformers(512)"),
    (
        "transformers `sliding_window=512`, bidirectional",
        "Mask.from_transformers(512, causal=False)",
    ),
    ("torch SDPA `is_causal=True`", 'Mask.causal("top-left")'),
    ("torch `causal_lower_right`", 'Mask.causal("bottom-right")'),
    ("JAX splash `LocalMask((512, 0), offset=8)`", "Mask.sliding_window(512, align=8)"),
    ("cuDNN `left_bound=512, right_bound=0`", "Mask.from_cudnn(512, 0)"),
    (
        "cuDNN `left_bound=512`, bottom-right",
        'Mask.from_cudnn(512, align="bottom-right")',
    ),
    ("mem-efficient `window_size=512`, type 1", "Mask.from_transformers(512, offset=0)"),
    ("mem-efficient `window_size=512`, type 2", "Mask.from_transformers(512)"),
    ("xformers `LocalAttentionFromBottomRightMask(512, 64)`", "Mask.from_flash((512, 64))"),
    ("xformers `LowerTriangularMask`", 'Mask.causal("top-left")'),
    (
        "xformers `LowerTriangularFromBottomRightLocalAttentionMask(512)`",
        "Mask.from_transformers(512)",
    ),
    (
        'Transformer Engine `"causal"`, `window_size=(512, 0)`',
        'Mask.from_flash((512, 0), causal=True, align="top-left")',
    ),
    (
        'Transformer Engine `"causal_bottom_right"`, `window_size=(512, 0)`',
        "Mask.from_flash((512, 0), causal=True)",
    ),
)
HEAD = ("You have", "You write", "A query at p attends to", "Lengths differ")
LENGTH, MIDDLE = 4096, 2048
BORDERS = {"clip": "", "shift": ", moved inward at borders", "wrap": ", in a circle"}


def table() -> str:
    """The table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(row(*pair) for pair in ROWS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def row(there: str, here: str) -> tuple[str, ...]:
    """One converter: what it makes of a query far from every border."""
    mask: nbattn.Mask = eval(here, {"Mask": nbattn.Mask})
    (bound_axis,) = geometry.bind(mask, LENGTH, LENGTH)
    ((first, count),) = bound_axis.key_intervals(MIDDLE)
    step = bound_axis.spec.dilation
    last = first + step * (count - 1)
    unlimited = [
        None in (bound_axis.spec.left, bound_axis.spec.right),
        first == 0,
        last == LENGTH - 1,
    ]
    left = "0" if unlimited[1] else relative(first - bound_axis.offset)
    right = "the last" if unlimited[2] else relative(last - bound_axis.offset)
    reads = f"{left} … {right}" + (f" in steps of {step}" if step > 1 else "")
    reads += ("" if unlimited[0] else f": {count} keys") + BORDERS[bound_axis.spec.border]
    offset = f", offset {bound_axis.spec.offset:+d}" if bound_axis.spec.offset else ""
    placed = (bound_axis.spec.align or "refused") + offset
    return there, f"`{here}`", reads, placed


def relative(key: int) -> str:
    """A key counted from the query's own position."""
    away = key - MIDDLE
    return "p" if away == 0 else f"p {'+' if away > 0 else '−'} {abs(away)}"


if __name__ == "__main__":
    print(table())
