"""Tensor parallelism: a style for `parallelize_module` that shards a layer by its heads."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement
from torch.func import functional_call

from nbattn.errors import InputError, kind
from nbattn.nn import projections
from nbattn.nn.layer import NeighborhoodAttention


class HeadParallel(ParallelStyle):
    """Gives each rank of a mesh the rows of its own heads of q, k and v, and their numbers.

    It is placed on a `NeighborhoodAttention`, with torch's `RowwiseParallel` on its `proj`:

        parallelize_module(model, mesh, {"attn": HeadParallel(), "attn.proj": RowwiseParallel()})

    `rpb` has the rows of the rank's heads.

    Inputs are the same on all ranks, or a DTensor; `proj` sums the ranks' results. The gradients
    of `q_norm`, `k_norm` and `qk_transform`, which all heads share, are summed over the ranks.
    `num_heads` and `kv_heads` become those of a rank, and so `plan_for` gives a rank's plan.

    A rank's rows of q, k and v lie together, so on ranks the rows of `qkv.weight` have another
    order. `state_dict()` and `load_state_dict()` have NATTEN's, whatever the number of ranks: every
    rank must call them, as they communicate. States of an optimizer keep the order of the ranks:
    load them on as many ranks as saved them.

    Args:
        input_layouts: where the tokens are before the call, as in `ColwiseParallel`; default: all
            tokens on every rank.

    Raises:
        InputError: the module is not the layer, the mesh does not divide its heads, or a tool has
            replaced its projections.

    >>> HeadParallel()
    HeadParallel()
    """

    def __init__(self, *, input_layouts: Placement | None = None) -> None:
        super().__init__()
        self.input_layouts = input_layouts

    def __repr__(self) -> str:
        layouts = f"input_layouts={self.input_layouts}" if self.input_layouts else ""
        return f"HeadParallel({layouts})"

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer, ranks = _checked(module, device_mesh), device_mesh.size()
        heads = [layer.num_heads, layer.kv_heads, layer.kv_heads]
        named = {"qkv": heads} if layer.context_dim is None else {"q": heads[:1], "kv": heads[1:]}
        style = ColwiseParallel(input_layouts=self.input_layouts)
        for name, parts in named.items():
            linear: Any = getattr(layer, name)
            order = rows_by_rank([count * layer.head_dim for count in parts], ranks)
            with torch.no_grad():
                for parameter in linear.parameters():
                    parameter.copy_(_reordered(parameter, order))
            parallelize_module(linear, device_mesh, style, src_data_rank=self.src_data_rank)
            linear.register_state_dict_post_hook(_InOrder(order.argsort()))
            linear.register_load_state_dict_pre_hook(_InOrder(order))
        if layer.rpb is not None:
            table = distribute_tensor(
                layer.rpb.data, device_mesh, [Shard(0)], src_data_rank=self.src_data_rank
            )
            layer.rpb = nn.Parameter(table, requires_grad=layer.rpb.requires_grad)
        layer.num_heads, layer.kv_heads = layer.num_heads // ranks, layer.kv_heads // ranks
        layer.is_head_parallel = True
        return layer


def rows_by_rank(parts: Sequence[int], ranks: int) -> Tensor:
    """The order of a weight's rows on ranks: for each rank, its rows of each part.

    Args:
        parts: rows of each part of the weight: of q, k and v, or of some of them.
        ranks: their number, which divides each part.

    >>> rows_by_rank([4, 2, 2], 2).tolist()
    [0, 1, 4, 6, 2, 3, 5, 7]
    """
    whole = torch.arange(sum(parts)).split(list(parts))
    return torch.cat([part.chunk(ranks)[rank] for rank in range(ranks) for part in whole])


class _InOrder:
    """A hook that puts the rows of a module's weight and bias in a state dict into an order."""

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def __call__(
        self, module: nn.Module, state: dict[str, Any], prefix: str, *rest: object
    ) -> None:
        for name in (f"{prefix}weight", f"{prefix}bias"):
            if isinstance(state.get(name), Tensor):
                state[name] = _reordered(state[name], self.order)


def _reordered(tensor: Any, order: Tensor) -> Tensor:
    """Rows in another order; a distributed tensor stays distributed as it was."""
    with torch.no_grad():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        whole = whole[order.to(whole.device)]
        if not isinstance(tensor, DTensor):
            return whole
        everywhere = [Replicate()] * tensor.device_mesh.ndim
        shared = DTensor.from_local(whole, tensor.device_mesh, everywhere, run_check=False)
        return shared.redistribute(placements=tensor.placements)


def called_with_summed_gradients(
    mesh: DeviceMesh, module: nn.Module, method: str, *tensors: Tensor
) -> Any:
    """Calls a method of a module whose parameters are the same on all ranks, each of which has
    other tensors: the parameters' gradients are summed over the ranks.
    """
    # A call needs no wrapper; torch.compile would break its graph where it makes a module.
    called, prefix = (module, "") if method == "__call__" else (_Method(module, method), "module.")
    summed: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor):  # its own style sees to it
            continue
        shared = DTensor.from_local(parameter, mesh, (Replicate(),), run_check=False)
        summed[prefix + name] = shared.to_local(grad_placements=(Partial(),))
    if not summed:
        return getattr(module, method)(*tensors)
    return functional_call(called, summed, tensors)


class _Method(nn.Module):
    """A method of a module as a module of its own, so that `functional_call` takes it."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *tensors: Tensor) -> Any:
        return getattr(self.module, self.method)(*tensors)


def _checked(module: nn.Module, mesh: DeviceMesh) -> NeighborhoodAttention:
    """Checks that the module is a layer that the mesh can share out."""
    if not isinstance(module, NeighborhoodAttention):
        raise InputError(
            f"HeadParallel is on {kind(module)}; the layer has the numbers of heads.",
            projections.SHARDED,
        )
    if module.is_head_parallel or not all(map(projections.is_plain, module.projections())):
        raise InputError(
            "HeadParallel shards the nn.Linear that the layer made; another tool has changed it.",
            "parallelize_module(layer, mesh, nbattn.nn.HeadParallel()), before any other tool.",
        )
    ranks = mesh.size()
    if module.kv_heads % ranks:
        most = gcd(module.kv_heads, ranks)
        place = repr(mesh.device_type)
        raise InputError(
            f"{ranks} ranks cannot share {module.kv_heads} key heads evenly.",
            f"a mesh of {most} along heads: init_device_mesh({place}, ({ranks // most}, {most}), "
            'mesh_dim_names=("data", "heads"))["heads"].',
        )
    return module
