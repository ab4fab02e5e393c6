"""Fixes of what is added to scores by position: tables, slopes, and ranges of extra keys."""

from fixes.row import QKV, Row, argument

SAME = "torch.allclose(out, {}, atol=1e-5)"
# attention with a matrix that is added to the scores, by torch's own operator
DENSE = (
    "torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), "
    "v.transpose(1, 2), attn_mask={}).transpose(1, 2)"
)
SWIN = "nbattn.integrations.swin.relative_bias_from(relative_bias, (2, 4))"
STEP = "(torch.arange(12) - torch.arange(12)[:, None])"


def table(size: int, axes: int = 1) -> str:
    """The code of a table."""
    return f"relative_bias = torch.randn(4, {', '.join([str(size)] * axes)})"


def masked(mask: str, fixed: str, means: str, given: str, tensors: str = "q, k, v") -> Row:
    """A row whose fix is another mask."""
    return Row(
        f"attention({tensors}, {mask}, relative_bias=relative_bias)",
        fixed,
        f"out = attention({tensors}, {fixed}, relative_bias=relative_bias)",
        means,
        f"query, key, value = {tensors}\n{given}",
    )


def with_bias(allowed: str, size: int) -> str:
    """The code of the result with a table of an odd size, read by the step of each pair."""
    at = f"({STEP} + {size // 2}).clamp(0, {size - 1})"
    return SAME.format(
        DENSE.format(f"relative_bias[:, {at}].masked_fill(~({allowed}), float('-inf'))")
    )


