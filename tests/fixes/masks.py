"""Fixes of axes, masks and their lengths."""

from fixes.row import Row

SAME = "(axis.left, axis.right) == (3, 3)"

AXES = [
    Row("Axis(-1, 3)", "left=None", "axis = Axis(left=None, right=3)", "axis.left is None"),
    Row("Axis(3.0)", "left=3", "axis = Axis(left=3)", "axis == Axis(3)"),
    Row("Axis(2**31)", "left=None", "axis = Axis(left=None)", "axis.left is None"),
    Row("Axis('3', '3')", "left=3", "axis = Axis(left=3, right=3)", SAME),
    Row("Axis(3, 3, causal='no')", "causal=False", "axis = Axis(3, 3, causal=False)", SAME),
    Row(
        'Axis(3, 3, align="bottom_right")',
        "align='bottom-right'",
        "axis = Axis(3, 3, align='bottom-right')",
        "axis.align == 'bottom-right'",
    ),
    *[
        Row(
            f"Axis(3, 3, border={word!r})",
            f"border={border!r}",
            f"axis = Axis(3, 3, border={border!r})",
            f"axis.border == {border!r}",
        )
        for word, border in {
            "circular": "wrap",
            "periodic": "wrap",
            "Cyclic": "wrap",
            "zeros": "clip",
            "none": "clip",
            "natten": "shift",
            "clipp": "clip",
        }.items()
    ],
    Row(
        "Axis(3, 3, align=8, offset=2)",
        "align=10",
        "axis = Axis(3, 3, align=10)",
        "axis.offset == 10",
    ),
    Row(
        "Axis(3, 2, causal=True, dilation=2)",
        "Axis(3, 0, dilation=2, causal=True)",
        "axis = Axis(3, 0, dilation=2, causal=True)",
    ),
    Row(
        'Axis(3, border="shift", dilation=2)',
        "Axis(3, 3, dilation=2, border='shift')",
        "axis = Axis(3, 3, dilation=2, border='shift')",
    ),
    Row(
        'Axis(3, causal=True, border="wrap")',
        "Axis(3, 0, border='wrap')",
        "axis = Axis(3, 0, border='wrap')",
        "Mask(axis).dense(6)[0].tolist() == [True, False, False, True, True, True]",
    ),
    Row(
        'Axis(3, 3, border="wrap", align="bottom-right")',
        "Axis(3, 3, border='wrap')",
        "axis = Axis(3, 3, border='wrap')",
    ),
    Row(
        'Axis(1, 1, border="wrap", offset=1)',
        "Axis(0, 2, border='wrap')",
        "axis = Axis(0, 2, border='wrap')",
        "Mask(axis).dense(6)[5].tolist() == [True, True, False, False, False, True]",
    ),
    Row(
        'Axis(1, 1, border="wrap", offset=3)',
        "Axis(1, 1, border='wrap')",
        "out = attention(q, k.roll(-3, 1), v.roll(-3, 1), Mask(Axis(1, 1, border='wrap')))",
        "torch.allclose(out[:, 0], attention(q[:, :1], k[:, 2:5], v[:, 2:5], Mask.full())[:, 0], "
        "atol=1e-5)",
    ),
    Row("Axis(3, 3, circular=True)", "Axis(3, 3, border='wrap')", "Axis(3, 3, border='wrap')"),
    Row(
        "Axis(3, 3, padding_mode='circular')",
        "Axis(3, 3, border='wrap')",
        "Axis(3, 3, border='wrap')",
    ),
    Row("Axis((3, 3))", "left=3, right=3", "axis = Axis(left=3, right=3)", SAME),
    Row(
        "Axis(3, 3, 'wrap')", "Axis(3, 3, border='wrap')", "axis = Axis(3, 3, border='wrap')", SAME
    ),
    Row("Axis(3, 0, True)", "Axis(3, 0, causal=True)", "axis = Axis(3, 0, causal=True)"),
    *[
        Row("Axis(3, 3, 2)", code, code)
        for code in ("Axis(3, 3, dilation=2)", "Axis(3, 3, stride=2)")
    ],
    *[
        Row(
            f"Axis(3, 3, align={word})",
            f"align='{align}'",
            f"axis = Axis(3, 3, align='{align}')",
            f"axis.align == '{align}'",
        )
        for word, align in (
            ("'topleft'", "top-left"),
            ("'bottom_left'", "top-left"),
            ("True", "top-left"),
        )
    ],
    Row("Axis(kernel_size=7)", "Mask.neighborhood(7)", "mask = Mask.neighborhood(7)"),
    Row("Axis(window=7)", "Mask.neighborhood(7)", "mask = Mask.neighborhood(7)"),
    Row("Axis(window=7)", "Mask.from_transformers(7)", "mask = Mask.from_transformers(7)"),
    Row(
        "Mask('neighborhood(5, dilation=2)')",
        "Mask(Axis(2, 2, dilation=2, border='shift'))",
        "mask = Mask(Axis(2, 2, dilation=2, border='shift'))",
        "mask == Mask.neighborhood(5, dilation=2)",
    ),
    Row(
        "attention(image, image, image, 'Mask.neighborhood((3, 5))')",
        "mask=Mask(Axis(1, 1, border='shift'), Axis(2, 2, border='shift'))",
        "mask=Mask(Axis(1, 1, border='shift'), Axis(2, 2, border='shift'))\n"
        "out = attention(image, image, image, mask)",
        "mask == Mask.neighborhood((3, 5))",
    ),
    Row("Axis(3, is_causal=True)", "Axis(3, causal=True)", "axis = Axis(3, causal=True)"),
    Row("Axis(window_size=(3, 0))", "Axis(left=3, right=0)", "axis = Axis(left=3, right=0)"),
]

