"""Fixes of the layer's arguments, inputs and names from other libraries."""

from fixes.row import Row

GIVEN = (
    "from nbattn import NeighborhoodAttention as Layer\n"
    "layer = Layer(16, 2, Mask.neighborhood((3, 3)))\nx = torch.zeros(2, 4, 5, 16)"
)


def argument(wrong: str, right: str) -> Row:
    """A row for an argument of the constructor."""
    call = "out = Layer(16, num_heads=2, mask=Mask.full(), {})"
    return Row(call.format(wrong), right, call.format(right), given=GIVEN)


# One process that stands for two: nothing is sent.
MESH = """
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.distributed import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
mesh = init_device_mesh("cpu", (2,))
model = torch.nn.ModuleDict({"attn": layer})
model.attn = layer
"""
HEADS = (
    'parallelize_module(model, mesh, {"attn": nbattn.nn.HeadParallel(), "attn.proj": '
    "RowwiseParallel()})"
)
PROJ = 'parallelize_module(model, mesh, {"attn.proj": RowwiseParallel()})'
MADE = (
    "nbattn.NeighborhoodAttention(16, 2, "
    "Mask(Axis(1, 1, border='shift'), Axis(1, 1, border='shift')))"
)
TRANSFORM = (
    "class Turn(torch.nn.Module):\n    def forward(self, query, key): {}\n"
    "layer = Layer(16, 2, Mask.neighborhood((3, 3)), qk_transform=Turn())"
)


def call(wrong: str, right: str, given: str = "", means: str = "True") -> Row:
    """A row for a call of the layer, of which one part is mended."""
    return Row(wrong, right, f"out = {right}", means, f"{GIVEN}\n{given}")


def value(wrong: str, right: str, given: str = "", means: str = "True") -> Row:
    """A row whose fix takes the place of the input x."""
    return Row(wrong, right, f"out = layer({right})", means, f"{GIVEN}\n{given}")


def sharded(wrong: str, right: str, given: str = "", before: str = "") -> Row:
    """A row about a layer whose heads are shared out."""
    return Row(wrong, right, f"{before}{right}", given=f"{GIVEN}\n{MESH}\n{given}")


