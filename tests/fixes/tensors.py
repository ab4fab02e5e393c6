"""Fixes of tensors, shapes and numbers of `attention`, `merge` and `key_range_from`."""

from fixes.row import ALLOWED, EQUAL, QKV, SDPA, Row, argument, whole

SHAPES = [
    Row(
        "attention(image, text, text, Mask.full(rank=2))",
        "key[:, :, None]",
        "key = value = text\n"
        "out = attention(image, key[:, :, None], value[:, :, None], Mask.full(rank=2))",
        EQUAL.format("attention(image.flatten(1, 2), text, text, Mask.full()).view(image.shape)"),
        "text = torch.randn(2, 7, *image.shape[-2:])",
    ),
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
        "attention(query, query, query, Mask.neighborhood((3, 3)))",
        "query.movedim(1, -1).unsqueeze(-2)",
        "query = query.movedim(1, -1).unsqueeze(-2)\n"
        "out = attention(query, query, query, Mask.neighborhood((3, 3)))",
        EQUAL.format("attention(*[image[..., :1, :]] * 3, Mask.neighborhood((3, 3)))"),
        "query = image[..., 0, :].movedim(-1, 1)",
    ),
    Row(
        "attention(query, query, query, Mask.neighborhood((3, 3)))",
        "query.unflatten(1, (6, 8)).unsqueeze(-2)",
        "query = query.unflatten(1, (6, 8)).unsqueeze(-2)\n"
        "out = attention(query, query, query, Mask.neighborhood((3, 3)))",
        EQUAL.format("attention(*[image[..., :1, :]] * 3, Mask.neighborhood((3, 3)))"),
        "query = image[..., 0, :].flatten(1, 2)",
    ),
    whole(
        "attention(query, key, value, mask)",
        "nbattn.attention(query[None], key[None], value[None], mask)[0]",
        EQUAL.format("attention(q, k, v, mask)[0]"),
        "query, key, value = q[0], k[0], v[0]",
    ),
    whole(
        "attention(query, key, value, mask)",
        "nbattn.attention(query[None, ..., None, :], key[None, ..., None, :], "
        "value[None, ..., None, :], mask)[0, ..., 0, :]",
        EQUAL.format("attention(q, k, v, mask)[0, :, 0]"),
        "query, key, value = q[0, :, 0], k[0, :, 0], v[0, :, 0]",
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
        "query = key = value = torch.nested.nested_tensor([q[0], q[1, :7]])",
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
    argument("key_range='all'", "key_range=None", given="key_range = None"),
    *[
        argument(
            "key_range=key_range",
            f"key_range={right}",
            EQUAL.format(f"attention(q, k, v, mask, key_range={same})"),
            f"key_range = {given}",
        )
        for given, right, same in (
            (
                "torch.zeros(2, 1, 2)",
                "torch.as_tensor(key_range).int()",
                "torch.zeros(2, 1, 2).int()",
            ),
            *[
                (given, "torch.as_tensor(key_range).expand(2, 1, 2)", [[2, 9]] * 2)
                for given in ("torch.tensor([[[2, 9]]])", "[[2, 9]]")
            ],
            *[
                (given, right, same)
                for given in ("[9, 12]", "torch.tensor([9, 12])", "(9, 12)")
                for right, same in (
                    ("[[0, int(stop)] for stop in key_range]", [[0, 9], [0, 12]]),
                    ("[[*map(int, key_range)]] * 2", [[9, 12]] * 2),
                )
            ],
            ("9", "[[0, 9]] * 2", [[0, 9]] * 2),
            *[
                (f"{real}.{given}", f"nbattn.key_range_from({right})", [[0, 9], [0, 12]])
                for real in ["(torch.arange(12) < torch.tensor([[9], [12]]))"]
                for given, right in (
                    ("clone()", "torch.as_tensor(key_range)"),
                    ("long()", "torch.as_tensor(key_range).bool()"),
                    ("tolist()", "torch.as_tensor(key_range)"),
                    ("int().tolist()", "torch.as_tensor(key_range).bool()"),
                    ("float()", "torch.as_tensor(key_range).bool()"),
                    ("logical_not().float()", "torch.as_tensor(key_range) == 0"),
                    ("view(2, 1, 1, 12)", "torch.as_tensor(key_range)[:, 0, 0]"),
                )
            ],
        )
    ],
    *[
        Row(
            "attention(image, image, image, Mask.full(2), key_range=key_range)",
            f"key_range={right}",
            f"out = attention(image, image, image, Mask.full(2), key_range={right})",
            EQUAL.format(f"attention(image, image, image, Mask.full(2), key_range={same})"),
            f"key = image\nkey_range = {given}",
        )
        for given, right, same in (
            (
                "torch.ones(2, 48).int()",
                "nbattn.key_range_from(torch.as_tensor(key_range).unflatten(1, key.shape[1:-2])"
                ".bool())",
                None,
            ),
            (
                "[[3, 8], [6, 4]]",
                "[[[0, int(stop)] for stop in stops] for stops in key_range]",
                [[[0, 3], [0, 8]], [[0, 6], [0, 4]]],
            ),
            (
                "[[3, 6], [0, 4]]",
                "torch.as_tensor(key_range).expand(2, 2, 2)",
                [[[3, 6], [0, 4]]] * 2,
            ),
        )
    ],
    *[
        Row(
            "attention(q, k, v, mask, extra_key=extra_key, extra_value=extra_value)",
            f"extra_key={right}",
            f"extra_value = {right.replace('key', 'value')}\n"
            f"out = attention(q, k, v, mask, extra_key={right}, extra_value=extra_value)",
            EQUAL.format("attention(q, k, v, mask, extra_key=whole[0], extra_value=whole[1])"),
            f"whole = torch.randn(2, 2, 5, 4, 16)\n{given}",
        )
        for given, right in (
            ("extra_key, extra_value = whole.flatten(-2)", "extra_key.unflatten(-1, (4, 16))"),
            (
                "whole[:, 1] = whole[:, 0]\nextra_key, extra_value = whole[:, 0].flatten(-2)",
                "extra_key.unflatten(-1, (4, 16)).expand(2, -1, -1, -1)",
            ),
            (
                "whole[:, 1] = whole[:, 0]\nextra_key, extra_value = whole[:, 0]",
                "extra_key.expand(2, 5, 4, 16)",
            ),
        )
    ],
    whole(
        "attention(query, key, value, mask)",
        "torch.view_as_complex(nbattn.attention(*[torch.view_as_real(x.to(query.dtype)).flatten(-2)"
        " for x in (query, key, value)], mask, scale=query.shape[-1] ** -0.5).unflatten(-1, "
        "(-1, 2)))",
        "torch.allclose(out[0, 5, 1], (torch.softmax(torch.stack([(query[0, 5, 1] * "
        "key[0, j, 1].conj()).sum().real / 4 for j in range(2, 6)]), 0)[:, None] * "
        "value[0, 2:6, 1]).sum(0), atol=1e-5)",
        "query, key, value = torch.randn(3, 2, 12, 4, 16, dtype=torch.complex64)",
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

LSES = "outputs, lses = [q, q], [q[..., 0], q[..., 0]]"
MERGES = [
    *[
        Row(
            f"nbattn.merge({wrong})",
            pasted,
            f"found, _ = {pasted}",
            "torch.allclose(found, attention(q, k, v, Mask.full()), atol=1e-5)",
            f"(out, lse), (other, other_lse) = [attention(q, k[:, part], v[:, part], Mask.full(), "
            f"return_lse=True) for part in (slice(5), slice(5, 12))]\n{given}",
        )
        for wrong, pasted, given in (
            (
                "outputs",
                "nbattn.merge(*zip(*outputs))",
                "outputs = [(out, lse), (other, other_lse)]",
            ),
            (
                "outputs, lses",
                "nbattn.merge(*zip(outputs, lses))",
                "outputs, lses = (out, lse), (other, other_lse)",
            ),
            (
                "out, lse, other, other_lse",
                "nbattn.merge([out, other], [lse, other_lse])",
                "",
            ),
            (
                "outs=outs, lse=both",
                "nbattn.merge(outputs=outs, lses=lse)",
                "outs, lse = [out, other], [lse, other_lse]\nboth = lse",
            ),
        )
    ],
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

PADDINGS = [
    Row(
        "nbattn.key_range_from(padding)",
        pasted,
        f"{used}{pasted}",
        f"torch.as_tensor({result}).flatten().tolist() == [0, 3, 0, 12]",
        f"padding = {padding}",
    )
    for padding, pasted, used, result in (
        (
            "torch.tensor([3, 12])",
            "key_range=[[0, int(stop)] for stop in padding]",
            "",
            "key_range",
        ),
        (
            "(torch.arange(12) < torch.tensor([[3], [12]])).float()",
            "nbattn.key_range_from(padding.bool())",
            "out = ",
            "out",
        ),
        (
            "torch.zeros(2, 12).masked_fill(torch.arange(12) >= torch.tensor([[3], [12]]), -1e9)",
            "nbattn.key_range_from(padding == 0)",
            "out = ",
            "out",
        ),
    )
]
PADDINGS.append(
    Row(
        "nbattn.key_range_from(None)",
        "key_range=None",
        "out = attention(q, k, v, mask, key_range=None)",
    )
)
MERGED = [
    Row(
        "nbattn.merge([out, other], None)",
        "nbattn.merge([out, other], [lse, other_lse])",
        "whole, _ = nbattn.merge([out, other], [lse, other_lse])",
        "torch.allclose(whole, attention(q, k, v, Mask.full()), atol=1e-5)",
        "out, lse = attention(q, k[:, :5], v[:, :5], Mask.full(), return_lse=True)\n"
        "other, other_lse = attention(q, k[:, 5:], v[:, 5:], Mask.full(), return_lse=True)",
    )
]
ROWS = SHAPES + TENSORS + MERGES + RANGES + PADDINGS + MERGED
