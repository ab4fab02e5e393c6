"""The fixes of masks by name."""

from __future__ import annotations

from fixes.row import Row

GIVEN = "from nbattn.recipes import sliding_tile"
HEADS = (
    "torch.cat([nbattn.attention(q, k, v, sliding_tile(w, tile)) for q, k, v, w in "
    "zip(query.split(1, -2), key.split(1, -2), value.split(1, -2), window)], -2)"
)
ROWS = [
    Row(
        "sliding_tile((3, 3))",
        "tile=(6, 8)",
        "out = sliding_tile((3, 3), tile=(6, 8))",
        "out == Mask.neighborhood((18, 24), stride=(6, 8))",
        GIVEN,
    ),
    Row(
        "sliding_tile((3, 3), (4, 4), grid=(33, 45))",
        "grid=(32, 44)",
        "out = sliding_tile((3, 3), (4, 4), grid=(32, 44))",
        "out == Mask.neighborhood((12, 12), stride=(4, 4))",
        GIVEN,
    ),
    Row(
        "sliding_tile(window, tile)",
        HEADS,
        f"out = {HEADS}",
        "out.shape == image.shape and torch.allclose("
        "out[..., 3:, :], nbattn.attention(*[image[..., 3:, :]] * 3, sliding_tile((1, 2), tile)))",
        f"{GIVEN}\nquery = key = value = image\ntile = (2, 2)\n"
        "window = [(1, 1), (3, 1), (1, 3), (1, 2)]",
    ),
]
