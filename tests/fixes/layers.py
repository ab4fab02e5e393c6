"""Fixes of the layer: its options, its inputs, names from elsewhere, and what tools do to it."""

from fixes.row import Row

_NEW = "NeighborhoodAttention(64, 4, Mask.neighborhood((5, 5))"
_CAUSAL = "Mask.neighborhood((5, 5), is_causal=True)"


def option(wrong: str, pasted: str, means: str = "True") -> Row:
    """An argument of the constructor, and the one in its place."""
    return Row(f"{_NEW}, {wrong})", pasted, f"own = {_NEW}, {pasted}); own(x)", means)


def word(wrong: str, pasted: str, means: str = "True") -> Row:
    """A name from another library, and the whole call."""
    call = f"NeighborhoodAttention(64, 4, {wrong})"
    return Row(call, pasted, f"own = {pasted}", f"own(x).shape == x.shape and {means}")


def called(wrong: str, pasted: str, means: str = "True", given: str = "") -> Row:
    """Arguments of a call, and the whole call."""
    fixed = f"y = {pasted}" if pasted.startswith("layer(") else f"{pasted}; y = layer(x)"
    return Row(f"layer({wrong})", pasted, fixed, f"y.shape == x.shape and {means}", given)


def tensor(name: str, wrong: str, pasted: str, call: str, means: str = "True") -> Row:
    """A tensor that does not fit, and the code in its place."""
    given = f"{name} = {wrong}"
    fixed = f"{name} = {pasted}\ny = {call}"
    return Row(call, pasted, fixed, f"len(y) and {means}", given)


