"""Fixes of calls whose arguments stand at the place of others, and of what stands for a mask."""

from fixes.row import EQUAL, QKV, SDPA, Row, whole

WINDOW = "torch.from_numpy(mask.dense(12))"
PLACES = [
    whole(
        "attention(query, mask)",
        "nbattn.attention(query, query, query, mask)",
        EQUAL.format("attention(q, q, q, mask)"),
    ),
    whole(
        "attention(query, mask)",
        "nbattn.attention(*query.unbind(-3), mask)",
        EQUAL.format("attention(q, k, v, mask)"),
        "query = torch.stack([q, k, v], -3)",
    ),
    whole(
        "attention(query, key, mask=mask)",
        "nbattn.attention(query, *key.unbind(-3), mask)",
        EQUAL.format("attention(q, k, v, mask)"),
        "key = torch.stack([k, v], -3)",
    ),
    whole(
        "attention(mask, query, key, value)",
        "nbattn.attention(query, key, value, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    whole(
        "attention(q, k, v, mask, 0.5)",
        "nbattn.attention(query, key, value, mask, scale=0.5)",
        EQUAL.format("attention(q, k, v, mask, scale=0.5)"),
    ),
    whole(
        "attention(q, k, v, mask, 0.0, None)",
        "nbattn.attention(query, key, value, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    whole(
        "attention(q, k, v, Mask(Axis(3, 3)), 0.0, True)",  # SDPA's dropout_p and is_causal
        "nbattn.attention(query, key, value, Mask(Axis(3, 0, causal=True)))",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    whole(
        "attention(query, mask)",
        "nbattn.attention(*query, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
        "query = (q, k, v)",
    ),
    whole(
        "attention(query, mask)",
        "nbattn.attention(*query, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
        "query = torch.stack([q, k, v])",
    ),
    Row(
        "attention(q, k, v, Mask.causal)",
        "mask=Mask.causal()",
        "out = attention(q, k, v, mask=Mask.causal())",
        EQUAL.format("attention(q, k, v, Mask.causal('top-left'))"),
    ),
    Row(
        "attention([q], k, v, mask)",
        "torch.cat(query)",
        "query = [q]\nout = attention(torch.cat(query), k, v, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    Row(
        "nbattn.plan(query.shape, mask)",
        "nbattn.plan(mask, query.shape)",
        "plan = nbattn.plan(mask, query.shape)",
        given=QKV,
    ),
    Row(
        "nbattn.plan(mask, q, k, v)",
        "nbattn.plan(mask, query.shape, key.shape, value_dim=value.shape[-1])",
        "plan = nbattn.plan(mask, query.shape, key.shape, value_dim=value.shape[-1])",
        given=QKV,
    ),
]

PER_HEAD = (
    "torch.cat([nbattn.attention(query[..., h : h + 1, :], key[..., g : g + 1, :], "
    "value[..., g : g + 1, :], masks[h]) for h in range(query.shape[-2]) "
    "for g in [h * key.shape[-2] // query.shape[-2]]], dim=-2)"
)


def mask(wrong: str, right: str, same: str = "mask", given: str = "") -> Row:
    """A row for what is given as a mask."""
    return Row(
        f"attention(q, k, v, {wrong})",
        f"mask={right}",
        f"out = attention(q, k, v, mask={right})",
        EQUAL.format(f"attention(q, k, v, {same})"),
        f"{QKV}\n{given}",
    )


MASKS = [
    mask("None", "Mask.full(rank=1)", "Mask.full()"),
    mask("Axis(3, 0)", "Mask(Axis(3, 0))"),
    mask("[Axis(3, 0)]", "Mask(Axis(3, 0))"),
    mask("'causal'", 'Mask.causal("top-left")', "Mask.causal()"),
    mask("(3, 0)", "Mask.from_flash((3, 0))"),
    mask("7", "Mask.neighborhood(7)", "Mask.neighborhood(7)"),
    mask("(7,)", "Mask.neighborhood(7)", "Mask.neighborhood(7)"),
    mask("0.5", "Mask.full(rank=1), scale=0.5", "Mask.full(), scale=0.5"),
    mask(WINDOW, "Mask(Axis(3, 0))"),
    mask("matrix", "Mask(Axis(3, 2))", "Mask(Axis(3, 2))", "matrix = Mask(Axis(3, 2)).dense(12)"),
    mask("mask.dense(12)[None, None]", "Mask(Axis(3, 0))"),
    *[
        mask(f"{one}.dense(12)", one, one)
        for one in (
            "Mask(Axis(2, 2, border='shift'))",
            "Mask(Axis(2, 2, border='wrap'))",
            "Mask(Axis())",
            "Mask(Axis(None, 0, causal=True))",
        )
    ],
    mask(
        "torch.zeros(12, 12).masked_fill(~torch.from_numpy(mask.dense(12)), float('-inf'))",
        "Mask(Axis(3, 0))",
    ),
    Row(
        "attention(q, k, v, mask)",
        SDPA.format("mask"),
        f"out = {SDPA.format('mask')}",
        "out.shape == q.shape",
        f"{QKV}\nmask = torch.rand(12, 12) > 0.3",
    ),
    whole(
        "attention(q, k, v, masks)",
        PER_HEAD,
        "torch.allclose(out[..., 1:2, :], attention(q[..., 1:2, :], k[..., :1, :], v[..., :1, :],"
        " masks[1]), atol=1e-5)",
        "masks = [mask, Mask.full(), mask, Mask.causal()]\n"
        "k, v = k[..., :2, :], v[..., :2, :]\nkey, value = k, v",
    ),
]

CREATED = (
    "(lambda *at: torch.as_tensor({}).expand(at[0].shape))(*torch.meshgrid("
    "*[torch.arange(n, device=query.device) for n in (query.shape[0], query.shape[-2], "
    "query[0, ..., 0, 0].numel(), key[0, ..., 0, 0].numel())], indexing='ij'))"
)
PADDING = "padding = torch.ones(2, 12, dtype=torch.bool)\npadding[0, -1] = False\n"
PADDED = EQUAL.format("attention(q, k, v, Mask.full(), key_range=[[0, 11], [0, 12]])")
MASKS += [
    *[
        Row(
            "attention(image, image, image, mask)",
            f"mask={right}",
            f"out = attention(image, image, image, mask={right})",
            EQUAL.format(f"attention(image, image, image, {same})"),
            f"mask = {given}",
        )
        for given, right, same in (
            ("[Axis(3, 3)]", "Mask(Axis(3, 3), Axis(3, 3))", "Mask(Axis(3, 3), Axis(3, 3))"),
            ("(3, 5)", "Mask.neighborhood((3, 5))", "Mask.neighborhood((3, 5))"),
            (
                "(3, None)",
                "Mask(Axis(3, None, align='bottom-right'), Axis(3, None, align='bottom-right'))",
                "Mask(Axis(3, None), Axis(3, None))",
            ),
            (
                "'causal'",
                "Mask(Axis(None, 0, causal=True, align='top-left'), "
                "Axis(None, 0, causal=True, align='top-left'))",
                "Mask(Axis(causal=True), Axis(causal=True))",
            ),
        )
    ],
    *[
        Row(
            "attention(query, key, value, mask)",
            SDPA.format(CREATED.format(function)),
            f"out = {SDPA.format(CREATED.format(function))}",
            EQUAL.format(f"attention(q, k, v, {same})"),
            f"{QKV}\nmask = lambda b, h, i, j: i >= j\n{given}",
        )
        for function, same, given in (
            ("mask(*at)", "Mask.causal()", ""),
            ("mask(*at)", "Mask.full()", "mask = lambda b, h, i, j: b.new_ones((), dtype=bool)"),
            ("mask(*at[2:])", "Mask.causal()", "mask = lambda i, j: i >= j"),
            (
                "mask.mask_mod(*at)",
                "Mask.causal()",
                "from torch.nn.attention.flex_attention import create_block_mask\n"
                "mask = create_block_mask("
                "mask, 2, 4, 12, 12, device='cpu')",
            ),
        )
    ],
    *[
        Row(
            "attention(q, k, v, mask)",
            pasted,
            f"out = attention(q, k, v, {pasted})",
            PADDED,
            PADDING + f"mask = {given}",
        )
        for given, real in (
            ("padding", "mask"),
            ("padding.long()", "mask.bool()"),
            ("padding.numpy()", "torch.as_tensor(mask)"),
            ("padding[:, None, None]", "mask[:, 0, 0]"),
            (
                "torch.zeros(2, 12).masked_fill(~padding, float('-inf'))[:, None, None]",
                "(mask == 0)[:, 0, 0]",
            ),
        )
        for pasted in [f"mask=Mask.full(rank=1), key_range=nbattn.key_range_from({real})"]
    ],
    mask("True", 'Mask.causal("top-left")', "Mask.causal()"),
    mask("False", "Mask.full(rank=1)", "Mask.full()"),
    mask("'causal_lower_right'", 'Mask.causal("bottom-right")', "Mask.causal()"),
    *[
        Row(
            "attention(q, k, v, mask)",
            f"mask={right}",
            f"out = attention(q, k, v, mask={right})",
            EQUAL.format("attention(q, k, v, Mask(Axis(3, 0)))"),
            f"mask = {table}",
        )
        for table, right in (
            ("{'left': 3, 'right': 0}", "Mask(*[Axis(**mask)] * 1)"),
            (
                "{'axes': [{'left': 3, 'right': 0}]}",
                'nbattn.load({"masks": {"mine": mask}}).masks["mine"]',
            ),
        )
    ],
]

ROWS = PLACES + MASKS
