"""Fixes of the arguments of `attention`, `plan`, `Plan.run`, `merge` and `key_range_from`."""

from fixes.row import Row

QKV = "query, key, value = q, k, v"
SDPA = (
    "torch.nn.functional.scaled_dot_product_attention(query.flatten(1, -3).transpose(1, 2), "
    "key.flatten(1, -3).transpose(1, 2), value.flatten(1, -3).transpose(1, 2), "
    "attn_mask={}, enable_gqa=True).transpose(1, 2).unflatten(1, query.shape[1:-2])"
)
ALLOWED = "torch.from_numpy(mask.dense(query.shape[1:-2], key.shape[1:-2])).to(query.device)"
EQUAL = "torch.allclose(out, {}, atol=1e-5)"
WINDOW = "torch.from_numpy(mask.dense(12))"


def argument(wrong: str, right: str, means: str = "out.shape == q.shape", given: str = "") -> Row:
    """A row for an argument of attention over one axis."""
    return Row(
        f"attention(q, k, v, mask, {wrong})",
        right,
        f"out = attention(q, k, v, mask, {right})",
        means,
        f"{QKV}\n{given}",
    )


def whole(wrong: str, right: str, means: str, given: str = "") -> Row:
    """A row whose fix is a whole expression."""
    return Row(wrong, right, f"out = {right}", means, f"{QKV}\n{given}")