OPTIONS = [
    option("head_dim=16.0", "head_dim=16"),
    option("kv_heads=3", "kv_heads=2"),
    option("proj_drop='0.1'", "proj_drop=0.1"),
    option("layout='nhwc'", "layout='channels_last'"),
    option("dtype='fp32'", "dtype=torch.float32"),
    option("device='gpuu'", 'device="cpu"'),
    Row(
        "NeighborhoodAttention(64, 7, mask)",
        "num_heads=4",
        "own = NeighborhoodAttention(64, num_heads=4, mask=mask)",
    ),
    Row(
        "NeighborhoodAttention(64, 7, mask)",
        "head_dim=9",
        "own = NeighborhoodAttention(64, 7, mask, head_dim=9)",
    ),
    Row(
        f"{_NEW}, qk_transform=rotate)",
        "class Transform(torch.nn.Module): forward = staticmethod(rotate)",
        "class Transform(torch.nn.Module): forward = staticmethod(rotate)\n"
        f"y = {_NEW}, qk_transform=Transform())(x)",
        "y.shape == x.shape",
        "def rotate(query, key): return -query, key",
    ),
    Row(
        f"{_NEW}, qk_transform=Own)",
        "qk_transform=Own(dim)",
        f"y = {_NEW}, qk_transform=Own(dim))(x)",
        "y.shape == x.shape",
        "dim = 16\n"
        "class Own(torch.nn.Module):\n"
        "    def __init__(self, dim, eps=0.0): super().__init__()\n"
        "    def forward(self, query, key): return query, key",
    ),
]
WORDS = [
    word("kernel_size=7", f"{_NEW})".replace("5", "7")),
    word(
        "kernel_size=(3, 5), dilation=2",
        "NeighborhoodAttention(64, 4, Mask.neighborhood((3, 5), dilation=2))",
    ),
    word("mask=layer.mask, dropout=0.1", f"{_NEW}, proj_drop=0.1)", "own.proj_drop.p == 0.1"),
    word("mask=layer.mask, qk_scale=0.5", f"{_NEW}, scale=0.5)", "own.scale == 0.5"),
    word("mask=layer.mask, dim_head=8", f"{_NEW}, head_dim=8)", "own.head_dim == 8"),
    word("layer.mask, is_causal=True", f"NeighborhoodAttention(64, 4, {_CAUSAL})"),
    Row(
        "NeighborhoodAttention(64, 4, window_size=(512, 0))",
        "NeighborhoodAttention(64, 4, Mask.from_flash((512, 0)))",
        "own = NeighborhoodAttention(64, 4, Mask.from_flash((512, 0)))",
        "own.mask.axes[0].left == 512",
    ),
    Row(
        "NeighborhoodAttention(64, heads=8, mask=layer.mask, batch_first=True)",
        "NeighborhoodAttention(64, 8, Mask.neighborhood((5, 5)))",
        "own = NeighborhoodAttention(64, 8, Mask.neighborhood((5, 5)))",
        "own.num_heads == 8",
    ),
    Row(
        "NeighborhoodAttention(64, 4, kernel_size=5, rel_pos_bias=True)",
        "NeighborhoodAttention(64, 4, Mask.neighborhood((5, 5)), relative_bias=True)",
        "own = NeighborhoodAttention(64, 4, Mask.neighborhood((5, 5)), relative_bias=True)",
        "own.rpb.shape == (4, 9, 9)",
    ),
    Row(
        "NeighborhoodAttention(64, 4, 5)",
        "mask=Mask.neighborhood((5, 5))",
        "own = NeighborhoodAttention(64, 4, mask=Mask.neighborhood((5, 5)))",
        "own(x).shape == x.shape",
    ),
    called(
        "x, key_padding_mask=key_padding_mask",
        "layer(x, key_range=nbattn.key_range_from(~key_padding_mask))",
        "not torch.equal(y, layer(x))",
        "key_padding_mask = torch.zeros(2, 6, 8).bool(); key_padding_mask[:, :, 5:] = True",
    ),
    called(
        "x, attention_mask=attention_mask",
        "layer(x, key_range=nbattn.key_range_from(attention_mask.bool()))",
        "not torch.equal(y, layer(x))",
        "attention_mask = torch.ones(2, 6, 8); attention_mask[:, :, 5:] = 0",
    ),
    called("x, is_causal=True", f"layer.mask = {_CAUSAL}; layer(x)", f"layer.mask == {_CAUSAL}"),
    called("x, need_weights=False", "layer(x)"),
    Row(
        "layer(tokens, attn_mask=Mask.sliding_window(2).dense(12))",
        "layer.mask = Mask(Axis(2, 0)); layer(",
        "layer.mask = Mask(Axis(2, 0)); layer(tokens)",
        "layer.mask == Mask.sliding_window(2)",
        "layer = NeighborhoodAttention(16, 2, Mask.full()); tokens = torch.zeros(1, 12, 16)",
    ),
    called("x, x, x", "layer(x)"),
    called("x, context, context", "layer(x, context)", given="context = x.flip(1)"),
    called("x, memory=memory", "layer(x, memory)", given="memory = x.flip(1)"),
]
_SPELLED = "Mask(Axis(2, 2, border='shift'), Axis(2, 2, border='shift'))"
_LINE = "own = NeighborhoodAttention(64, 4, Mask.neighborhood(7))"
INPUTS = [
    tensor("x", "None", "torch.zeros(1, 14, 14, 64)", "layer(x)"),
    tensor("x", "4", "torch.zeros(1, 14, 14, 64)", "layer(x)"),
    tensor("x", "torch.randn(2, 6, 8, 64).tolist()", "torch.as_tensor(x)", "layer(x)"),
    tensor("x", "torch.randn(2, 6, 8, 64).to_sparse()", "x.to_dense()", "layer(x)"),
    tensor(
        "x",
        "torch.nested.nested_tensor([torch.ones(6, 8, 64), torch.ones(5, 8, 64)], "
        "layout=torch.strided)",
        "torch.nested.to_padded_tensor(x, 0.0)",
        "layer(x)",
    ),
    tensor("x", "torch.randn(2, 42, 64)", "x.unflatten(1, (6, 7))", "layer(x)"),
    tensor("x", "torch.randn(6, 7, 64)", "x[None]", "layer(x)"),
    tensor("x", "torch.randn(2, 6, 8, 4, 16)", "x.flatten(-2)", "layer(x)"),
    tensor("x", "torch.randn(2, 3, 6, 8, 64)", "x.flatten(0, 1)", "layer(x)", "len(y) == 6"),
    tensor("x", "torch.randn(2, 6, 8, 32)", "torch.nn.Linear(32, 64)(x)", "layer(x)"),
    tensor("x", "torch.randn(2, 64, 6, 8)", "x.movedim(1, -1)", "layer(x)"),
    tensor("x", "torch.randn(2, 6, 8, 64).half()", "x.to(torch.float32)", "layer(x)"),
    tensor(
        "x",
        "torch.zeros(2, 6, 8, 64, device='meta')",
        "torch.zeros_like(x, device='cpu')",
        "layer(x)",
    ),
    tensor("context", "x[:1]", "torch.cat([context] * 2)", "layer(x, context)"),
    Row(
        "of_text(x, context)",
        "context[:, :, None]",
        "y = of_text(x, context[:, :, None])",
        "torch.equal(y, of_text(x, context.unflatten(1, (7, 11))))",
        "of_text = NeighborhoodAttention(64, 4, Mask.full(rank=2), context_dim=32)\n"
        "context = torch.randn(2, 77, 32)",
    ),
    Row(
        "of_text(x, context)",
        "context[..., None]",
        "y = of_text(x, context[..., None])",
        "y.shape == x.shape",
        "of_text = NeighborhoodAttention(\n"
        "    64, 4, Mask.full(rank=2), context_dim=32, layout='channels_first'\n"
        ")\n"
        "x, context = x.movedim(-1, 1), torch.randn(2, 32, 77)",
    ),
    Row(
        "of_text.plan_for(x.shape, (2, 77, 32))",
        "context_shape=(2, 77, 1, 32)",
        "plan = of_text.plan_for(x.shape, context_shape=(2, 77, 1, 32))",
        "plan.request.key_space == (77, 1)",
        "of_text = NeighborhoodAttention(64, 4, Mask.full(rank=2), context_dim=32)",
    ),
    tensor("context", "x.repeat(2, 1, 1, 1)[:3]", "context[:2]", "layer(x, context)"),
    tensor("extra_tokens", "x[0, 0]", "extra_tokens[None]", "layer(x, extra_tokens=extra_tokens)"),
    tensor(
        "extra_tokens", "x", "extra_tokens.flatten(1, -2)", "layer(x, extra_tokens=extra_tokens)"
    ),
    tensor("extra_tokens", "x[:, 0].mT", "extra_tokens.mT", "layer(x, extra_tokens=extra_tokens)"),
    Row(
        "own(x)",
        "mask=Mask.neighborhood((7, 7))",
        "y = NeighborhoodAttention(64, 4, mask=Mask.neighborhood((7, 7)))(x)",
        "y.shape == x.shape",
        f"{_LINE}; x = torch.randn(2, 14, 14, 64)",
    ),
    Row(
        "layer(x)",
        "layout='channels_first'",
        f"y = {_NEW}, layout='channels_first')(x)",
        "y.shape == x.shape",
        "x = torch.randn(2, 64, 6, 8)",
    ),
    Row(
        "own(x)",
        "torch.nn.Conv2d(3, 64, 1)(x)",
        "y = own(torch.nn.Conv2d(3, 64, 1)(x))",
        "y.shape == (2, 64, 6, 8)",
        f"own = {_NEW}, layout='channels_first'); x = torch.randn(2, 3, 6, 8)",
    ),
    Row(
        "layer(x, context)",
        f"NeighborhoodAttention(64, 4, {_SPELLED}, context_dim=32)",
        f"own = NeighborhoodAttention(64, 4, {_SPELLED}, context_dim=32)\ny = own(x, context)",
        "y.shape == x.shape",
        "context = torch.randn(2, 6, 8, 32)",
    ),
    Row(
        "own(x)",
        "layer(x, context)",
        "layer = own; y = layer(x, context)",
        "y.shape == x.shape",
        f"own = {_NEW}, context_dim=32); context = torch.randn(2, 6, 8, 32)",
    ),
    Row(
        "layer.plan_for(shape=(2, 48, 64))",
        "shape=(2, 6, 8, 64)",
        "plan = layer.plan_for(shape=(2, 6, 8, 64))",
    ),
    Row("layer.plan_for(64)", "shape=x.shape", "plan = layer.plan_for(shape=x.shape)"),
    Row(
        "layer.plan_for(shape=(2, 6.0, 8, 64))",
        "shape=(2, 6, 8, 64)",
        "plan = layer.plan_for(shape=(2, 6, 8, 64))",
    ),
    Row(
        "layer.plan_for(x.shape, context_shape=(1, 6, 8, 64))",
        "context_shape=(2, 6, 8, 64)",
        "plan = layer.plan_for(x.shape, context_shape=(2, 6, 8, 64))",
    ),
    Row(
        "own(x)",
        "layer.to_empty(device='cpu')",
        "layer = own\nlayer.to_empty(device='cpu')\nown.load_state_dict(state)",
        "own(x).isfinite().all()",
        f"state = layer.state_dict(); own = {_NEW}, device='meta')",
    ),
]


