"""Fixes of attention across ranks: how a call says what is cut, and calls that do not fit."""

from fixes.row import Row

_ALONE = """
import nbattn.distributed
import torch.distributed as dist
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
mesh = dist.init_device_mesh("cpu", (1, 1), mesh_dim_names=("rows", "columns"))
query = key = value = image
mask = Mask.neighborhood((3, 3))
shard = "rows", "columns"
space = 6, 8
"""
_OF_FOUR = """
import nbattn.distributed
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", rank=3, world_size=4, store=FakeStore())
mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
line_mesh = dist.init_device_mesh("cpu", (4,), mesh_dim_names=("x",))
whole_query = whole_key = whole_value = image[:, :5, :7]
query = key = value = whole_query[:, 3:, 4:]
mask = Mask.neighborhood((3, 3))
shard = "rows", "columns"
space = 5, 7
"""
_CALL = "nbattn.distributed.attention(query, key, value, mask, {})"
_LEGAL = "mesh=mesh, shard=('rows', 'columns'), space=(6, 8)"
_SAME = "torch.allclose(out, attention(image, image, image, Mask.neighborhood((3, 3))), atol=1e-5)"


def row(wrong: str, pasted: str, right: str = "", means: str = _SAME, given: str = "") -> Row:
    """Arguments of a call by the one rank of all, and those in their place."""
    fixed = right or ", ".join(
        pasted if part == pasted.partition("=")[0] else f"{part}={part}"
        for part in ("mesh", "shard", "space")
    )
    return Row(_CALL.format(wrong), pasted, f"out = {_CALL.format(fixed)}", means, _ALONE + given)


def whole(wrong: str, pasted: str, means: str = _SAME, given: str = "") -> Row:
    """A call, and the call in its place."""
    return Row(wrong, pasted, f"out = {pasted}", means, _ALONE + given)


def part(wrong: str, pasted: str, given: str = "", means: str = "", fixed: str = "") -> Row:
    """A call by the last rank of four, of which only this one exists, and what repairs it."""
    call = _CALL.format("mesh=mesh, shard=shard, space=space")
    of_shape = "out.shape == value.shape"
    return Row(
        wrong, pasted, f"{fixed or pasted}; out = {call}", means or of_shape, _OF_FOUR + given
    )


