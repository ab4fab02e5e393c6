"""Fixes of the weights of a few queries: which queries, and arguments that attention has."""

from fixes.row import Row

_GIVEN = "query, key, mask, at = image, image, Mask.neighborhood((3, 3)), [(1, 2)]\n"
_SIZE = "out.shape == (2, 4, 1, 6, 8)"
_DTENSORS = """
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
mesh = dist.init_device_mesh("cpu", (1,))
query = key = distribute_tensor(image, mesh, (Shard(0),))
"""


def weights(wrong: str, pasted: str, means: str = _SIZE, given: str = "") -> Row:
    """A whole call, and the call in its place."""
    return Row(f"attention_weights({wrong})", pasted, f"out = {pasted}", means, _GIVEN + given)


def at(wrong: str, right: str, means: str = _SIZE) -> Row:
    """A list of queries, and the list in its place."""
    calls = [f"out = attention_weights(query, key, mask, {given})" for given in (wrong, right)]
    return Row(calls[0], right, calls[1], means, _GIVEN)


_CALL = "nbattn.attention_weights(query, key, mask, at=at)"
ROWS = [
    at("at=[(8, 2)]", "at=[(5, 2)]"),
    at("at=[(0, 0), (0, -9)]", "at=[(0, 0), (0, 0)]", "out.shape[2] == 2"),
    at("at=(4, 3)", "at=[(4, 3)]"),
    at("at=3", "at=[(3, 3)]"),
    at("at=[10]", "at=[(1, 2)]"),
    at("at=[(1, 2, 3)]", "at=[(1, 2)]"),
    at("at=[(1.0, 2)]", "at=[(1, 2)]"),
    at("at=torch.zeros(1, 2, device='meta')", "at=[(0, 0)]"),
    weights(
        "query, key, mask",
        "nbattn.attention_weights(query, key, mask, at=[(0,) * mask.rank])",
    ),
    weights("query, key, key, mask, at=at", _CALL),
    weights("query, mask, key, at=at", _CALL),
    weights("query, key, mask, at=at, value=key", _CALL),
    weights(
        "query, key, mask, at=at, backend='auto', softcap=softcap",
        f"{_CALL[:-1]}, softcap=softcap)",
        given="softcap = 9.0",
    ),
    Row(
        "attention_weights(query, key, mask, at=at, qk_scale=0.5)",
        "scale=0.5",
        "out = attention_weights(query, key, mask, at=at, scale=0.5)",
        _SIZE,
        _GIVEN,
    ),
    weights(
        "query, key, mask, at=at, alibi_slopes=alibi_slopes",
        "nbattn.attention_weights(query, key, at=at, mask=Mask(Axis(1, 1, border='shift'), "
        "Axis(1, 1, border='shift')), relative_bias=-alibi_slopes.reshape(-1, 1, 1) * "
        "(torch.arange(-2, 3).abs().reshape(-1, 1) + torch.arange(-2, 3).abs().reshape(1, -1)))",
        given="alibi_slopes = torch.ones(4)",
    ),
    weights(
        "query, key, mask, at=at",
        "nbattn.attention_weights(query.full_tensor(), key.full_tensor(), mask, at=at)",
        given=_DTENSORS,
    ),
    weights(
        "query, key, mask, at=at",
        "[nbattn.attention_weights(q[None], k[None], mask, at=at) for q, k in zip(query.unbind(), "
        "key.unbind())]",
        "[weights.shape for weights in out] == [(1, 4, 1, 5), (1, 4, 1, 7)]",
        "query = key = torch.nested.nested_tensor([q[0, :5], q[0, :7]], layout=torch.jagged)\n"
        "mask, at = Mask.sliding_window(3), [4]",
    ),
    weights(
        "query, key, mask, grids=[(6, 8), (3, 16)], at=[(1, 2, 3)]",
        "nbattn.attention_weights(query[48:96].unflatten(0, (3, 16))[None], "
        "key[48:96].unflatten(0, (3, 16))[None], mask, at=[(2, 3)])",
        "out.shape == (1, 4, 1, 3, 16)",
        "query = key = image.flatten(0, 2)",
    ),
    Row(
        "attention(query, key, key, mask, need_weights=True, scale=0.5)",
        "nbattn.attention_weights(query, key, mask, scale=0.5, at=[(0, 0)])",
        "out = nbattn.attention_weights(query, key, mask, scale=0.5, at=[(0, 0)])",
        _SIZE,
        _GIVEN,
    ),
]