# `joined` are the keys that the mask with a prefix would attend to: window and prefix.
PREFIX = """
i, j = torch.arange(12)[:, None], torch.arange(12)
window = (j <= i) & (i - j <= 6) & ((i - j) % 2 == 0)
joined = window | ((j < 3) & (j <= i))
query, key, value = q, k, v
"""
DENSE = (
    "torch.nn.functional.scaled_dot_product_attention("
    "q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask={}).transpose(1, 2)"
)
CAUSAL = (
    "nbattn.merge(*zip(nbattn.attention(query, key, value, Mask(Axis(3, 0, dilation=2, "
    "causal=True)), key_range=[[3, key.shape[1]]] * key.shape[0], return_lse=True), "
    "nbattn.attention(query, key[:, :3], value[:, :3], Mask.causal(0), return_lse=True)))[0]"
)
CIRCLE = (
    "nbattn.attention(query, key, value, Mask(Axis(2, 0, border='wrap')), "
    "key_range=[[3, key.shape[1]]] * key.shape[0], "
    "extra_key=key[:, :3], extra_value=value[:, :3])"
)
PREFIXES = [
    Row(
        "Axis(3, causal=True, dilation=2, prefix=3)",
        CAUSAL,
        f"out = {CAUSAL}",
        f"torch.allclose(out, {DENSE.format('joined')}, atol=1e-5)",
        given=PREFIX,
    ),
    Row(
        "Axis(2, 0, border='wrap', prefix=3)",
        CIRCLE,
        f"out = {CIRCLE}",
        f"torch.allclose(out, {DENSE.format('((i - j) % 12 <= 2) | (j < 3)')}, atol=1e-5)",
        given=PREFIX,
    ),
]

