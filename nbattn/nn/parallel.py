"""Styles for `parallelize_module`: a layer shared by its heads, or by the space of its tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, parallelize_module
from torch.distributed.tensor.placement_types import Placement
from torch.func import functional_call

from nbattn.distributed import given
from nbattn.distributed.tensors import Layout
from nbattn.errors import InputError, kind
from nbattn.mask import Mask
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


class SpaceParallel(ParallelStyle):
    """Runs a layer whose tokens ranks of a mesh share: each has a part of the space.

    It is placed on a `NeighborhoodAttention`, whose parameters stay as they are, on every rank:

        parallelize_module(model, mesh, {"attn": SpaceParallel(shard=("y", "x"), space=(64, 96))})

    Every rank's tokens are then `[B, *its part of the space, dim]`, in chunks as `torch.chunk` cuts
    them, and so is the result. Ranks exchange the keys that their queries attend to, and no others:
    `nbattn.distributed.attention`. Or the tokens are a DTensor, whose placements say what is
    shared, the batch too; the result has the same. These need no arguments.

    A `qk_transform` sees the whole space, as DTensors, with the positions of one process. Extra
    tokens are the same on all ranks; ranges and slopes are those of the whole space.

    `HeadParallel` on other dimensions of the mesh, and `fully_shard`, go together with it.

    Args:
        shard: for each axis, the name of a dimension of the mesh, or None for one that every rank
            has whole; needed where tokens are no DTensors.
        space: lengths of the whole axes; needed with `shard`.
        key_space: those of a context; default: `space`.
        sum_gradients: whether the gradients of parameters, and of extra tokens, are summed over
            the ranks that share tokens, so that each has those of one process. Without it each has
            its share, for tools that sum all gradients over these ranks themselves (FSDP or DDP on
            a mesh that has their dimensions).

    Raises:
        InputError: the module is not the layer.

    >>> SpaceParallel(shard=("y", "x"), space=(64, 96))
    SpaceParallel(shard=('y', 'x'), space=(64, 96))
    """

    def __init__(
        self,
        *,
        shard: Sequence[str | None] | str | None = None,
        space: Sequence[int] | int | None = None,
        key_space: Sequence[int] | int | None = None,
        sum_gradients: bool = True,
    ) -> None:
        super().__init__()
        if (shard is None) != (space is None):
            raise InputError(
                f"SpaceParallel has shard={shard!r} and space={space!r}: local tokens need both.",
                "SpaceParallel(), for tokens that are DTensors.",
            )
        self.shard, self.space, self.key_space = shard, space, key_space
        self.sum_gradients = sum_gradients

    def __repr__(self) -> str:
        named = {"shard": self.shard, "space": self.space, "key_space": self.key_space}
        parts = [f"{name}={value!r}" for name, value in named.items() if value is not None]
        parts += ["sum_gradients=False"] * (not self.sum_gradients)
        return f"SpaceParallel({', '.join(parts)})"

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, NeighborhoodAttention):
            raise InputError(
                f"SpaceParallel is on {kind(module)}; the layer attends across ranks.",
                'parallelize_module(model, mesh, {"attn": nbattn.nn.SpaceParallel()}), where '
                "model.attn is the layer.",
            )
        module.space_parallel = SharedSpace(device_mesh, self, module)
        if self.shard is not None:
            module.space_parallel.of_local(module.mask)  # checks the arguments
        return module


class SharedSpace:
    """What a layer knows of the ranks that share its tokens.

    Args:
        mesh: the mesh of the style.
        style: the style.
        layer: the layer.
    """

    def __init__(self, mesh: DeviceMesh, style: SpaceParallel, layer: nn.Module) -> None:
        self.mesh, self.style, self.sum_gradients = mesh, style, style.sum_gradients
        self.called = Called(layer)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedSpace:
        layer = copy.deepcopy(self.called.module, memo)
        return SharedSpace(self.mesh, self.style, layer)  # of the same processes

    def of_local(self, mask: Mask) -> tuple[Layout, tuple[int, ...], tuple[int, ...]]:
        """How local tokens are shared, and the lengths of the whole axes of queries and keys."""
        style = self.style
        if style.shard is None or style.space is None:
            raise InputError(
                "x is a tensor of this rank, and the layer does not know of which space.",
                "SpaceParallel(shard=shard, space=space), or x as a DTensor: "
                "DTensor.from_local(x, mesh, placements).",
            )
        names = self.mesh.mesh_dim_names or ()
        shard, _, space, key_space = given.sharding(
            (), mask, self.mesh, style.shard, None, style.space, style.key_space
        )
        axes = tuple(None if name is None else names.index(str(name)) for name in shard)
        return Layout(self.mesh, (), (), axes, axes), space, key_space


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
    found = {
        prefix + name: summed(parameter, mesh, (Partial(),))
        for name, parameter in module.named_parameters()
        if not isinstance(parameter, DTensor)  # its own style sees to it
    }
    if not found:
        return getattr(module, method)(*tensors)
    return functional_call(called, found, tensors)


def summed(parameter: Tensor, mesh: DeviceMesh, gradient: Sequence[Placement]) -> Tensor:
    """A parameter that ranks of a mesh have alike, as a tensor of each of them; its gradient is the
    sum over the mesh dimensions on which `gradient` is Partial.
    """
    if not isinstance(parameter, DTensor):
        shared = DTensor.from_local(parameter, mesh, [Replicate()] * mesh.ndim, run_check=False)
        return shared.to_local(grad_placements=gradient)
    if parameter.device_mesh == mesh:
        return parameter.to_local(grad_placements=gradient)
    return DTensor.from_local(
        summed(parameter.to_local(), mesh, gradient),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


class Called(nn.Module):
    """A module that calls a function, with another module in it whose parameters
    `functional_call` replaces.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, run: Callable[..., Any], *given: Any) -> Any:
        """Calls the function."""
        return run(*given)


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
