"""Fixes of words that calls of attention bring from elsewhere, and of what stands for a mask."""

from fixes.row import ALLOWED, EQUAL, QKV, SDPA, Row, argument, whole

WINDOW = "torch.from_numpy(mask.dense(12))"
SEQUENCES = (
    "nbattn.attention(query, key, value, mask, grids=nbattn.grids_from({}), "
    "key_grids=nbattn.grids_from({}))"
)
HEADS_FIRST = (
    "nbattn.attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), "
    "mask).transpose(1, 2)"
)
EACH = "attention(q, k, v, mask).flatten(0, 1)"
LINES = (
    "query, key, value = (x.flatten(0, 1) for x in (q, k, v))\n"
    "cu_seqlens = cu_seqlens_q = cu_seqlens_k = [0, 12, 24]\n"
    "seqlens, segment_ids = [12, 12], torch.arange(24) // 12"
)


def of_sequences(wrong: str, right: str) -> Row:
    """A row for packed sequences, with an argument in the place of another."""
    call = "attention(query, key, value, mask, {})"
    means = EQUAL.format(EACH)
    return Row(call.format(wrong), right, f"out = {call.format(right)}", means, f"{QKV}\n{LINES}")


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
    Row(
        "attention(q, k, v, attn_mask=attn_mask)",
        "mask=Mask(Axis(3, 0))",
        "out = attention(q, k, v, mask=Mask(Axis(3, 0)))",
        EQUAL.format("attention(q, k, v, mask)"),
        f"attn_mask = {WINDOW}",
    ),
    *[
        whole(
            f"attention(q, k, v, {given}attn_bias=attn_bias)",
            SDPA.format(matrix),
            EQUAL.format(SDPA.format("both")),
            f"allowed = torch.rand(12, 12, generator=torch.Generator().manual_seed(1)) > 0.3\n"
            f"allowed |= torch.eye(12).bool()\nboth = {both}\nattn_bias = {bias}",
        )
        for given, bias, matrix, both in (
            ("", "allowed", "attn_bias", "allowed"),
            ("mask, ", "allowed", f"({ALLOWED} & attn_bias)", f"allowed & {WINDOW}"),
            (
                "mask, ",
                "torch.zeros(12, 12).masked_fill(~allowed, float('-inf'))",
                f"attn_bias.masked_fill(~{ALLOWED}, float('-inf'))",
                f"allowed & {WINDOW}",
            ),
        )
    ],
    argument(
        "attn_mask=attn_mask",
        "key_range=nbattn.key_range_from(attn_mask[:, 0, 0])",
        EQUAL.format("attention(q, k, v, mask, key_range=[[0, 9], [0, 12]])"),
        "attn_mask = torch.ones(2, 1, 1, 12, dtype=torch.bool)\nattn_mask[0, ..., 9:] = False",
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
    of_sequences("cu_seqlens=cu_seqlens", "grids=nbattn.grids_from(cu_seqlens)"),
    of_sequences(
        "max_seqlen_q=12, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens",
        "grids=nbattn.grids_from(cu_seqlens_q), key_grids=nbattn.grids_from(cu_seqlens_k)",
    ),
    of_sequences("seqlens=seqlens", "grids=seqlens"),
    of_sequences(
        "segment_ids=segment_ids",
        "grids=torch.unique_consecutive(segment_ids, return_counts=True)[1]",
    ),
    whole(
        "attention(query, key, value, mask, varlen=True)",
        SEQUENCES.format("cu_seqlens", "cu_seqlens"),
        EQUAL.format(EACH),
        LINES,
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
            ("one, k, v", "causal=True", 'Mask.causal("bottom-right")', "Mask.full()"),
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
                "Mask.neighborhood(3, dilation=2, is_causal=True)",
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
        SEQUENCES.format("cu_seqlens", "cu_seqlens"),
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

SEGMENTS = "({}[:, None, :, None] == {}[:, None, None, :])"
FLEX = (
    "torch.nn.attention.flex_attention.flex_attention(query.flatten(1, -3).transpose(1, 2), "
    "key.flatten(1, -3).transpose(1, 2), value.flatten(1, -3).transpose(1, 2), "
    "score_mod=score_mod, enable_gqa=True, block_mask=mask.to_flex(query.shape[1:-2], "
    "key.shape[1:-2], device=query.device)).transpose(1, 2).unflatten(1, query.shape[1:-2])"
)
# Words whose meaning is in another place, with what they mean.
WORDS += [
    *[
        whole(
            f"attention(q, k, v, mask, {named})",
            SDPA.format(f"({ALLOWED} & {SEGMENTS.format(queries, keys)})"),
            "torch.allclose(out[:, :7], attention(q[:, :7], k[:, :7], v[:, :7], mask), atol=1e-5) "
            "and torch.allclose(out[:, 7:], attention(q[:, 7:], k[:, 7:], v[:, 7:], mask), "
            "atol=1e-5)",
            "segment_ids = q_segment_ids = kv_segment_ids = torch.tensor([[0] * 7 + [1] * 5] * 2)",
        )
        for named, queries, keys in (
            ("segment_ids=segment_ids", "segment_ids", "segment_ids"),
            (
                "q_segment_ids=q_segment_ids, kv_segment_ids=kv_segment_ids",
                "q_segment_ids",
                "kv_segment_ids",
            ),
        )
    ],
    whole(
        "attention(query, key, value, mask, block_table=block_table)",
        "nbattn.attention(query, key[block_table].flatten(1, 2), value[block_table].flatten(1, 2), "
        "mask)",
        EQUAL.format("attention(q, k, v, mask)"),
        "block_table = torch.tensor([[1, 0, 5], [2, 4, 3]])\npages = torch.randn(2, 6, 4, 4, 16)\n"
        "for page, part in zip(pages, (k, v)): page[block_table] = part.unflatten(1, (3, 4))\n"
        "key, value = pages",
    ),
    whole(
        "attention(q, k, v, mask, score_mod=score_mod)",
        FLEX,
        EQUAL.format("attention(q, k, v, mask, scale=0.5)"),
        "import torch.nn.attention.flex_attention\nscore_mod = lambda s, b, h, i, j: s * 2",
    ),
    whole(
        "attention(query, key, value, mask, max_seqlen=12)",
        "nbattn.attention(query, key, value, mask)",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    argument(
        "padding_mask=padding_mask",
        "key_range=nbattn.key_range_from(padding_mask.bool())",
        given="padding_mask = torch.ones(2, 12, dtype=torch.int64)",
    ),
    Row(
        "attention(q=q, k=k, v=v)",
        "query=q, key=k, value=v",
        "out = attention(query=q, key=k, value=v, mask=mask)",
    ),
    *[
        Row(
            f"attention({tensors}, {wrong})",
            f"mask={right}",
            f"out = attention({tensors}, mask={right})",
            EQUAL.format(f"attention({tensors}, {same})"),
        )
        for tensors, wrong, right, same in (
            (
                "q, k, v",
                "dilation=2, mask=mask",
                "Mask(Axis(3, 0, dilation=2))",
                "Mask(Axis(3, 0, dilation=2))",
            ),
            (
                "image, image, image",
                "stride=(2, 1), mask=Mask.neighborhood((3, 3))",
                "Mask(Axis(1, 1, stride=2, border='shift'), Axis(1, 1, border='shift'))",
                "Mask.neighborhood((3, 3), stride=(2, 1))",
            ),
            (
                "q, k, v",
                "dilation=2, kernel_size=3",
                "Mask.neighborhood(3, dilation=2)",
                "Mask.neighborhood(3, dilation=2)",
            ),
            (
                "q, k, v",
                "local_window_size=2",
                "Mask(Axis(2, 2, align='top-left'))",
                "Mask(Axis(2, 2))",
            ),
            (
                "q, k, v",
                "local_window_size=(2, 1), is_causal=True",
                "Mask(Axis(2, 0, align='top-left'))",
                "Mask(Axis(2, 0))",
            ),
            ("q, k, v", "window_size=7", "Mask.neighborhood(7)", "Mask.neighborhood(7)"),
            (
                "q, k, v",
                "window_size=4",
                "Mask(Axis(3, 0, causal=True, align='bottom-right'))",
                "Mask(Axis(3, 0))",
            ),
            (
                "image, image, image",
                "kernel_size=3",
                "Mask.neighborhood((3, 3))",
                "Mask.neighborhood((3, 3))",
            ),
            (
                "image, image, image",
                "kernel_size=3, is_causal=True",
                "Mask.neighborhood((3, 3), is_causal=True)",
                "Mask(Axis(2, causal=True), Axis(2, causal=True))",
            ),
            (
                "image, image, image",
                "window_size=(3, 3)",
                "Mask.neighborhood((3, 3))",
                "Mask.neighborhood((3, 3))",
            ),
            (
                "image, image, image",
                "window_size=(3, -1)",
                "Mask(Axis(3, None, align='bottom-right'), Axis(3, None, align='bottom-right'))",
                "Mask(Axis(3, None), Axis(3, None))",
            ),
            (
                "image, image, image",
                "window_size=(3, 3), causal=True",
                "Mask(Axis(3, 0, causal=True, align='bottom-right'), "
                "Axis(3, 0, causal=True, align='bottom-right'))",
                "Mask(Axis(3, 0), Axis(3, 0))",
            ),
            (
                "image, image, image",
                "sliding_window=2",
                "Mask(Axis(2, 2, align='bottom-right'), Axis(2, 2, align='bottom-right'))",
                "Mask(Axis(2, 2), Axis(2, 2))",
            ),
            (
                "image, image, image",
                "is_causal=True",
                "Mask(Axis(None, 0, causal=True, align='top-left'), "
                "Axis(None, 0, causal=True, align='top-left'))",
                "Mask(Axis(causal=True), Axis(causal=True))",
            ),
            (
                "image, image, image",
                "is_causal=True, mask=Mask.neighborhood((5, 5))",
                "Mask(Axis(4, 0, causal=True), Axis(4, 0, causal=True))",
                "Mask.neighborhood((5, 5), is_causal=True)",
            ),
            (
                "image, image, image",
                "is_causal=[True, False], mask=Mask.neighborhood((5, 5))",
                "Mask(Axis(4, 0, causal=True), Axis(2, 2, border='shift'))",
                "Mask.neighborhood((5, 5), is_causal=(True, False))",
            ),
            (
                "image, image, image",
                "is_causal=(False, True)",
                "Mask(Axis(), Axis(None, 0, causal=True, align='top-left'))",
                "Mask(Axis(), Axis(causal=True))",
            ),
        )
    ],
    whole(
        "attention(image, image, image, is_causal=True)",
        "nbattn.attention(query.flatten(1, -3), key.flatten(1, -3), value.flatten(1, -3), "
        'Mask.causal("top-left")).unflatten(1, query.shape[1:-2])',
        EQUAL.format("attention(*[image.flatten(1, 2)] * 3, Mask.causal()).view_as(image)"),
        "query = key = value = image",
    ),
]
BIAS = f"attn_bias.masked_fill(~{ALLOWED}, float('-inf'))"
# What else the call said stays.
OPTIONS = [
    whole(
        "attention(q, k, v, mask, dropout_p=0.0, scale=0.7, sink=sink)",
        "nbattn.attention(query, key, value, mask, scale=0.7, sink=sink)",
        EQUAL.format("attention(q, k, v, mask, scale=0.7, sink=sink)"),
        "sink = torch.ones(4)",
    ),
    Row(
        "attention(q, k, v, mask, attn_bias=attn_bias, scale=0.7)",
        SDPA.format(BIAS).replace("enable_gqa=True", "enable_gqa=True, scale=0.7"),
        f"out = {SDPA.format(BIAS)}".replace("enable_gqa=True", "enable_gqa=True, scale=0.7"),
        EQUAL.format("attention(q, k, v, mask, scale=0.7)"),
        f"{QKV}\nattn_bias = torch.zeros(4, 12, 12)",
    ),
    Row(
        "attention(q, k, v, mask, dropout_p=0.1, is_causal=True)",
        "mask=Mask(Axis(3, 0, causal=True))",
        "out = attention(q, k, v, mask=Mask(Axis(3, 0, causal=True)))",
        EQUAL.format("attention(q, k, v, mask)"),
    ),
    Row(
        "attention(image, image, image, kernel_size=(5, 3), is_causal=(False, True))",
        "mask=Mask.neighborhood((5, 3), is_causal=(False, True))",
        "out = attention(*[image] * 3, mask=Mask.neighborhood((5, 3), is_causal=(False, True)))",
        EQUAL.format("attention(*[image] * 3, Mask(Axis(2, 2, border='shift'), Axis(2, 0)))"),
    ),
    argument("implementation='cudnn'", "backend='sdpa'", EQUAL.format("attention(q, k, v, mask)")),
]
ROWS = WORDS + OPTIONS