def transform(returned: str, pasted: str, fixed: str, means: str = "True") -> Row:
    """What the forward of a transform returns, and what it returns in its place."""
    made = (
        "class Own(torch.nn.Module):\n"
        "    def forward(self, query, key): {0}\n"
        f"y = {_NEW}, qk_transform=Own())(x)"
    )
    return Row(made.format(returned), pasted, made.format(fixed), f"y.shape == x.shape and {means}")


TRANSFORMS = [
    transform("return query", "return query, key", "return query, key"),
    transform("return query, key[:, 1:]", "return query, key", "return query, key"),
    transform(
        "query, key = query.movedim(-2, 1), key.movedim(-2, 1); return query, key",
        "return query.movedim(1, -2), key.movedim(1, -2)",
        "query, key = query.movedim(-2, 1), key.movedim(-2, 1); "
        "return query.movedim(1, -2), key.movedim(1, -2)",
    ),
    Row(
        "class Own(torch.nn.Module):\n"
        "    def forward(self, query, key): return query, key\n"
        f"y = {_NEW}, qk_transform=Own())(x, extra_tokens=x[:, 0])",
        "type(layer.qk_transform).extra_key = lambda self, key: key",
        "class Own(torch.nn.Module):\n"
        "    def forward(self, query, key): return query, key\n"
        f"layer = {_NEW}, qk_transform=Own())\n"
        "type(layer.qk_transform).extra_key = lambda self, key: key\n"
        "y = layer(x, extra_tokens=x[:, 0])",
        "y.shape == x.shape",
    ),
]
_RANKS = """
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore
import nbattn.nn
dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
mesh = init_device_mesh("cpu", (2,))
model = torch.nn.ModuleDict({"attn": layer})
"""
_PLAN = (
    'parallelize_module(model, mesh, {"attn": nbattn.nn.HeadParallel(), "attn.proj": '
    "RowwiseParallel()})"
)