CIRCLE = "torch.tensor([[(j - i + {0}) % 12 - {0} for j in range(12)] for i in range(12)])"
MERGED = (
    "nbattn.merge(*zip(nbattn.attention(query, key, value, Mask(Axis(3, 0, causal=True)), "
    "relative_bias=relative_bias, key_range=[[2, key.shape[1]]] * key.shape[0], "
    "return_lse=True), nbattn.attention(query, key[:, :2], value[:, :2], Mask.causal(0), "
    "return_lse=True)))[0]"
)
TABLES = [
    masked(
        "Mask.causal()", "Mask(Axis(11, 0, causal=True))", with_bias(f"{STEP} <= 0", 23), table(23)
    ),
    masked(
        "Mask(Axis(causal=True), Axis(causal=True))",
        "Mask(Axis(5, 0, causal=True), Axis(7, 0, causal=True))",
        SAME.format("attention(image, image, image, Mask(Axis(causal=True), Axis(causal=True)))"),
        "relative_bias = torch.zeros(4, 11, 15)",
        "image, image, image",
    ),
    Row(
        "attention(q, k, v, Mask(Axis(9, 9, border='wrap')), relative_bias=relative_bias)",
        "Mask(Axis(9, 2, border='wrap')), relative_bias=relative_bias[:, 7:30]",
        "out = attention(q, k, v, Mask(Axis(9, 2, border='wrap')), "
        "relative_bias=relative_bias[:, 7:30])",
        SAME.format(DENSE.format(f"relative_bias[:, {CIRCLE.format(9)} + 18]")),
        table(37),
    ),
    masked(
        "Mask(Axis(2, 2, stride=8))",
        "Mask(Axis(2, 2, stride=5))",
        "out.shape == q.shape",
        table(9),
    ),
    masked(
        "Mask(Axis(1, 1, border='shift', offset=2))",
        "Mask(Axis(1, 1, offset=2))",
        "out.shape == q.shape",
        table(5),
    ),
    masked(
        "Mask(Axis(1, 1, prefix=2), Axis(1, 1))",
        "Mask(Axis(1, 1), Axis(1, 1))",
        "out.shape == image.shape",
        table(5, 2),
        "image, image, image",
    ),
    Row(
        "attention(query, key, value, Mask(Axis(3, 0, prefix=2)), relative_bias=relative_bias)",
        "nbattn.attention(query, key, value, Mask(Axis(3, 0)), relative_bias=relative_bias, "
        "key_range=[[2, key.shape[1]]] * key.shape[0], extra_key=key[:, :2], "
        "extra_value=value[:, :2])",
        "out = nbattn.attention(query, key, value, Mask(Axis(3, 0)), relative_bias=relative_bias, "
        "key_range=[[2, key.shape[1]]] * key.shape[0], extra_key=key[:, :2], "
        "extra_value=value[:, :2])",
        SAME.format(
            DENSE.format(
                f"torch.where(torch.arange(12) < 2, 0, relative_bias[:, ({STEP} + 3).clamp(0, 6)]"
                f".masked_fill(({STEP} > 0) | ({STEP} < -3), float('-inf')))"
            )
        ),
        f"{QKV}\n{table(7)}",
    ),
    Row(
        "attention(query, key, value, Mask(Axis(3, causal=True, prefix=2)), "
        "relative_bias=relative_bias)",
        MERGED,
        f"out = {MERGED}",
        SAME.format(
            DENSE.format(
                f"torch.where((torch.arange(12) < 2) & ({STEP} <= 0), 0, "
                f"relative_bias[:, ({STEP} + 3).clamp(0, 6)]"
                f".masked_fill(({STEP} > 0) | ({STEP} < -3), float('-inf')))"
            )
        ),
        f"{QKV}\n{table(7)}",
    ),
    argument(
        "relative_bias=relative_bias",
        "relative_bias=relative_bias.expand(4, 7)",
        SAME.format("attention(q, k, v, mask, relative_bias=torch.stack([relative_bias] * 4))"),
        "relative_bias = torch.randn(7)",
    ),
    argument(
        "relative_bias=relative_bias",
        "relative_bias=relative_bias.movedim(-1, 0)",
        SAME.format("attention(q, k, v, mask, relative_bias=relative_bias.T)"),
        "relative_bias = torch.randn(7, 4)",
    ),
    Row(
        "attention(image, image, image, windows, relative_bias=relative_bias)",
        f"relative_bias={SWIN}",
        f"out = attention(image, image, image, windows, relative_bias={SWIN})",
        SAME.format(f"swin.window_attention(image, image, image, {SWIN}, window=(2, 4))"),
        "from nbattn.integrations import swin; windows = swin.mask((2, 4))\n"
        "relative_bias = torch.randn(21, 4)",
    ),
    argument(
        "relative_bias=relative_bias",
        "relative_bias=relative_bias.float()",
        SAME.format("attention(q, k, v, mask)"),
        "relative_bias = torch.zeros(4, 7, dtype=torch.int64)",
    ),
]
SLOPES = [
    argument(
        "alibi_slopes=alibi_slopes",
        "alibi_slopes=alibi_slopes.flatten()",
        SAME.format("attention(q, k, v, mask, alibi_slopes=alibi_slopes[:, 0, 0])"),
        "alibi_slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]).reshape(4, 1, 1)",
    ),
    argument(
        "alibi_slopes=alibi_slopes",
        "alibi_slopes=alibi_slopes.float()",
        SAME.format("attention(q, k, v, mask, alibi_slopes=torch.full((4,), 0.5))"),
        "alibi_slopes = torch.full((4,), 0.5).bfloat16()",
    ),
    argument(
        "alibi_slopes=alibi_slopes",
        "alibi_slopes=alibi_slopes.detach()",
        SAME.format("attention(q, k, v, mask, alibi_slopes=torch.full((4,), 0.5))"),
        "alibi_slopes = torch.full((4,), 0.5, requires_grad=True)",
    ),
    Row(
        "attention(query, key, value, Mask.neighborhood((3, 3), dilation=(1, 2)), "
        "alibi_slopes=alibi_slopes)",
        PLANE := "nbattn.attention(query, key, value, Mask(Axis(1, 1, border='shift'), "
        "Axis(1, 1, dilation=2, border='shift')), relative_bias=-alibi_slopes.reshape(-1, 1, 1) * "
        "(torch.arange(-2, 3).abs().reshape(-1, 1) + "
        "torch.arange(-2, 3).abs().mul(2).reshape(1, -1)))",
        f"out = {PLANE}",
        "torch.allclose(out[0, 0, 0, 0], torch.softmax(torch.stack([image[0, 0, 0, 0] @ "
        "image[0, i, j, 0] / 4 - 0.5 * (i + j) for i in (0, 1, 2) for j in (0, 2, 4)]), 0) @ "
        "image[0, :3, :5:2, 0].flatten(0, 1), atol=1e-5)",
        "query = key = value = image\nalibi_slopes = torch.full((4,), 0.5)",
    ),
    Row(
        "attention(query, key, value, Mask(Axis(2, 2, border='wrap')), alibi_slopes=alibi_slopes)",
        RING := "nbattn.attention(query, key, value, Mask(Axis(2, 2, border='wrap')), "
        "relative_bias=-alibi_slopes.reshape(-1, 1) * (torch.arange(-4, 5).abs().reshape(-1)))",
        f"out = {RING}",
        "torch.allclose(out[0, 0, 0], torch.softmax(torch.stack([q[0, 0, 0] @ k[0, j, 0] / 4 - "
        "0.5 * abs(j) for j in range(-2, 3)]), 0) @ v[0, [-2, -1, 0, 1, 2], 0], atol=1e-5)",
        f"{QKV}\nalibi_slopes = torch.full((4,), 0.5)",
    ),
]
SLOPES += [
    Row(
        f"attention(query, k, v, Mask.full(), {added})",
        f"Mask(Axis({sides}align={align!r}))",
        f"out = attention(query, k, v, Mask(Axis({sides}align={align!r})), {added})",
        "torch.allclose(out[0, 0, 0], torch.softmax(torch.stack([query[0, 0, 0] @ k[0, j, 0] / 4 "
        f"{term.format(f'(j - {first})')} for j in range(12)]), 0) @ v[0, :, 0], atol=1e-5)",
        f"query = q[:, :3]\n{given}",
    )
    for align, first, far in (("top-left", 0, 11), ("bottom-right", 9, 20))
    for added, sides, term, given in (
        ("alibi_slopes=slopes", "", "- 0.5 * abs{}", "slopes = torch.full((4,), 0.5)"),
        (
            "relative_bias=relative_bias",
            f"{far}, {far}, ",
            f"+ relative_bias[0, {{}} + {2 * far}]",
            table(4 * far + 1),
        ),
    )
]
EXTRAS = "extra_key=extra, extra_value=extra, "
GIVEN = "extra = torch.randn(2, 5, 4, 16)\n"
EXTRA_RANGES = [
    *[
        Row(
            f"attention(q, k, v, mask, {EXTRAS}extra_range=extra_range)",
            fix,
            f"out = attention(q, k, v, mask, {EXTRAS}{fix})",
            SAME.format(f"attention(q, k, v, mask, {EXTRAS}extra_range={meant})"),
            f"{GIVEN}extra_range = {given}",
        )
        for fix, meant, given in (
            (
                "extra_range=nbattn.key_range_from(extra_range)[:, 0]",
                "[[0, 3], [0, 5]]",
                "torch.arange(5) < torch.tensor([[3], [5]])",
            ),
            (
                "extra_range=[[0, int(stop)] for stop in extra_range]",
                "[[0, 1], [0, 2]]",
                "torch.tensor([1, 2])",
            ),
            (
                "extra_range=[[*map(int, extra_range)]] * 2",
                "[[1, 2], [1, 2]]",
                "torch.tensor([1, 2])",
            ),
        )
    ],
    *[
        Row(
            "attention(q, k, v, mask, extra_key=extra_key, extra_value=extra_value)",
            f"extra_key=extra_key.{call}",
            f"out = attention(q, k, v, mask, extra_key=extra_key.{call}, "
            f"extra_value=extra_value.{call})",
            SAME.format(f"attention(q, k, v, mask, extra_key={meant}, extra_value={meant})"),
            "extra_key = extra_value = torch.randn(6, 4, 16)",
        )
        for call, meant in (
            ("expand(2, 6, 4, 16)", "torch.stack([extra_key] * 2)"),
            ("unflatten(0, (2, -1))", "torch.stack([extra_key[:3], extra_key[3:]])"),
        )
    ],
    argument(
        "extra_range=extra_range",
        "extra_range=None",
        SAME.format("attention(q, k, v, mask)"),
        "extra_range = torch.tensor([[0, 3], [0, 5]])",
    ),
    argument(
        f"{EXTRAS}extra_range=extra_range",
        "extra_range=extra_range.int()",
        SAME.format(f"attention(q, k, v, mask, {EXTRAS}extra_range=[[0, 3], [0, 5]])"),
        f"{GIVEN}extra_range = torch.tensor([[0.0, 3.0], [0.0, 5.0]])",
        f"{EXTRAS}extra_range=extra_range.int()",
    ),
    Row(
        f"attention(query, query, query, mask, {EXTRAS}extra_range=extra_range)",
        "extra_range=[[0, int(stop)] for stop in extra_range]",
        f"out = attention(query, query, query, mask, {EXTRAS}"
        "extra_range=[[0, int(stop)] for stop in extra_range])",
        "torch.allclose(out[:1], attention(q[:1], q[:1], q[:1], mask, extra_key=extra[:1, :3], "
        "extra_value=extra[:1, :3]), atol=1e-5)",
        "query = torch.cat([q, k[:1]])\nextra = torch.randn(3, 5, 4, 16)\n"
        "extra_range = torch.tensor([3, 5, 2])",
    ),
    argument(
        f"{EXTRAS}extra_range=extra_range",
        "extra_range=extra_range.expand(2, 2)",
        SAME.format(f"attention(q, k, v, mask, {EXTRAS}extra_range=[[0, 3], [0, 3]])"),
        f"{GIVEN}extra_range = torch.tensor([[0, 3]])",
        f"{EXTRAS}extra_range=extra_range.expand(2, 2)",
    ),
]
WORDS = [
    argument(
        "rpb=rpb",
        "relative_bias=rpb",
        with_bias(f"({STEP} <= 0) & ({STEP} >= -3)", 7),
        "rpb = relative_bias = torch.randn(4, 7)",
    ),
    argument(
        "alibi=alibi",
        "alibi_slopes=alibi",
        SAME.format("attention(q, k, v, mask)"),
        "alibi = torch.zeros(4)",
    ),
]
ROWS = TABLES + SLOPES + EXTRA_RANGES + WORDS
