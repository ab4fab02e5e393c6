"""Fixes of distributed tensors, and of layers whose tokens ranks share."""

from fixes.row import Row

_ALONE = """
import nbattn.nn
import torch.distributed as dist
from nbattn.nn import SpaceParallel
from torch.distributed.tensor import (
    DTensor, Replicate, Shard, distribute_module, distribute_tensor
)
from torch.distributed.tensor.parallel import parallelize_module
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
mesh = dist.init_device_mesh("cpu", (1, 1), mesh_dim_names=("rows", "columns"))
other = dist.init_device_mesh("cpu", (1,))
mask = Mask.neighborhood((3, 3))
query = key = value = distribute_tensor(image, mesh, (Shard(1), Shard(2)))
sink = torch.zeros(4)
wanted = attention(image, image, image, mask)
model = torch.nn.ModuleDict({"attn": layer})
tokens = x
"""
_CALL = "attention(query, key, value, mask)"
_SAME = "torch.allclose(out.full_tensor(), wanted, atol=1e-5)"
_ALL = "query, key, value = (t.redistribute(placements={}) for t in (query, key, value))"


def placed(pasted: str, given: str, call: str = _CALL, means: str = _SAME) -> Row:
    """A call whose tensors are placed otherwise by what is pasted before it."""
    return Row(call, pasted, f"{pasted}\nout = {call}", means, _ALONE + given)


def option(name: str, pasted: str, given: str) -> Row:
    """A call with an argument that is placed otherwise."""
    call = f"attention(query, key, value, mask, {name}={name})"
    fixed = f"out = attention(query, key, value, mask, {pasted})"
    return Row(call, pasted, fixed, "out.shape == image.shape", _ALONE + given)


def of_layer(call: str, pasted: str, fixed: str, given: str = "", means: str = "") -> Row:
    """A call of the layer, and one that runs as it does in one process."""
    same = "torch.allclose(y.full_tensor(), expected, atol=1e-5)"
    return Row(call, pasted, fixed, means or same, f"{_ALONE}expected = layer(tokens)\n{given}")


TENSORS = [
    placed(
        _ALL.format("[Replicate(), Shard(dim=2)]"),
        "query = key = value = distribute_tensor(image, mesh, (Shard(4), Shard(2)))",
    ),
    placed(
        _ALL.format("[Shard(dim=1), Shard(dim=2)]"),
        "key = value = distribute_tensor(image, mesh, (Replicate(), Shard(2)))",
    ),
    placed(
        _ALL.format("[Shard(dim=1), Shard(dim=2)]"),
        "query = distribute_tensor(image, mesh, (Replicate(), Shard(2)))",
    ),
    placed(
        _ALL.format("[Shard(dim=1), Shard(dim=2)]"),
        "value = distribute_tensor(image, mesh, (Shard(2), Shard(1)))",
    ),
    placed(
        "query = DTensor.from_local(query, key.device_mesh)"
        ".redistribute(placements=key.placements)",
        "query = image",
    ),
    placed(
        "value = DTensor.from_local(value.full_tensor(), query.device_mesh)"
        ".redistribute(placements=query.placements)",
        "value = distribute_tensor(image, other, (Shard(1),))",
    ),
    option(
        "sink",
        "sink=sink.redistribute(placements=[Replicate(), Replicate()])",
        "sink = distribute_tensor(sink, mesh, (Shard(0), Replicate()))",
    ),
    option(
        "sink",
        "sink=sink.full_tensor()",
        "sink = distribute_tensor(sink, other, (Replicate(),))",
    ),
    option(
        "sink",
        "sink=sink.to_local()",
        "sink = distribute_tensor(sink, mesh, (Replicate(), Replicate()))\n"
        "query = key = value = image",
    ),
    Row(
        "attention(query, key, value, mask, grids=grids)",
        "nbattn.attention(query.full_tensor(), key.full_tensor(), value.full_tensor(), mask, "
        "grids=grids)",
        "out = nbattn.attention(query.full_tensor(), key.full_tensor(), value.full_tensor(), mask, "
        "grids=grids)",
        "torch.allclose(out, wanted.flatten(0, 2), atol=1e-5)",
        _ALONE + "grids = [(6, 8)] * 2\n"
        "query = key = value = distribute_tensor(image.flatten(0, 2), mesh, (Shard(0), Shard(1)))",
    ),
]
LAYERS = [
    of_layer(
        "layer(x)",
        "parallelize_module(layer, x.device_mesh, nbattn.nn.SpaceParallel())",
        "parallelize_module(layer, x.device_mesh, nbattn.nn.SpaceParallel())\ny = layer(x)",
        "x = distribute_tensor(x, mesh, (Shard(1), Shard(2)))",
    ),
    of_layer(
        "layer(x)",
        "torch.distributed.tensor.distribute_module(whole_layer, x.device_mesh)",
        "layer = torch.distributed.tensor.distribute_module(whole_layer, x.device_mesh)\n"
        "y = layer(x)",
        "import copy\nwhole_layer = copy.deepcopy(layer)\nlayer = distribute_module(layer, other)\n"
        "x = distribute_tensor(x, mesh, (Shard(1), Shard(2)))",
    ),
    of_layer(
        "layer(x)",
        "DTensor.from_local(x, mesh, placements)",
        "x = DTensor.from_local(x, mesh, placements)\ny = layer(x)",
        "parallelize_module(layer, mesh, SpaceParallel())\nplacements = Shard(1), Shard(2)",
    ),
    of_layer(
        "SpaceParallel(shard=('rows', 'columns'))",
        "SpaceParallel()",
        "parallelize_module(layer, mesh, SpaceParallel())\n"
        "y = layer(distribute_tensor(x, mesh, (Shard(1), Shard(2))))",
    ),
    of_layer(
        'parallelize_module(model, mesh, {"attn.qkv": SpaceParallel()})',
        'parallelize_module(model, mesh, {"attn": nbattn.nn.SpaceParallel()})',
        'parallelize_module(model, mesh, {"attn": nbattn.nn.SpaceParallel()})\n'
        "y = layer(distribute_tensor(x, mesh, (Shard(1), Shard(2))))",
    ),
    of_layer(
        "layer(x, extra_tokens=tokens[:, 0], update_extra=True)",
        "layer.proj_drop.p = 0.0",
        "layer.proj_drop.p = 0.0\ny, _ = layer(x, extra_tokens=tokens[:, 0], update_extra=True)",
        "parallelize_module(layer, mesh, SpaceParallel())\nlayer.proj_drop.p = 0.5\n"
        "x = distribute_tensor(x, mesh, (Shard(1), Shard(2)))",
        "y.shape == x.shape",
    ),
    of_layer(
        "layer(x[:, :5])",
        "space=(5, 8)",
        'parallelize_module(layer, mesh, SpaceParallel(shard=("rows", None), space=(5, 8)))\n'
        "y = layer(x[:, :5])",
        'parallelize_module(layer, mesh, SpaceParallel(shard=("rows", None), space=(6, 8)))',
        "y.shape == x[:, :5].shape",
    ),
]
ROWS = [*TENSORS, *LAYERS]