MASKS = [
    Row(
        "Mask.neighborhood((7, 7), causal=True)",
        "Mask.neighborhood((7, 7), is_causal=True)",
        "Mask.neighborhood((7, 7), is_causal=True)",
    ),
    Row(
        "Mask.sliding_window(window_size=(3, 0))",
        "Mask.from_flash((3, 0))",
        "mask = Mask.from_flash((3, 0))",
        "mask.axes[0].left == 3",
    ),
    Row(
        "Mask.causal(alignment='top-left')",
        "Mask.causal(align='top-left')",
        "Mask.causal(align='top-left')",
    ),
    Row("Mask()", "Mask.full(rank=1)", "mask = Mask.full(rank=1)"),
    Row(
        "Mask([Axis(1), Axis(2)])",
        "Mask(Axis(1, None), Axis(2, None))",
        "Mask(Axis(1, None), Axis(2, None))",
    ),
    Row("Mask(Axis(1, 1), (3, 3))", "Mask(Axis(1, 1), Axis(3, 3))", "Mask(Axis(1, 1), Axis(3, 3))"),
    Row(
        "Mask(Axis(0, 0), Axis(1, 1), Axis(2, 2), Axis(1, 1))",
        "query.flatten(0, 1)",
        "mask = Mask(Axis(1, 1), Axis(2, 2), Axis(1, 1))\n"
        "out = attention(query.flatten(0, 1), query.flatten(0, 1), query.flatten(0, 1), mask)",
        "out.shape == (10, 3, 4, 3, 2, 8)",
        given="query = torch.randn(2, 5, 3, 4, 3, 2, 8)",
    ),
    Row(
        "Mask(Axis(1, 1), Axis(), Axis(), Axis(1, 1))",
        "mask=Mask(Axis(1, 1), Axis(), Axis(1, 1))",
        "mask=Mask(Axis(1, 1), Axis(), Axis(1, 1))",
        "mask.rank == 3",
    ),
    Row(
        "Mask.neighborhood((7, 7), dilation=(2, 2, 1))",
        "dilation=(2, 2)",
        "mask = Mask.neighborhood((7, 7), dilation=(2, 2))",
    ),
    Row("Mask.neighborhood(5, stride=6)", "stride=5", "mask = Mask.neighborhood(5, stride=5)"),
    Row("Mask.from_flash(3)", "window_size=(3, 3)", "Mask.from_flash(window_size=(3, 3))"),
    Row(
        "Mask.causal().to_flash()",
        "Mask(Axis(None, 0, causal=True, align='bottom-right')).to_flash()",
        "window = Mask(Axis(None, 0, causal=True, align='bottom-right')).to_flash()",
        "window == (-1, 0)",
    ),
    Row(
        "Mask.neighborhood(7).to_flash()",
        "nbattn.attention(query, key, value, mask)",
        "mask = Mask.neighborhood(7)\nout = nbattn.attention(query, key, value, mask)",
        "out.shape == q.shape",
        given="query, key, value = q, k, v",
    ),
]