GIVEN = [
    row(
        "mesh=None, shard='x', space=12",
        "mesh=torch.distributed.init_device_mesh('cpu', (1,), mesh_dim_names=('x',))",
        "mesh=torch.distributed.init_device_mesh('cpu', (1,), mesh_dim_names=('x',)), shard='x', "
        "space=12",
        "torch.equal(out, attention(q, q, q, mask))",
        "query = key = value = q; mask = Mask.sliding_window(3)",
    ),
    row(
        "mesh=mesh, shard='x', space=12",
        "mesh=torch.distributed.device_mesh.DeviceMesh.from_group(mesh, 'cpu', "
        "mesh_dim_names=('x',))",
        "mesh=torch.distributed.device_mesh.DeviceMesh.from_group(mesh, 'cpu', "
        "mesh_dim_names=('x',)), shard='x', space=12",
        "torch.equal(out, attention(q, q, q, mask))",
        "query = key = value = q; mask = Mask.sliding_window(3); mesh = dist.group.WORLD",
    ),
    row(
        "mesh=mesh, shard=('x', 'y'), space=space",
        "mesh=torch.distributed.init_device_mesh('cpu', (1, 1), mesh_dim_names=('x', 'y'))",
        "mesh=torch.distributed.init_device_mesh('cpu', (1, 1), mesh_dim_names=('x', 'y')), "
        "shard=('x', 'y'), space=space",
        given="mesh = dist.init_device_mesh('cpu', (1, 1))",
    ),
    row("mesh=mesh, shard='rows', space=space", "shard=('rows', None)"),
    row("mesh=mesh, shard=('row', 'columns'), space=space", "shard=('rows', 'columns')"),
    row("mesh=mesh, shard=(1, 0), space=space", "shard=('columns', 'rows')"),
    row(
        "mesh=mesh, shard=[Shard(2), Shard(1)], space=space",
        "shard=('columns', 'rows')",
        given="from torch.distributed.tensor import Shard",
    ),
    row("mesh=mesh, shard={'columns', 'rows'}, space=space", "shard=('rows', 'columns')"),
    row("mesh=mesh, shard={1: 'rows', 0: 'columns'}, space=space", "shard=('columns', 'rows')"),
    row("mesh=mesh, shard={'rows': 1}, space=space", "shard=(None, 'rows')"),
    row("mesh=mesh, shard=0.5, space=space", "shard=('rows', 'columns')"),
    row("mesh=mesh, shard=shard, space=None", "space=(6, 8)"),
    row(
        "mesh=mesh, shard=shard, space=space",
        "space=space.tolist()",
        "mesh=mesh, shard=shard, space=space.tolist()",
        given="space = torch.tensor([6, 8])",
    ),
    row("mesh=mesh, shard=('rows', 'rows'), space=space", "shard=('rows', 'columns')"),
    row("mesh=mesh, shard=shard, space=6", "space=(6, 8)"),
    row("mesh=mesh, shard=shard, space=image.shape", "space=(6, 8)"),
    row("mesh=mesh, shard=shard, space=image", "space=(6, 8)"),
    row("mesh=mesh, shard=(None, 'columns'), space=(5, 8)", "space=(6, 8)"),
    row(
        "mesh=mesh, shard=shard, space=space, query_shard=('columns', 'rows')",
        "query_shard=('rows', 'columns')",
        "mesh=mesh, shard=shard, space=space, query_shard=('rows', 'columns')",
    ),
    row(
        "mesh=mesh, shard=shard, space=space, query_shard=(None, None)",
        "query_shard=('rows', 'columns')",
        "mesh=mesh, shard=shard, space=space, query_shard=('rows', 'columns')",
    ),
]
_OF_PART = _CALL.format("mesh=mesh, shard=shard, space=space")
PARTS = [
    part(
        _OF_PART,
        "query=whole_query.chunk(2, 1)[mesh.get_local_rank('rows')]"
        ".chunk(2, 2)[mesh.get_local_rank('columns')]",
        "query = whole_query",
        "out.shape == (2, 2, 3, 4, 16)",
    ),
    part(
        _OF_PART,
        "key=whole_key.chunk(2, 1)[mesh.get_local_rank('rows')]"
        ".chunk(2, 2)[mesh.get_local_rank('columns')]",
        "key = whole_key[:, :3, :3]",
    ),
    Row(
        _CALL.format("mesh=line_mesh, shard=('x', None), space=space"),
        "query=whole_query.narrow(1, 5, 0)",
        "query=whole_query.narrow(1, 5, 0)\nkey = value = query\n"
        f"out = {_CALL.format('mesh=line_mesh, shard=(chr(120), None), space=space')}",
        "out.shape == (2, 0, 7, 4, 16)",
        f"{_OF_FOUR}query = whole_query",
    ),
]
PARTS += [
    Row(
        _OF_PART,
        "space=(6, 8)",
        f"out = {_CALL.format('mesh=mesh, shard=shard, space=(6, 8)')}",
        "out.shape == query.shape",
        f"{_OF_FOUR}query = key = value = image[:, 3:, 4:]; space = 3, 4",
    ),
    Row(
        _OF_PART,
        "nbattn.attention(query, key, value, mask)",
        "out = nbattn.attention(query, key, value, mask)",
        "out.placements == query.placements and out.shape == image.shape",
        f"{_OF_FOUR}from torch.distributed.tensor import Shard, distribute_tensor\n"
        "query = key = value = distribute_tensor(image, mesh, [Shard(1), Shard(2)])",
    ),
    Row(
        _CALL.format("mesh=mesh, shard=shard, space=space, sink=sink"),
        "sink=sink.to_local()",
        f"out = {_CALL.format('mesh=mesh, shard=shard, space=space, sink=sink.to_local()')}",
        "out.shape == query.shape",
        f"{_OF_FOUR}from torch.distributed.tensor import Replicate, DTensor\n"
        "sink = DTensor.from_local(torch.zeros(4), mesh, [Replicate(), Replicate()])",
    ),
]
_ARGUMENTS = "mesh=mesh, shard=shard, space=space"
_SORTED = (
    "mesh=torch.distributed.device_mesh.DeviceMesh('cpu', "
    "mesh.mesh.flatten().sort().values.view((2, 2)), mesh_dim_names=('rows', 'columns'))"
)
_MEMBERS = f"if mesh.get_coordinate() is not None: out = {_CALL.format(_ARGUMENTS)}"
MESHES = [
    part(
        _OF_PART,
        _SORTED,
        "mesh = dist.DeviceMesh('cpu', [[3, 1], [0, 2]], mesh_dim_names=('rows', 'columns'))",
        "mesh.get_coordinate() == (1, 1)",
    ),
    Row(
        _OF_PART,
        _MEMBERS,
        _MEMBERS,
        "'out' not in globals()",
        f"{_OF_FOUR}mesh = dist.DeviceMesh('cpu', [[0, 1]], mesh_dim_names=shard)",
    ),
]


def word(
    wrong: str, pasted: str, arguments: str = _ARGUMENTS, given: str = "", means: str = _SAME
) -> Row:
    """A call with an argument that it does not take, and the one in its place."""
    fixed = f"out = {_CALL.format(f'{arguments}, {pasted}')}"
    return Row(_CALL.format(f"{arguments}, {wrong}"), pasted, fixed, means, _ALONE + given)


