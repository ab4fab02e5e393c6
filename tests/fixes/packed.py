"""Fixes of packed grids: their sizes, tensors that do not fit them, nested tensors, the layer."""

from fixes.row import EQUAL, Row

IMAGES = "x = image[0].flatten(0, 1)\nquery, key, value = x, x, x\nmask = Mask.neighborhood((3, 3))"
ALONE = "attention(image[:1], image[:1], image[:1], mask)[0].flatten(0, 1)"
LINES = "x = line.flatten(0, 1)\nquery, key, value = x, x, x\nmask = Mask.causal()"
EACH = "attention(line, line, line, mask).flatten(0, 1)"
NESTED = (
    "parts = [torch.randn(n, 4, 16) for n in (5, 7)]\nmask = Mask.causal()\n"
    "query = key = value = torch.nested.nested_tensor(parts, layout=torch.jagged)"
)
FIRST = "torch.allclose(out.unbind()[0], attention(*[parts[0][None]] * 3, mask)[0], atol=1e-5)"
ALIGNED = "Mask(Axis(None, 0, causal=True, align='bottom-right'))"
EXTRAS = "extra_query, extra_key, extra_value"
VALUES = "[out.values() for out in outputs], [lse.values() for lse in lses]"
SIZES = [
    Row(
        "attention(query, key, value, mask, grids=grids)",
        "grids=nbattn.grids_from(grids)",
        "out = attention(query, key, value, mask, grids=nbattn.grids_from(grids))",
        EQUAL.format(EACH),
        f"{LINES}\ngrids = [0, 12, 24]",
    ),
    Row(
        "attention(query, key, value, mask, grid_sizes=[(6, 8)])",
        "grids=[(6, 8)]",
        "out = attention(query, key, value, mask, grids=[(6, 8)])",
        EQUAL.format(ALONE),
        IMAGES,
    ),
    Row(
        "attention(query, key, value, mask, grids=(6, 8))",
        "grids=[(6, 8)]",
        "out = attention(query, key, value, mask, grids=[(6, 8)])",
        EQUAL.format(ALONE),
        IMAGES,
    ),
    Row(
        "attention(image, image, image, Mask.neighborhood((3, 3)), grids=False)",
        "grids=None",
        "out = attention(image, image, image, Mask.neighborhood((3, 3)), grids=None)",
        "out.shape == image.shape",
    ),
    Row(
        "attention(query, key, value, mask, grids=grids)",
        "grids=torch.as_tensor(grids).long()",
        "out = attention(query, key, value, mask, grids=torch.as_tensor(grids).long())",
        EQUAL.format(ALONE),
        f"{IMAGES}\ngrids = [(6.0, 8.0)]",
    ),
    Row(
        "attention(query, key, value, mask, grids=grids_from(cu_seqlens))",
        "grids=cu_seqlens",
        "out = attention(query, key, value, mask, grids=cu_seqlens)",
        EQUAL.format(EACH),
        f"{LINES}\ncu_seqlens = torch.tensor([12, 12])",
    ),
    Row(
        "attention(query, key, value, mask, key_grids=[12, 12])",
        "grids=key_grids, key_grids=None",
        "key_grids = [12, 12]\n"
        "out = attention(query, key, value, mask, **dict(grids=key_grids, key_grids=None))",
        EQUAL.format(EACH),
        LINES,
    ),
    Row(
        "attention(query, key, value, mask, grids=[10, 12], key_grids=[12, 12])",
        ALIGNED,
        f"out = attention(query, key, value, {ALIGNED}, grids=[10, 12], key_grids=[12, 12])",
        "out.shape == query.shape",
        f"{LINES}\nquery = x[2:]",
    ),
    Row(
        "attention(query, query, query, mask, grids=[(6, 8)] * 2)",
        "query.flatten(0, 2)",
        "query = query.flatten(0, 2)\n"
        "out = attention(query, query, query, mask, grids=[(6, 8)] * 2)",
        EQUAL.format("attention(image, image, image, mask).flatten(0, 2)"),
        "query, mask = image, Mask.neighborhood((3, 3))",
    ),
    Row(
        "plan(mask, (9000, 1, 8), grids=[9000], device='cpu').support()",
        "plan.verify()",
        "plan = plan(mask, (9000, 1, 8), grids=[9000], device='cpu')\nout = plan.verify()",
        "out",
    ),
]
OF_NESTED = [
    Row(
        "attention(query, key, value, mask, grids=[5, 7])",
        "grids=None",
        "out = attention(query, key, value, mask, grids=None)",
        FIRST,
        NESTED,
    ),
    Row(
        "attention(query, key, query, mask)",
        "key=torch.nested.as_nested_tensor([*key], layout=torch.jagged)",
        "out = attention(query, value=query, mask=mask, "
        "key=torch.nested.as_nested_tensor([*key], layout=torch.jagged))",
        "out.shape[0] == 2",
        "mask, key = Mask.full(rank=1), torch.randn(2, 6, 4, 16)\n"
        "query = torch.nested.as_nested_tensor([*key], layout=torch.jagged)",
    ),
    Row(
        "attention(query, query, query, mask)",
        "query=query.transpose(1, 2)",
        "query = dict(query=query.transpose(1, 2))['query']\nout = attention(*[query] * 3, mask)",
        FIRST,
        f"{NESTED}\nquery = query.transpose(1, 2)",
    ),
    Row(
        f"joint_attention(query, key, value, mask, {EXTRAS})",
        f"nbattn.joint_attention(query.values(), key.values(), value.values(), mask, {EXTRAS}, "
        "grids=nbattn.grids_from(query.offsets()))",
        "out, _ = nbattn.joint_attention(query.values(), key.values(), value.values(), mask, "
        f"{EXTRAS}, grids=nbattn.grids_from(query.offsets()))",
        EQUAL.format(
            "attention(query, query, query, mask, extra_key=extra_key, "
            "extra_value=extra_key).values()"
        ),
        f"from nbattn import joint_attention\n{NESTED}\n"
        "extra_query = extra_key = extra_value = torch.randn(2, 3, 4, 16)",
    ),
    Row(
        "nbattn.merge(outputs, lses)",
        f"nbattn.merge({VALUES})",
        f"out, _ = nbattn.merge({VALUES})",
        EQUAL.format("outputs[0].values()"),
        f"{NESTED}\nouts = attention(query, key, value, mask, return_lse=True)\n"
        "outputs, lses = [outs[0]] * 2, [outs[1]] * 2",
    ),
]
IN_LAYERS = [
    Row(
        "layer(x, grids=[(6, 8)] * 2)",
        "x.flatten(0, -2)",
        "out = layer(x.flatten(0, -2), grids=[(6, 8)] * 2)",
        EQUAL.format("layer(x).flatten(0, -2)"),
    ),
    Row(
        "layer.plan_for((2, 6, 8, 64), grids=[(6, 8)] * 2)",
        "shape=(96, 64)",
        "out = layer.plan_for(shape=(96, 64), grids=[(6, 8)] * 2)",
        "out.request.query_space == (96,)",
    ),
]
ROWS = SIZES + OF_NESTED + IN_LAYERS