CALLS = [
    *[
        Row(wrong, right, f"mask = {right}", f"mask == {same}")
        for wrong, right, same in (
            ("Mask.neighborhood(7, 7)", "Mask.neighborhood((7, 7))", "Mask.neighborhood((7, 7))"),
            (
                "Mask.neighborhood(7, 7)",
                "Mask.neighborhood(7, dilation=7)",
                "Mask(Axis(3, 3, dilation=7, border='shift'))",
            ),
            ("Mask.neighborhood()", "Mask.neighborhood(7)", "Mask.neighborhood(7)"),
            ("Mask.sliding_window()", "Mask.sliding_window(511)", "Mask(Axis(511, 0))"),
            ("Mask.from_flash(3, 0)", "Mask.from_flash((3, 0))", "Mask.from_flash((3, 0))"),
            (
                "Mask.from_flash(3, 0, True)",
                "Mask.from_flash((3, 0), True)",
                "Mask.from_flash((3, 0), causal=True)",
            ),
            (
                "Mask.sliding_window(3, 3, 'top-left')",
                "Mask.sliding_window(3, 3, align='top-left')",
                "Mask(Axis(3, 3, align='top-left'))",
            ),
            (
                "Mask.from_transformers((3, 0))",
                "Mask.from_flash((3, 0))",
                "Mask.from_flash((3, 0))",
            ),
            (
                "Mask(Axis(3, 0), rank=2)",
                "Mask(Axis(3, 0), Axis(3, 0))",
                "Mask(Axis(3, 0), Axis(3, 0))",
            ),
            ("Mask(axes=[Axis(3, 0)])", "Mask(Axis(3, 0))", "Mask(Axis(3, 0))"),
            (
                "Mask(Axis(3, 3), dilation=2)",
                "Mask(Axis(3, 3, dilation=2))",
                "Mask(Axis(3, 3, dilation=2))",
            ),
            ("Mask(left=3, right=0)", "Mask(Axis(3, 0))", "Mask(Axis(3, 0))"),
            ("Mask(rank=2)", "Mask.full(rank=2)", "Mask.full(2)"),
            ("Mask(kernel_size=3)", "Mask.neighborhood(kernel_size=3)", "Mask.neighborhood(3)"),
        )
    ],
    *[
        Row(f"Mask.{name}({wrong})", right, f"mask = Mask.{name}({right})", f"mask == {same}")
        for name, wrong, right, same in (
            ("sliding_window", "(3, 0)", "left=3, right=0", "Mask(Axis(3, 0))"),
            ("from_cudnn", "(3, 0)", "left_bound=3, right_bound=0", "Mask.from_cudnn(3, 0)"),
            ("full", "(8, 8)", "rank=2", "Mask.full(2)"),
            ("causal", "rank=4", "rank=3", "Mask(*[Axis(causal=True)] * 3)"),
            ("causal", "dims=2", "rank=2", "Mask(*[Axis(causal=True)] * 2)"),
        )
    ],
    *[
        Row(
            f"Mask.neighborhood({sizes}, rank={rank})",
            right,
            f"mask = Mask.neighborhood({fixed})",
            f"mask == Mask.neighborhood({same})",
        )
        for sizes, rank, right, fixed, same in (
            ("(7, 5)", 3, "rank=2", "(7, 5), rank=2", "(7, 5)"),
            ("(7, 5)", 3, "kernel_size=(7, 5, 5)", "kernel_size=(7, 5, 5), rank=3", "(7, 5, 5)"),
            ("(7,) * 4", 2, "kernel_size=(7, 7)", "kernel_size=(7, 7), rank=2", "(7, 7)"),
            (
                "7, dilation=(1, 2)",
                1,
                "rank=2",
                "7, dilation=(1, 2), rank=2",
                "(7, 7), dilation=(1, 2)",
            ),
        )
    ],
]

LENGTHS = [
    Row("mask.dense(6.0)", "query_space=6", "mask.dense(query_space=6)"),
    Row("mask.draw(-1)", "query_space=0", "mask.draw(query_space=0)"),
    Row(
        "Mask.neighborhood(3).dense((6, 8))",
        "Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift'))",
        "Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift')).dense((6, 8))",
    ),
    Row(
        "Mask(Axis(1), Axis(2)).dense(6)",
        "query_space=(6, 6)",
        "Mask(Axis(1), Axis(2)).dense(query_space=(6, 6))",
    ),
    Row(
        "mask.dense(40000)",
        "nbattn.plan(mask, (1, 40000, 1, 64), (1, 40000, 1, 64)).verify()",
        "out = nbattn.plan(mask, (1, 40000, 1, 64), (1, 40000, 1, 64)).verify()",
        "out",
    ),
    Row(
        "mask.draw(2**22)",
        "mask.draw((1024,), (1024,))",
        "text = mask.draw((1024,), (1024,))",
        "'1024 queries' in text",
    ),
    Row(
        "attention(q[:, -1:], k, v, mask)",
        "Mask(Axis(3, 0, align='bottom-right'))",
        "out = attention(q[:, -1:], k, v, Mask(Axis(3, 0, align='bottom-right')))",
        "torch.allclose(out, attention(q, k, v, mask)[:, -1:], atol=1e-6)",
    ),
    Row(
        "attention(query, key, value, Mask(Axis(2, 1, border='wrap')))",
        "nbattn.attention(query, torch.cat([key[:, 10:], key, key[:, :1]], 1), "
        "torch.cat([value[:, 10:], value, value[:, :1]], 1), "
        "Mask(Axis(2, 1, align='top-left', offset=2)))",
        "out = nbattn.attention(query, torch.cat([key[:, 10:], key, key[:, :1]], 1), "
        "torch.cat([value[:, 10:], value, value[:, :1]], 1), "
        "Mask(Axis(2, 1, align='top-left', offset=2)))",
        "torch.allclose(out, ring[:, :5], atol=1e-6)",
        given="query, key, value = q[:, :5], k, v\n"
        "ring = attention(q, k, v, Mask(Axis(2, 1, border='wrap')))",
    ),
    Row(
        "Mask(Axis(1, 1, border='wrap', dilation=2)).dense(15)",
        "Mask(Axis(1, 1, dilation=3, border='wrap'))",
        "Mask(Axis(1, 1, dilation=3, border='wrap')).dense(15)",
    ),
]

