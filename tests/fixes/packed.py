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
TWO = "query = key = value = torch.randn(24, 4, 16)\nmask = Mask.causal()\n"
REAL = (
    "key_range = torch.ones(24, dtype=torch.bool); key_range[[10, 11, 23]] = False\n"
    "wanted = attention(query, key, value, mask, grids={0}, key_range={1})"
)
PADDING = (
    "key_range=torch.cat([nbattn.key_range_from(part.view(1, *size)) for part, size in "
    "zip({}.split(nbattn.Grids({}).counts.tolist()), nbattn.Grids({}).array.tolist())])"
)
SIZES += [
    Row(
        "attention(image, image, image, mask, grids=[(6, 8)])",
        "grids=None",
        "out = attention(image, image, image, mask, grids=None)",
        "out.shape == image.shape",
        "mask = Mask.neighborhood((3, 3))",
    ),
    Row(
        "attention(query, key, value, mask, grids=documents)",
        "grids=torch.unique_consecutive(torch.as_tensor(grids), return_counts=True)[1]",
        "grids = documents\nout = attention(query, key, value, mask, grids=torch."
        "unique_consecutive(torch.as_tensor(grids), return_counts=True)[1])",
        EQUAL.format("attention(query, key, value, mask, grids=[7, 17])"),
        f"{TWO}documents = [0] * 7 + [1] * 17",
    ),
    Row(
        "attention(query, key, value, mask, grids=grids, key_range=key_range)",
        PADDING.format("key_range", "grids", "grids"),
        f"out = attention(query, key, value, mask, grids=grids, "
        f"{PADDING.format('key_range', 'grids', 'grids')})",
        EQUAL.format("wanted"),
        f"{TWO}grids = [12, 0, 12]\n{REAL.format('grids', '[[0, 10], [0, 0], [0, 11]]')}",
    ),
    Row(
        "attention(query, key, value, mask, grids=[(3, 4)] * 2, key_grids=sizes, "
        "key_range=key_range.int())",
        PADDING.format("key_range.bool()", "key_grids", "key_grids"),
        f"key_grids = sizes\nout = attention(query, key, value, mask, grids=[(3, 4)] * 2, "
        f"key_grids=sizes, {PADDING.format('key_range.bool()', 'key_grids', 'key_grids')})",
        EQUAL.format("wanted"),
        f"{TWO}mask, sizes = Mask.full(rank=2), [(2, 6), (2, 6)]\n"
        "key_range = torch.ones(2, 2, 6, dtype=torch.bool); key_range[0, :, 4:] = False\n"
        "key_range = key_range.flatten()\nwanted = attention(query, key, value, mask, "
        "grids=[(3, 4)] * 2, key_grids=sizes, key_range=[[[0, 2], [0, 4]], [[0, 2], [0, 6]]])",
    ),
    Row(
        "attention(query, key, value, mask, grids=grids)",
        "grids=nbattn.Grids(grids).array.tolist() * 4",
        "out = attention(query, key, value, mask, grids=nbattn.Grids(grids).array.tolist() * 4)",
        EQUAL.format("attention(query, key, value, mask, grids=[6] * 4)"),
        f"{TWO}grids = [6]",
    ),
    Row(
        "attention(query, key, value, mask)",
        "grids=[(24,)]",
        "out = attention(query, key, value, mask, grids=[(24,)])",
        EQUAL.format("attention(query[None], key[None], value[None], mask)[0]"),
        TWO,
    ),
    Row(
        "plan(mask, (2, 12, 4, 16), grids=[12, 12])",
        "query_shape=(24, 4, 16)",
        "out = plan(mask, query_shape=(24, 4, 16), grids=[12, 12])",
        "len(out.request.grids) == 2",
    ),
    Row(
        "plan(mask, (24, 4, 16), cu_seqlens=cu_seqlens)",
        "grids=nbattn.grids_from(cu_seqlens)",
        "out = plan(mask, (24, 4, 16), grids=nbattn.grids_from(cu_seqlens))",
        "len(out.request.grids) == 2",
        "cu_seqlens = [0, 12, 24]",
    ),
]


def making(wrong: str, right: str, means: str = "out == Grids([12, 12])") -> Row:
    """A call that makes grids, and the one in its place."""
    given = "cu_seqlens = cu_seqlens_q = [0, 12, 24]\nsizes = seqlens = [12, 12]"
    return Row(wrong, right, f"out = {right}", means, given)