HEADS_FIRST = (
    "nbattn.attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), "
    "mask).transpose(1, 2)"
)
WORDS = [
    argument("qk_scale=0.5", "scale=0.5", EQUAL.format("attention(q, k, v, mask, scale=0.5)")),
    argument("softmax_scale=0.5", "scale=0.5"),
    argument("logits_soft_cap=30.0", "softcap=30.0"),
    argument("s_aux=sink", "sink=s_aux", given="sink = s_aux = torch.zeros(4)"),
    argument("return_softmax_lse=True", "return_lse=True", "len(out) == 2"),
    argument("retrun_lse=True", "return_lse=True", "len(out) == 2"),
    whole(
        "attention(q, k, v, mask, dropout_p=0.1)",
        "torch.nn.functional.dropout(nbattn.attention(query, key, value, mask), 0.1)",
        "out.shape == q.shape",
    ),
    whole(
        "attention(q, k, v, mask, attn_drop=0.0)",
        "nbattn.attention(query, key, value, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    whole(
        "attention(q, k, v, attn_mask=attn_mask)",
        SDPA.format("attn_mask"),
        EQUAL.format("attention(q, k, v, mask)"),
        f"attn_mask = {WINDOW}",
    ),
    whole(
        "attention(q, k, v, mask, bias=bias)",
        SDPA.format(f"bias.masked_fill(~{ALLOWED}, float('-inf'))"),
        EQUAL.format("attention(q, k, v, mask)"),
        "bias = torch.zeros(4, 12, 12)",
    ),
    Row(
        "attention(q, k, v, is_causal=True)",
        'mask=Mask.causal("top-left")',
        'out = attention(q, k, v, mask=Mask.causal("top-left"))',
        EQUAL.format("attention(q, k, v, Mask.causal())"),
    ),
    Row(
        "attention(q, k, v, Mask(Axis(3, 3)), is_causal=True)",
        "mask=Mask(Axis(3, 0, causal=True))",
        "out = attention(q, k, v, mask=Mask(Axis(3, 0, causal=True)))",
    ),
    Row(
        "attention(q, k, v, window_size=(3, 0))",
        "mask=Mask.from_flash((3, 0))",
        "out = attention(q, k, v, mask=Mask.from_flash((3, 0)))",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    Row(
        "attention(q, k, v, sliding_window=4)",
        "mask=Mask.from_transformers(4)",
        "out = attention(q, k, v, mask=Mask.from_transformers(4))",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    Row(
        "attention(image, image, image, kernel_size=[3, 5])",
        "mask=Mask.neighborhood((3, 5))",
        "out = attention(image, image, image, mask=Mask.neighborhood((3, 5)))",
    ),
    Row(
        "nbattn.plan(query_shape=(1, 64, 2, 16), mask=None, window_size=(3, 0))",
        "mask=Mask.from_flash((3, 0))",
        "nbattn.plan(query_shape=(1, 64, 2, 16), mask=Mask.from_flash((3, 0)))",
    ),
    whole(
        'attention(query, key, value, mask, layout="BHND")',
        HEADS_FIRST,
        EQUAL.format("attention(q, k, v, mask).transpose(1, 2)"),
        "query, key, value = (x.transpose(1, 2) for x in (q, k, v))",
    ),
    argument(
        "key_padding_mask=key_padding_mask",
        "key_range=nbattn.key_range_from(~key_padding_mask)",
        EQUAL.format("attention(q, k, v, mask, key_range=[[0, 9], [0, 12]])"),
        "key_padding_mask = torch.zeros(2, 12, dtype=torch.bool)\nkey_padding_mask[0, 9:] = True",
    ),
    argument(
        "attention_mask=attention_mask",
        "key_range=nbattn.key_range_from(attention_mask.bool())",
        given="attention_mask = torch.ones(2, 12, dtype=torch.int64)",
    ),
    whole(
        "attention(query, key, value, mask, cu_seqlens=cu_seqlens)",
        "torch.cat([nbattn.attention(query[None, a:b], key[None, a:b], value[None, a:b], mask)[0] "
        "for a, b in zip(cu_seqlens[:-1], cu_seqlens[1:])])",
        EQUAL.format("attention(q, k, v, mask).flatten(0, 1)"),
        "query, key, value = (x.flatten(0, 1) for x in (q, k, v))\ncu_seqlens = [0, 12, 24]",
    ),
]

WORDS += [
    *[
        Row(
            f"attention({tensors}, {wrong})",
            f"mask={right}",
            f"out = attention({tensors}, mask={right})",
            EQUAL.format(f"attention({tensors}, {same})"),
            "one = q[:, -1:]",
        )
        for tensors, wrong, right, same in (
            ("one, k, v", "causal=True", "Mask.from_flash(causal=True)", "Mask.full()"),
            (
                "q, k, v",
                "causal=True, window_size=(3, 3)",
                "Mask.from_flash((3, 3), causal=True)",
                "mask",
            ),
            ("q, k, v", "window_size=None", "Mask.from_flash((-1, -1))", "Mask.full()"),
            (
                "q, k, v",
                "sliding_window=2, is_causal=False",
                "Mask.from_transformers(2, causal=False)",
                "Mask(Axis(2, 2))",
            ),
            (
                "q, k, v",
                "kernel_size=3, dilation=2, is_causal=True",
                "Mask.neighborhood(kernel_size=3, dilation=2, is_causal=True)",
                "Mask(Axis(2, 0, dilation=2, causal=True))",
            ),
        )
    ],
    Row(
        "attention(query, query, query, kernel_size=None)",
        "mask=Mask.full(rank=query.dim() - 3)",
        "attention(query, query, query, mask=Mask.full(rank=query.dim() - 3))",
        given="query = image",
    ),
    whole(
        "attention(query, key, value, mask, layout='NCHW')",
        "nbattn.attention(query.movedim(1, -1).unsqueeze(-2), key.movedim(1, -1).unsqueeze(-2), "
        "value.movedim(1, -1).unsqueeze(-2), mask).squeeze(-2).movedim(-1, 1)",
        "out.shape == query.shape",
        "mask = Mask.neighborhood((3, 3))\nquery = key = value = torch.randn(2, 16, 6, 8)",
    ),
    whole(
        "attention(query, key, value, mask, layout='NHWC')",
        "nbattn.attention(query.unsqueeze(-2), key.unsqueeze(-2), value.unsqueeze(-2), "
        "mask).squeeze(-2)",
        "out.shape == query.shape",
        "mask = Mask.neighborhood((3, 3))\nquery = key = value = torch.randn(2, 6, 8, 16)",
    ),
    whole(
        "attention(query, key, value, mask, tensor_layout='HND')",
        "nbattn.attention(query.transpose(0, 1)[None], key.transpose(0, 1)[None], "
        "value.transpose(0, 1)[None], mask)[0].transpose(0, 1)",
        EQUAL.format("attention(q, k, v, mask)[0].transpose(0, 1)"),
        "query, key, value = (x[0].transpose(0, 1) for x in (q, k, v))",
    ),
    whole(
        "attention(query, key, value, mask, qkv_format='thd')",
        "torch.cat([nbattn.attention(query[None, a:b], key[None, a:b], value[None, a:b], mask)[0] "
        "for a, b in zip(cu_seqlens[:-1], cu_seqlens[1:])])",
        EQUAL.format("attention(q, k, v, mask).flatten(0, 1)"),
        "query, key, value = (x.flatten(0, 1) for x in (q, k, v))\ncu_seqlens = [0, 12, 24]",
    ),
    argument(
        "seq_lens=seq_lens",
        "key_range=nbattn.key_range_from(torch.arange(key.shape[1], device=key.device) < "
        "torch.as_tensor(seq_lens, device=key.device)[:, None])",
        EQUAL.format("attention(q, k, v, mask, key_range=[[0, 9], [0, 12]])"),
        "seq_lens = [9, 12]",
    ),
    whole(
        "attention(query, key, value, mask, kernel_options={})",
        "nbattn.attention(query, key, value, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    Row(
        "attention(q, k, v, mask, additional_keys=k, additional_values=v)",
        "extra_key=additional_keys",
        "attention(q, k, v, mask, extra_key=additional_keys, extra_value=v)",
        given="additional_keys = k",
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
    mask("7", "Mask.neighborhood((7,))", "Mask.neighborhood(7)"),
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
    "{}(*torch.meshgrid(*[torch.arange(n, device=query.device) for n in (query.shape[0], "
    "query.shape[-2], query[0, ..., 0, 0].numel(), key[0, ..., 0, 0].numel())], indexing='ij'))"
)
PADDING = "padding = torch.ones(2, 12, dtype=torch.bool)\npadding[0, -1] = False\n"
PADDED = EQUAL.format("attention(q, k, v, Mask.full(), key_range=[[0, 11], [0, 12]])")
MASKS += [
    *[
        Row(
            "attention(query, key, value, mask)",
            SDPA.format(CREATED.format(function)),
            f"out = {SDPA.format(CREATED.format(function))}",
            EQUAL.format("attention(q, k, v, Mask.causal())"),
            f"{QKV}\nmask = lambda b, h, i, j: i >= j\n{given}",
        )
        for function, given in (
            ("mask", ""),
            (
                "mask.mask_mod",
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

SHAPES = [
    Row(
        "attention(image, image, image, Mask.neighborhood(5))",
        "mask=Mask.neighborhood((5, 5))",
        "out = attention(image, image, image, mask=Mask.neighborhood((5, 5)))",
    ),
    Row(
        "attention(query, key, value, Mask.neighborhood((3, 3)))",
        "query.unflatten(1, (3, 4))",
        "out = attention(query.unflatten(1, (3, 4)), key.unflatten(1, (3, 4)), "
        "value.unflatten(1, (3, 4)), Mask.neighborhood((3, 3)))",
        given=QKV,
    ),
    Row(
        "attention(query, query, query, mask)",
        "query.unsqueeze(-2)",
        "out = attention(query.unsqueeze(-2), query.unsqueeze(-2), query.unsqueeze(-2), mask)",
        given="query = q[..., 0, :]",
    ),
    Row(
        "attention(q, key, value, mask)",
        "key.expand(2, -1, -1, -1), value.expand(2, -1, -1, -1)",
        "key, value = key.expand(2, -1, -1, -1), value.expand(2, -1, -1, -1)\n"
        "out = attention(q, key, value, mask)",
        given="key, value = k[:1], v[:1]",
    ),
    Row(
        "attention(query, k, v, mask)",
        "query.expand(2, -1, -1, -1)",
        "out = attention(query.expand(2, -1, -1, -1), k, v, mask)",
        given="query = q[:1]",
    ),
    Row(
        "attention(q, key, value, mask)",
        "key.flatten(-2).unflatten(-1, (4, -1)), value.flatten(-2).unflatten(-1, (4, -1))",
        "key, value = key.flatten(-2).unflatten(-1, (4, -1)), value.flatten(-2)"
        ".unflatten(-1, (4, -1))\nout = attention(q, key, value, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
        "key, value = k.reshape(2, 12, 8, 8), v.reshape(2, 12, 8, 8)",
    ),
    Row(
        "attention(q, k, value, mask)",
        "value.movedim(1, -2)",
        "out = attention(q, k, value.movedim(1, -2), mask)",
        EQUAL.format("attention(q, k, v, mask)"),
        "value = v.transpose(1, 2)",
    ),
    Row(
        "attention(q, key, value, mask)",
        "value.repeat_interleave(2, dim=-2)",
        "out = attention(q, key, value.repeat_interleave(2, dim=-2), mask)",
        given="key, value = k, v[..., :2, :]",
    ),
    Row(
        "attention(q[:, :7], key, value, mask)",
        "key[:, :7], value[:, :7]",
        "key, value = key[:, :7], value[:, :7]\nout = attention(q[:, :7], key, value, mask)",
        given="key, value = k, v[:, :7]",
    ),
    Row(
        "attention(query, key, v, mask)",
        "torch.nn.functional.pad(query, (0, 1)), torch.nn.functional.pad(key, (0, 1))",
        "query, key = torch.nn.functional.pad(query, (0, 1)), torch.nn.functional.pad(key, (0, 1))"
        "\nout = attention(query, key, v, Mask.full())",
        EQUAL.format("v.mean(1, keepdim=True).expand(-1, 12, -1, -1)"),
        "query, key = q[..., :0], k[..., :0]",
    ),
    whole(
        "attention(query, k, v[..., :0], mask)",
        "query.new_zeros([2, 12, 4, 0])",
        "out.shape == (2, 12, 4, 0)",
    ),
    Row(
        "attention(query, k, v, mask)",
        "query.repeat_interleave(2, dim=-2)",
        "out = attention(query.repeat_interleave(2, dim=-2), k, v, mask)",
        given="query = q[..., :2, :]",
    ),
]

NESTED = (
    "torch.nested.nested_tensor([nbattn.attention(q[None], k[None], v[None], mask)[0] "
    "for q, k, v in zip(query.unbind(), key.unbind(), value.unbind())])"
)
TENSORS = [
    argument(
        "key_range=key_range",
        "key_range=torch.as_tensor(key_range)",
        EQUAL.format("attention(q, k, v, mask, key_range=[[0, 9], [0, 12]])"),
        "key_range = torch.tensor([[[0, 9]], [[0, 12]]]).numpy()",
    ),
    Row(
        "attention(q, k, v, mask, extra_key=extra_key, extra_value=extra_value.transpose(1, 2))",
        "extra_key=extra_key.transpose(1, 2)",
        "attention(q, k, v, mask, extra_key=extra_key.transpose(1, 2), "
        "extra_value=extra_value.transpose(1, 2))",
        given="extra_key, extra_value = torch.randn(2, 2, 4, 5, 16)",
    ),
    Row(
        "attention(query, k, v, mask)",
        "torch.as_tensor(query)",
        "out = attention(torch.as_tensor(query), k, v, mask)",
        given="query = q.tolist()",
    ),
    whole(
        "attention(query, key, value, mask)",
        NESTED,
        "[len(part) for part in out.unbind()] == [12, 7]",
        "query = key = value = torch.nested.nested_tensor([q[0], q[1, :7]], layout=torch.jagged)",
    ),
    Row(
        "attention(query, k, v, mask)",
        "query.to_dense()",
        "out = attention(query.to_dense(), k, v, mask)",
        given="query = q.to_sparse()",
    ),
    Row(
        "attention(query, key, query, mask)",
        "key.to('meta')",
        "attention(query, key.to('meta'), query, mask)",
        given="query, key = q.to('meta'), k",
    ),
    Row(
        "attention(query, key, v, mask)",
        "key.to(query.dtype)",
        "attention(query, key.to(query.dtype), v, mask)",
        given="query, key = q, k.double()",
    ),
    Row(
        "attention(query, key, value, mask)",
        "query.float(), key.float(), value.float()",
        "out = attention(query.float(), key.float(), value.float(), mask)",
        given="query = key = value = torch.ones(1, 4, 2, 8, dtype=torch.int32)",
    ),
    argument("scale='0.5'", "scale=0.5"),
    argument("scale=scale", "scale=scale.item()", given="scale = torch.tensor(0.5)"),
    whole(
        "attention(q, k, v, mask, scale=scale)",
        "nbattn.attention(query * scale.reshape(-1, 1), key, value, mask, scale=1.0)",
        EQUAL.format("attention(q, k, v, mask, scale=0.5)"),
        "scale = torch.full((4,), 0.5, requires_grad=True)",
    ),
    argument("scale=float('nan')", "scale=None"),
    argument("softcap=0", "softcap=None"),
    argument("scale=1e30, softcap=1e-30", "softcap=1.0"),
    argument("return_lse=1", "return_lse=True", "len(out) == 2"),
    argument("sink=0.5", "sink=torch.full((4,), 0.5, device=query.device)"),
    argument("sink=sink", "sink=sink.flatten().expand(4)", given="sink = torch.zeros(1, 1)"),
    argument("sink=sink", "sink=sink.reshape(4)", given="sink = torch.zeros(4, 1)"),
    argument("sink=sink", "sink=sink.float()", given="sink = torch.zeros(4, dtype=torch.int32)"),
    argument(
        "key_range=key_range",
        "key_range=nbattn.key_range_from(key_range)",
        given="key_range = torch.ones(2, 12, dtype=torch.bool)",
    ),
    argument(
        "key_range=key_range", "key_range=key_range.int()", given="key_range = torch.zeros(2, 1, 2)"
    ),
    argument("key_range='all'", "key_range=None", given="key_range = None"),
    argument(
        "key_range=key_range",
        "key_range=key_range.expand(2, 1, 2)",
        given="key_range = torch.tensor([[[0, 12]]])",
    ),
    argument(
        "extra_value=extra_value",
        "extra_value=None",
        given="extra_value = torch.zeros(2, 3, 4, 16)",
    ),
    Row(
        "attention(q, k, v, mask, extra_key=extra_key, extra_value=extra_value)",
        "extra_value=extra_value[:, :3]",
        "attention(q, k, v, mask, extra_key=extra_key, extra_value=extra_value[:, :3])",
        given="extra_key, extra_value = torch.zeros(2, 3, 4, 16), torch.zeros(2, 5, 4, 16)",
    ),
    Row(
        "attention(q, k, v, mask, extra_key=extra_key, extra_value=extra_value)",
        "extra_key=extra_key.expand(2, 3, 4, 16)",
        "extra_key=extra_key.expand(2, 3, 4, 16)\nattention(q, k, v, mask, extra_key=extra_key,"
        "extra_value=extra_value)",
        given="extra_key, extra_value = torch.zeros(1, 3, 4, 16), torch.zeros(2, 3, 4, 16)",
    ),
    argument("require='tile'", "require=('tile',)"),
    argument("require=None", "require=()"),
    argument("require=('tile', 3)", "require=('tile',)"),
]

PLAN = "plan = nbattn.plan(mask, query.shape, dtype=query.dtype, device='cpu')"


def run(wrong: str, right: str, given: str = "") -> Row:
    """A row for a plan that is for other tensors."""
    fixed = f"plan = {right}\nout = plan.run(query, key, value{', ' * bool(wrong)}{wrong})"
    return Row(
        f"plan.run(query, key, value{', ' * bool(wrong)}{wrong})",
        right,
        fixed,
        given=f"{QKV}\n{PLAN}\n{given}",
    )


NEW = "nbattn.plan(mask, [2, 12, 4, 16], [2, 12, 4, 16], {}dtype='float32', device='cpu')"
PLANS = [
    Row(
        "nbattn.plan(mask, query)",
        "query_shape=query.shape",
        "plan = nbattn.plan(mask, query_shape=query.shape)",
        given=QKV,
    ),
    Row(
        "nbattn.plan(mask, ())",
        "query_shape=query.shape",
        "plan = nbattn.plan(mask, query_shape=query.shape)",
        given=QKV,
    ),
    Row(
        "nbattn.plan(mask, (1, 64.0, 2, 16))",
        "query_shape=(1, 64, 2, 16)",
        "nbattn.plan(mask, query_shape=(1, 64, 2, 16))",
    ),
    Row(
        "nbattn.plan(mask, q.shape, value_dim='16')",
        "value_dim=16",
        "nbattn.plan(mask, q.shape, value_dim=16)",
    ),
    Row(
        "nbattn.plan(mask, q.shape, extra_keys=-1)",
        "extra_keys=0",
        "nbattn.plan(mask, q.shape, extra_keys=0)",
    ),
    Row(
        "nbattn.plan(mask, q.shape, dtype=float)",
        "dtype=torch.float32",
        "nbattn.plan(mask, q.shape, dtype=torch.float32)",
    ),
    Row(
        "nbattn.plan(mask, q.shape, backend=None)",
        'backend="auto"',
        'nbattn.plan(mask, q.shape, backend="auto")',
    ),
    Row(
        "nbattn.plan(mask, q.shape, device=3)",
        'device="cuda:3"',
        'nbattn.plan(mask, q.shape, device="cuda:3")',
        given="hopper = nbattn.plan(mask, q.shape, device='sm_90').request.device\n"
        "monkeypatch.setattr('nbattn.planner.devices.device_info', lambda device: hopper)",
    ),
    Row(
        "plan.run(query, key, value, mask=mask)",
        "plan.run(query, key, value)",
        "out = plan.run(query, key, value)",
        given=f"{QKV}\n{PLAN}",
    ),
    Row(
        "torch.func.vmap(plan.run, (None, 0, 0))(query, k[None], v[None])",
        "nbattn.attention(query, key, value, mask)",
        "torch.func.vmap(lambda key, value: nbattn.attention(query, key, value, mask))"
        "(k[None], v[None])",
        given=f"{QKV}\n{PLAN}",
    ),
    Row(
        "plan.run(query, query, query)",
        "nbattn.plan(mask, [2, 12, 4, 16], [2, 12, 4, 16], dtype='float32', device='meta')",
        "nbattn.plan(mask, [2, 12, 4, 16], [2, 12, 4, 16], dtype='float32', device='meta')",
        given=f"{QKV}\n{PLAN}\nquery = query.to('meta')",
    ),
    run("sink=torch.zeros(4)", NEW.format("sink=True, ")),
    run("softcap=30.0", NEW.format("softcap=30.0, ")),
    run("", NEW.format("training=True, "), "query.requires_grad_()"),
]

JOINED = "out, lse = nbattn.merge(outputs, lses)"
LSES = "outputs, lses = [q, q], [q[..., 0], q[..., 0]]"
MERGES = [
    Row(
        "nbattn.merge(out, lse)",
        "nbattn.merge([out], [lse])",
        "nbattn.merge([out], [lse])",
        given="out, lse = q, q[..., 0]",
    ),
    Row(
        "nbattn.merge(outputs, lses[:1])",
        "nbattn.merge(outputs[:1], lses[:1])",
        "nbattn.merge(outputs[:1], lses[:1])",
        given=LSES,
    ),
    Row(
        "nbattn.merge(outputs, lses)",
        "nbattn.merge([*map(torch.as_tensor, outputs)], [*map(torch.as_tensor, lses)])",
        "nbattn.merge([*map(torch.as_tensor, outputs)], [*map(torch.as_tensor, lses)])",
        given="outputs, lses = [q.numpy()], [q[..., 0].numpy()]",
    ),
    Row(
        "nbattn.merge(outputs, lses)",
        "lses=[lse.movedim(1, -1) for lse in lses]",
        "nbattn.merge(outputs, lses=[lse.movedim(1, -1) for lse in lses])",
        given="outputs, lses = [q, q], [q[..., 0].transpose(1, 2)] * 2",
    ),
    Row(
        "nbattn.merge(outputs, lses)",
        "torch.cat(outputs, dim=1), torch.cat(lses, dim=1)",
        "out, lse = torch.cat(outputs, dim=1), torch.cat(lses, dim=1)",
        "out.shape[:-1] == lse.shape",
        given="outputs, lses = [q, q[:, :5]], [q[..., 0], q[:, :5, :, 0]]",
    ),
    Row(
        "nbattn.merge(outputs, lses)",
        "outputs=[part.to(outputs[0]) for part in outputs]",
        "nbattn.merge(outputs=[part.to(outputs[0]) for part in outputs], lses=lses)",
        given="outputs, lses = [q, q.double()], [q[..., 0], q[..., 0]]",
    ),
    Row(
        "nbattn.merge(outputs, lses)",
        "lses=[lse.to(outputs[0].device) for lse in lses]",
        "nbattn.merge(outputs, lses=[lse.to(outputs[0].device) for lse in lses])",
        given="outputs, lses = [q.to('meta')], [q[..., 0]]",
    ),
]

HOLES = (
    "padding = torch.rand(2, 12) > 0.3\npadding[:, 0] = padding[:, -1] = True\n"
    "padding[0, 5] = False\nmask = Mask.full()"
)
RANGES = [
    Row(
        "nbattn.key_range_from(padding)",
        "nbattn.key_range_from(torch.as_tensor(padding).bool())",
        "nbattn.key_range_from(torch.as_tensor(padding).bool())",
        given="padding = [[1, 1, 0]]",
    ),
    Row(
        "nbattn.key_range_from(padding)",
        "nbattn.key_range_from(padding.bool())",
        "ranges = nbattn.key_range_from(padding.bool())",
        "ranges.tolist() == [[[0, 2]]]",
        given="padding = torch.tensor([[1, 1, 0]])",
    ),
    Row(
        "nbattn.key_range_from(padding)",
        "nbattn.key_range_from(padding[None])",
        "ranges = nbattn.key_range_from(padding[None])",
        given="padding = torch.tensor([True, False])",
    ),
    whole(
        "nbattn.key_range_from(padding)",
        SDPA.format(f"({ALLOWED} & padding.flatten(1)[:, None, None])"),
        "not torch.allclose(out, attention(q, k, v, mask))",
        HOLES,
    ),
]

ROWS = WORDS + MASKS + SHAPES + TENSORS + PLANS + MERGES + RANGES