def ranks(call: str, pasted: str, fixed: str, means: str = "True", given: str = "") -> Row:
    """A model on two ranks, of which only this one exists."""
    return Row(call, pasted, fixed, means, _RANKS + given)


TOOLS = [
    Row(
        "layer(x)",
        "layer.qkv = torch.nn.Linear(layer.dim, 192)",
        "layer.qkv = torch.nn.Linear(layer.dim, 192)\ny = layer(x)",
        "y.shape == x.shape",
        "layer.qkv = torch.nn.Linear(64, 64)",
    ),
    Row(
        "torch.fx.symbolic_trace(layer)",
        "torch.fx.symbolic_trace(torch.nn.Sequential(layer))",
        "graph = torch.fx.symbolic_trace(torch.nn.Sequential(layer))",
        "torch.equal(graph(x), layer(x))",
    ),
    Row(
        "torch.jit.script(layer)",
        "torch.jit.trace(layer, x)",
        "graph = torch.jit.trace(layer, x)",
        "torch.allclose(graph(x), layer(x))",
    ),
    ranks(
        "model.attn(x)",
        _PLAN,
        f"model = torch.nn.ModuleDict({{'attn': new}}); {_PLAN}; y = new(x) + 0",
        "y.shape == x.shape and new.num_heads == 2",
        f'new = {_NEW})\nparallelize_module(model, mesh, {{"attn.qkv": ColwiseParallel()}})\n',
    ),
    ranks(
        'parallelize_module(model, mesh, {"attn.qkv": nbattn.nn.HeadParallel()})',
        _PLAN,
        f"{_PLAN}; y = layer(x) + 0",
        "y.shape == x.shape",
    ),
    ranks(
        "layer(x)",
        'parallelize_module(model, mesh, {"attn.proj": RowwiseParallel()})',
        'parallelize_module(model, mesh, {"attn.proj": RowwiseParallel()}); y = layer(x) + 0',
        "y.shape == x.shape",
        'parallelize_module(model, mesh, {"attn": nbattn.nn.HeadParallel()})\n',
    ),
    ranks(
        "parallelize_module(layer, mesh, nbattn.nn.HeadParallel())",
        "parallelize_module(layer, mesh, nbattn.nn.HeadParallel())",
        "hook.remove(); parallelize_module(layer, mesh, nbattn.nn.HeadParallel())",
        "layer.num_heads == 2",
        "hook = layer.qkv.register_forward_hook(lambda *_: None)\n",
    ),
    ranks(
        "parallelize_module(own, mesh, nbattn.nn.HeadParallel())",
        'init_device_mesh(\'cpu\', (2, 1), mesh_dim_names=("data", "heads"))["heads"]',
        'mesh = init_device_mesh(\'cpu\', (2, 1), mesh_dim_names=("data", "heads"))["heads"]\n'
        "parallelize_module(own, mesh, nbattn.nn.HeadParallel())",
        "own.num_heads == 4",
        f"own = {_NEW}, kv_heads=1)\n",
    ),
]
CALLS = [
    called("query=query, key=query, value=query", "layer(query)", given="query = x"),
    called("x, key=x, value=x", "layer(x)"),
    called("hidden_states=x + 0", "layer(hidden_states)", given="hidden_states = x"),
    word("", "NeighborhoodAttention(64, 4, Mask.neighborhood((7, 7)))"),
]
ROWS = [*CALLS, *OPTIONS, *WORDS, *INPUTS, *TRANSFORMS, *TOOLS]
KEPT = [
    Row(
        "NeighborhoodAttention(64, 4, window_size=(3, 0), causal=True)",
        "NeighborhoodAttention(64, 4, Mask.from_flash((3, 0), causal=True))",
        "layer = NeighborhoodAttention(64, 4, Mask.from_flash((3, 0), causal=True))",
        "layer.mask == Mask.from_flash((3, 0), causal=True)",
    ),
    Row(
        "NeighborhoodAttention(64, Mask.causal(), 4)",
        "NeighborhoodAttention(64, 4, Mask(Axis(None, 0, causal=True)))",
        "layer = NeighborhoodAttention(64, 4, Mask(Axis(None, 0, causal=True)))",
        "layer.mask == Mask.causal()",
    ),
    Row(
        "layer(x, scale=0.3)",
        "layer.scale = 0.3; layer(x)",
        "layer.scale = 0.3; layer(x)",
        "layer.scale == 0.3",
    ),
    Row("layer(x, 6, 8)", "layer(x)", "layer(x)"),
]
ROWS += KEPT