# A window with the rest of what the call said.
WHOLE = [
    Row(call, pasted, f"out = {pasted}", f"out == {means}")
    for call, pasted, means in (
        (
            "Axis(kernel_size=8, dilation=2, stride=2)",
            "Axis(4, 3, dilation=2, stride=2, border='shift')",
            "Mask.neighborhood(8, dilation=2, stride=2).axes[0]",
        ),
        (
            "Axis(kernel_size=7, is_causal=True)",
            "Axis(6, 0, causal=True)",
            "Mask.neighborhood(7, is_causal=True).axes[0]",
        ),
        (
            "Axis(left=3, rigth=3, dilaton=2)",
            "Axis(left=3, right=3, dilation=2)",
            "Axis(3, 3, dilation=2)",
        ),
        (
            "Mask.sliding_window(window_size=(4, 0), dilation=2)",
            "Mask(Axis(4, 0, dilation=2, align='bottom-right'))",
            "Mask.sliding_window(4, dilation=2, align='bottom-right')",
        ),
        (
            "Mask.neighborhood((7, 5), border='wrap')",
            "Mask(Axis(3, 3, border='wrap'), Axis(2, 2, border='wrap'))",
            "Mask(Axis(3, 3, border='wrap'), Axis(2, 2, border='wrap'))",
        ),
        (
            "Mask.neighborhood(7, ndim=2)",
            "Mask.neighborhood(7, rank=2)",
            "Mask.neighborhood((7, 7))",
        ),
        (
            "Mask.sliding_window(4, causal=True)",
            "Mask(Axis(4, 0, causal=True))",
            "Mask(Axis(4, causal=True))",
        ),
        (
            "Mask.from_cudnn(left=512, right=0)",
            "Mask.from_cudnn(left_bound=512, right_bound=0)",
            "Mask.from_cudnn(512, 0)",
        ),
        (
            "Mask.from_flash(window_size_left=3, window_size_right=0)",
            "Mask.from_flash(window_size=(3, 0))",
            "Mask.from_flash((3, 0))",
        ),
        (
            "Mask(Mask.causal(), Axis(3, 3))",
            "Mask(Axis(None, 0, causal=True), Axis(3, 3))",
            "Mask(*Mask.causal().axes, Axis(3, 3))",
        ),
        ("Mask('causal')", "Mask.causal()", "Mask.causal()"),
    )
]
VALUES = [
    Row(
        'Mask.from_flash("causal")',
        "window_size=(-1, -1), causal=True",
        "out = Mask.from_flash(window_size=(-1, -1), causal=True)",
        "out == Mask.causal('bottom-right')",
    ),
    Row(
        "Axis(float('inf'), 0)",
        "left=None",
        "out = Axis(left=None, right=0)",
        "out == Axis(None, 0)",
    ),
    Row("Axis(torch.tensor([3, 1]))", "left=3, right=1", "out = Axis(left=3, right=1)"),
    Row("mask.dense(q)", "query_space=(12,)", "out = mask.dense(query_space=(12,))"),
    Row("mask.dense(q.shape)", "query_space=(12,)", "out = mask.dense(query_space=(12,))"),
]

ROWS = AXES + PREFIXES + MASKS + CALLS + LENGTHS + WHOLE + VALUES