WORDS = [
    whole(
        "nbattn.distributed.attention(query, key, value, mask)",
        "nbattn.distributed.attention(query, key, value, mask, "
        "mesh=torch.distributed.init_device_mesh('cpu', (1,), mesh_dim_names=('x',)), "
        "shard=('x', None), space=space)",
    ),
    whole(
        "nbattn.distributed.attention(query, key, value, mask, mesh=mesh)",
        _CALL.format(_LEGAL),
    ),
    whole(
        "nbattn.distributed.attention(query, key, value, mesh=mesh, shard=shard, space=space)",
        f"nbattn.distributed.attention(query, key, value, Mask.full(rank=2), {_LEGAL})",
        "torch.allclose(out, attention(query, key, value, Mask.full(rank=2)), atol=1e-5)",
    ),
    whole(_CALL.format("mesh, shard, space, scale=0.25"), _CALL.format(f"{_LEGAL}, scale=0.25")),
    word("device_mesh=mesh", "mesh=device_mesh", "shard=shard, space=space", "device_mesh = mesh"),
    word("shape=space", "space=(6, 8)", "mesh=mesh, shard=shard"),
    word(
        "placements=[Shard(2)]",
        "shard=(None, 'rows')",
        "mesh=mesh, space=space",
        "from torch.distributed.tensor import Shard",
    ),
    word(
        "group=group",
        "mesh=torch.distributed.device_mesh.DeviceMesh.from_group(group, 'cpu', "
        "mesh_dim_names=('x',))",
        "shard=('x', None), space=space",
        "group = dist.group.WORLD",
    ),
    word("sm_scale=0.25", "scale=0.25"),
    word(
        "attention_mask=attention_mask",
        "key_range=nbattn.key_range_from(attention_mask.bool())",
        given="attention_mask = torch.ones(2, 6, 8)",
    ),
    word(
        "lengths=lengths",
        "key_range=nbattn.key_range_from(torch.arange(12, device=key.device) < "
        "torch.as_tensor(lengths, device=key.device)[:, None])",
        "mesh=mesh, shard=('rows',), space=(12,)",
        "query = key = value = q; mask = Mask.sliding_window(3); lengths = [9, 12]",
        "torch.equal(out, attention(q, q, q, mask, key_range=[[0, 9], [0, 12]]))",
    ),
    whole(
        _CALL.format(f"{_ARGUMENTS}, dropout_p=0.0, is_causal=False"),
        _CALL.format("mesh=mesh, shard=('rows', 'columns'), space=(6, 8)"),
    ),
    Row(
        _CALL.format(f"{_ARGUMENTS}, kernel_size=3"),
        "mask=Mask.neighborhood((3, 3))",
        f"mask=Mask.neighborhood((3, 3)); out = {_CALL.format(_ARGUMENTS)}",
        _SAME,
        _ALONE,
    ),
    Row(
        _CALL.format(f"{_ARGUMENTS}, grids=grids"),
        "nbattn.attention(query, key, value, mask, grids=grids)",
        "out = nbattn.attention(query, key, value, mask, grids=grids)",
        "out.shape == query.shape",
        f"{_ALONE}query = key = value = torch.randn(10, 4, 16); grids = [(2, 3), (2, 2)]",
    ),
]
_TENSORS = (
    "from torch.distributed.tensor import Shard, distribute_tensor\n"
    "query = key = value = distribute_tensor(image, mesh, [Shard(1), Shard(2)])"
)
ELSEWHERE = [
    Row(
        f"torch.func.grad(lambda x: {_CALL.format(_ARGUMENTS)}.sum())(key)".replace(
            "key, v", "x, v"
        ),
        "torch.autograd.grad(outputs, inputs)",
        f"inputs = key = image.clone().requires_grad_(); outputs = {_CALL.format(_ARGUMENTS)}.sum()"
        "; (out,) = torch.autograd.grad(outputs, inputs)",
        "torch.allclose(out, torch.func.grad(lambda x: attention(image, x, image, mask).sum())("
        "image), atol=1e-5)",
        _ALONE,
    ),
    whole(
        _CALL.format(_ARGUMENTS),
        "nbattn.attention(query, key, value, mask)",
        _SAME.replace("out,", "out.full_tensor(),"),
        _TENSORS,
    ),
    Row(
        _CALL.format(_ARGUMENTS),
        "query=query.to_local()",
        f"out = {_CALL.format(_ARGUMENTS).replace('(query', '(query=query.to_local()')}".replace(
            "key, value, mask,", "key=key, value=value, mask=mask,"
        ),
        _SAME,
        f"{_ALONE}{_TENSORS}; key = value = image",
    ),
    whole(
        f"attention(query, key, value, mask, {_ARGUMENTS}, scale=0.25)",
        "nbattn.distributed.attention(query, key, value, mask, scale=0.25, mesh=mesh, "
        "shard=('rows', 'columns'), space=(6, 8))",
    ),
    whole(
        "attention(query, key, value, mask, mesh=mesh)",
        "nbattn.distributed.attention(query, key, value, mask, mesh=mesh, shard=shard, "
        "space=space)",
    ),
]
ROWS = [*GIVEN, *PARTS, *MESHES, *WORDS, *ELSEWHERE]