INPUTS = [
    value("layer(x.tolist())", "torch.as_tensor(x)", "x = x.tolist(); x = torch.tensor(x)"),
    call("layer(x, extra_tokens=4)", "torch.zeros(1, 4, 16)"),
    value("layer(x)", "x.to_dense()", "x = x.to_sparse()"),
    value("layer(x)", "x.movedim(1, -1)", "x = x.movedim(-1, 1)"),
    value("layer(x)", "torch.nn.Linear(12, 16)(x)", "x = x[..., :12]"),
    value("layer(x)", "x.unflatten(1, (4, 5))", "x = x.flatten(1, 2)"),
    value("layer(x)", "x.to(torch.float32)", "x = x.double()"),
    Row(
        "layer(x)",
        "layer.to_empty(device='cpu')",
        "layer.to_empty(device='cpu')\nlayer(x)",
        given=f"{GIVEN}\nlayer = layer.to('meta')",
    ),
    Row(
        "layer(x)",
        "mask=Mask.neighborhood((7, 7))",
        "layer = Layer(16, 2, mask=Mask.neighborhood((7, 7)))\nlayer(x)",
        given=f"{GIVEN}\nlayer = Layer(16, 2, Mask.neighborhood(7))",
    ),
    Row(
        "layer(x, context)",
        "torch.cat([context] * 2)",
        "layer(x, torch.cat([context] * 2))",
        given=f"{GIVEN}\ncontext = x[:1]",
    ),
    Row(
        "layer(x)",
        "layer(x, context)",
        "layer(x, context)",
        given=f"{GIVEN}\nlayer = Layer(16, 2, Mask.neighborhood((3, 3)), context_dim=8)\n"
        "context = torch.zeros(2, 4, 5, 8)",
    ),
    Row(
        "layer.plan_for((2, 4.0, 5, 16))",
        "shape=(2, 4, 5, 16)",
        "layer.plan_for(shape=(2, 4, 5, 16))",
        given=GIVEN,
    ),
    Row("layer.plan_for(x)", "shape=x.shape", "layer.plan_for(shape=x.shape)", given=GIVEN),
    Row(
        "layer(line, attn_mask=Mask.sliding_window(2).dense(12))",
        "layer.mask = Mask(Axis(2, 0)); ",
        "layer.mask = Mask(Axis(2, 0)); layer(line)",
        given="layer = NeighborhoodAttention(16, 2, Mask.full())\nline = torch.zeros(1, 12, 16)",
    ),
]
OTHERS = [
    Row(
        "Layer(16, 3, Mask.full())",
        "num_heads=2",
        "Layer(16, num_heads=2, mask=Mask.full())",
        given=GIVEN,
    ),
    Row(
        "Layer(16, 2, 7)",
        "mask=Mask.neighborhood((7, 7))",
        "Layer(16, 2, mask=Mask.neighborhood((7, 7)))",
        given=GIVEN,
    ),
    Row(
        "Layer(16, 2, Mask.full(), qk_transform=rotate)",
        "class Transform(torch.nn.Module): forward = staticmethod(rotate)",
        "class Transform(torch.nn.Module): forward = staticmethod(rotate)\n"
        "Layer(16, 2, Mask.full(), qk_transform=Transform())(torch.zeros(1, 5, 16))",
        given=f"{GIVEN}\ndef rotate(query, key): return query, key",
    ),
    Row(
        "Layer(16, 2, Mask.full(), qk_transform=Turn)",
        "qk_transform=Turn()",
        "Layer(16, 2, Mask.full(), qk_transform=Turn())",
        given=f"{GIVEN}\n{TRANSFORM.format('return query, key')}",
    ),
    Row(
        "layer(x)",
        "return query, key",
        TRANSFORM.format("return query, key") + "\nlayer(x)",
        given=f"{GIVEN}\n{TRANSFORM.format('return query')}",
    ),
    Row(
        "layer(x)",
        "return query.movedim(1, -2), key.movedim(1, -2)",
        TRANSFORM.format(
            "query, key = query.movedim(-2, 1), key.movedim(-2, 1); "
            "return query.movedim(1, -2), key.movedim(1, -2)"
        )
        + "\nlayer(x)",
        given=f"{GIVEN}\n" + TRANSFORM.format("return query.movedim(-2, 1), key.movedim(-2, 1)"),
    ),
    Row(
        "layer(x, extra_tokens=x[:, 0])",
        "type(layer.qk_transform).extra_key = lambda self, key: key",
        "type(layer.qk_transform).extra_key = lambda self, key: key\n"
        "layer(x, extra_tokens=x[:, 0])",
        given=f"{GIVEN}\n{TRANSFORM.format('return query, key')}",
    ),
    Row(
        "layer(x)",
        "layer.qkv = torch.nn.Linear(layer.dim, 48)",
        "layer.qkv = torch.nn.Linear(layer.dim, 48)\nlayer(x)",
        given=f"{GIVEN}\nlayer.qkv = torch.nn.Linear(16, 16)",
    ),
    Row(
        "torch.fx.symbolic_trace(layer)",
        "torch.fx.symbolic_trace(torch.nn.Sequential(layer))",
        "traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))",
        "torch.equal(traced(x), layer(x))",
        given=f"import torch.fx\n{GIVEN}",
    ),
]
SHARDED = [
    sharded("parallelize_module(model, mesh, {'attn.qkv': ColwiseParallel()}); layer(x)", HEADS,
            before="layer = Layer(16, 2, Mask.neighborhood((3, 3)))\n"
            "model = torch.nn.ModuleDict({'attn': layer})\n"),
    sharded("parallelize_module(layer.qkv, mesh, nbattn.nn.HeadParallel())", HEADS),
    sharded("parallelize_module(layer, mesh, nbattn.nn.HeadParallel()); layer(x)", PROJ,
            before="parallelize_module(layer, mesh, nbattn.nn.HeadParallel()); "),
    sharded("parallelize_module(layer, mesh, nbattn.nn.HeadParallel())",
            f"parallelize_module({MADE}, mesh, nbattn.nn.HeadParallel())",
            "torch.nn.utils.parametrizations.weight_norm(layer.qkv)"),
    sharded("parallelize_module(odd, mesh, nbattn.nn.HeadParallel())",
            "init_device_mesh('cpu', (2, 1), mesh_dim_names=(\"data\", \"heads\"))[\"heads\"]",
            "odd = Layer(16, 2, Mask.full(), kv_heads=1)",
            "mesh = "),
]  # fmt: skip

ROWS = [
    *INPUTS,
    *OTHERS,
    *SHARDED,
    argument("head_dim=0", "head_dim=8"),
    argument("kv_heads=3", "kv_heads=2"),
    argument("proj_drop=1.5", "proj_drop=0.1"),
    argument("layout='NCHW'", "layout='channels_first'"),
    argument("dtype='bf16'", "dtype=torch.bfloat16"),
    argument("device='gpu'", 'device="cpu"'),
    Row("layer(x, need_weights=True)", "layer(x)", "out = layer(x)", given=GIVEN),
    Row("layer(x, x, x)", "layer(x)", "out = layer(x)", given=GIVEN),
    Row("torch.jit.script(layer)", "torch.jit.trace(layer, x)", "torch.jit.trace(layer, x)",
        given=GIVEN),
]  # fmt: skip