MAKING = [
    making("grids_from(cu_seqlens, max_seqlen=12)", "nbattn.grids_from(cu_seqlens)"),
    making("grids_from(cu_seqlens_q=cu_seqlens)", "nbattn.grids_from(cu_seqlens=cu_seqlens_q)"),
    making("grids_from(seqlens=seqlens)", "nbattn.Grids(seqlens)"),
    Row(
        "grids_from(cu_seqlens)",
        "nbattn.grids_from(cu_seqlens.offsets())",
        "out = nbattn.grids_from(cu_seqlens.offsets())",
        "out == Grids([5, 7])",
        f"{NESTED}\ncu_seqlens = query",
    ),
    making("grids_from(cu_seqlens, 12)", "nbattn.grids_from(cu_seqlens)"),
    Row(
        "grids_from(cu_seqlens)",
        "nbattn.grids_from(cu_seqlens[0])",
        "out = nbattn.grids_from(cu_seqlens[0])",
        "out == Grids([12, 12])",
        "cu_seqlens = torch.tensor([[0, 12, 24]])",
    ),
    making("Grids(sizes=sizes)", "nbattn.Grids(array=sizes)"),
    making("Grids((14, 14), (20, 33))", "nbattn.Grids([(14, 14), (20, 33)])", "out.tokens == 856"),
    Row(
        "attention(query, key, value, mask, grids=grids_from(cu_seqlens_q, cu_seqlens_k))",
        "grids=nbattn.grids_from(cu_seqlens_q), key_grids=nbattn.grids_from(cu_seqlens_k)",
        "out = attention(query, key, value, mask, grids=nbattn.grids_from(cu_seqlens_q), "
        "key_grids=nbattn.grids_from(cu_seqlens_k))",
        EQUAL.format("attention(query, key, value, mask, grids=[12, 12])"),
        f"{TWO}cu_seqlens_q = cu_seqlens_k = [0, 12, 24]",
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
        "layer(x)",
        "layer(x.values(), grids=nbattn.grids_from(x.offsets()))",
        "out = layer(x.values(), grids=nbattn.grids_from(x.offsets()))[:5]",
        EQUAL.format("layer(parts[0][None])[0]"),
        "layer = nbattn.NeighborhoodAttention(64, 4, Mask.causal())\n"
        "parts = [torch.randn(5, 64), torch.randn(3, 64)]\n"
        "x = torch.nested.nested_tensor(parts, layout=torch.jagged)",
    ),
    Row(
        "layer(x[0].flatten(0, 1), grids=[(6, 8)], extra_tokens=extra_tokens)",
        "extra_tokens[None]",
        "out = layer(x[0].flatten(0, 1), grids=[(6, 8)], extra_tokens=extra_tokens[None])",
        EQUAL.format("layer(x[:1], extra_tokens=extra_tokens[None])[0].flatten(0, 1)"),
        "extra_tokens = torch.randn(3, 64)",
    ),
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
IN_LAYERS += [
    Row(
        "layer(x, cu_seqlens=cu_seqlens)",
        "layer(x, grids=nbattn.grids_from(cu_seqlens))",
        "out = layer(x, grids=nbattn.grids_from(cu_seqlens))",
        EQUAL.format("layer(x, grids=[12, 12])"),
        "layer, x = NeighborhoodAttention(64, 4, Mask.causal()), torch.randn(24, 64)\n"
        "cu_seqlens = [0, 12, 24]",
    ),
    Row(
        "layer.plan_for((24, 64), cu_seqlens=cu_seqlens)",
        "layer.plan_for((24, 64), grids=nbattn.grids_from(cu_seqlens))",
        "out = layer.plan_for((24, 64), grids=nbattn.grids_from(cu_seqlens))",
        "len(out.request.grids) == 2",
        "layer, cu_seqlens = NeighborhoodAttention(64, 4, Mask.causal()), [0, 12, 24]",
    ),
    Row(
        "layer.plan_for()",
        "layer.plan_for(x.shape)",
        "out = layer.plan_for(x.shape)",
        "out.request.query_space == (6, 8)",
    ),
]
ROWS = SIZES + MAKING + OF_NESTED + IN_LAYERS
