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


ROWS = [
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
