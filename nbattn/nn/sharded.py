"""The layer on tokens that ranks share: its projections run on each rank's tokens, and attention
across ranks.
"""

# pyright: reportPrivateUsage=false
# the other half of the layer's forward, which calls its methods

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_map_only

from nbattn import joint
from nbattn.distributed import tensors
from nbattn.distributed.known_plans import PLANS
from nbattn.distributed.tensors import Layout
from nbattn.errors import InputError
from nbattn.mask import Mask
from nbattn.nn import inputs, parallel, projections

if TYPE_CHECKING:
    from nbattn.nn.layer import NeighborhoodAttention

_Tokens = Tensor | None
_HERE = "parallelize_module(layer, x.device_mesh, nbattn.nn.SpaceParallel())"


@dataclass(frozen=True, slots=True)
class Call:
    """What one call shares with the other ranks.

    Args:
        layout: what the dimensions of the mesh shard.
        samples: the batch of all ranks.
        space, key_space: lengths of the whole axes.
        sums: whether gradients of plain parameters are summed over the ranks.
        takes_plain: whether parameters may be plain tensors.
    """

    layout: Layout
    samples: int
    space: tuple[int, ...]
    key_space: tuple[int, ...]
    sums: bool
    takes_plain: bool

    @property
    def batch(self) -> list[Placement]:
        """Placements of what all ranks of the space have, with the batch of the ranks."""
        own = self.layout.batch
        return [Shard(0) if n in own else Replicate() for n in range(self.layout.mesh.ndim)]

    def of_grid(self, *, keys: bool = False) -> list[Placement]:
        """Placements of the grid's queries or keys, `[B, *space, …]`."""
        found = self.batch
        axes = self.layout.keys if keys else self.layout.queries
        for axis, number in enumerate(axes):
            if number is not None:
                found[number] = Shard(axis + 1)
        return found

    def called(
        self,
        layer: NeighborhoodAttention,
        module: nn.Module,
        gradient: Sequence[Placement],
        given: Sequence[Any],
        run: Callable[..., Any] | None = None,
    ) -> Any:
        """Calls the layer's projection, or a function that calls the rest of the layer, with
        parameters that are this rank's and whose gradients have these placements.
        """
        own: dict[str, Tensor] = {}
        has_shares = self.sums and any(isinstance(p, Partial) for p in gradient)
        for name, parameter in module.named_parameters():
            if run is not None and name.startswith("proj."):
                continue
            if isinstance(parameter, DTensor) and not layer.is_head_parallel:
                self._check(name, parameter)
            elif not isinstance(parameter, DTensor) and not self.takes_plain:
                raise InputError(f"x is distributed, and the layer's {name} is not.", _HERE)
            elif not (has_shares and parameter.requires_grad):
                continue
            found = parallel.summed(parameter, self.layout.mesh, gradient)
            own[f"module.{name}" if run else name] = found
        for name, buffer in module.named_buffers():
            if isinstance(buffer, DTensor) and run is not None:
                own[f"module.{name}"] = buffer.to_local()
        if run is None:
            return functional_call(module, own, tuple(given)) if own else module(*given)
        style = layer.space_parallel  # compilers break their graph where a module is made
        called = parallel.Called(module) if style is None else style.called
        return functional_call(called, own, (run, *given)) if own else run(*given)

    def _check(self, name: str, parameter: DTensor) -> None:
        """Checks that a distributed parameter is whole on every rank of the mesh."""
        mesh = self.layout.mesh
        if parameter.device_mesh != mesh or any(
            not isinstance(placement, Replicate) for placement in parameter.placements
        ):
            raise InputError(
                f"the layer's {name} has placements {list(parameter.placements)} on "
                f"{parameter.device_mesh}; each rank of {mesh}, the mesh of x, needs all of it.",
                "torch.distributed.tensor.distribute_module(whole_layer, x.device_mesh), a layer "
                "whose parameters are not distributed yet.",
            )


def attend(
    layer: NeighborhoodAttention,
    x: Any,
    context: _Tokens,
    *,
    extra_tokens: _Tokens,
    update_extra: bool,
    key_range: Any,
    extra_range: Any,
    alibi_slopes: Any,
) -> Any:
    """Computes the layer on this rank's tokens: local shards, or distributed tensors."""
    layer._check(x, context, extra_tokens, update_extra)
    if update_extra and layer.training and layer.proj_drop.p:
        raise InputError(
            f"update_extra with proj_drop={layer.proj_drop.p}: each rank would drop other channels "
            "of the extra tokens, which all ranks have alike.",
            "layer.proj_drop.p = 0.0",
        )
    call = _call(layer, x, context)
    layout, at = call.layout, 2 if layer.layout == "channels_first" else 1
    own = [None if t is None else _local(layout, t) for t in (x, context)]
    own = [t.movedim(1, -1) if t is not None and at == 2 else t for t in own]
    placed = {"key_range": key_range, "extra_range": extra_range}
    placed = {name: layout.own(name, given, batch=0) for name, given in placed.items()}
    has_batch = isinstance(alibi_slopes, Tensor) and alibi_slopes.dim() == 2
    slopes = layout.own("alibi_slopes", alibi_slopes, batch=0 if has_batch else None)
    shares = layout.shares([Replicate()] * layout.mesh.ndim)
    if call.sums and isinstance(extra_tokens, Tensor) and not isinstance(extra_tokens, DTensor):
        extra_tokens = parallel.summed(extra_tokens, layout.mesh, shares)
    is_shared = extra_tokens is not None and extra_tokens.shape[0] == 1
    extras = layout.own("extra_tokens", extra_tokens, batch=None if is_shared else 0)
    transform: Any = layer.qk_transform
    whole = {} if transform is None else dict(transform.named_parameters())

    def heads(x: Tensor, context: _Tokens, extra_tokens: _Tokens) -> list[Tensor]:
        given = x, context, extra_tokens, update_extra
        return _attended(layer, call, whole, *given, slopes, placed)

    found: list[Tensor] = call.called(layer, layer, shares, (*own, extras), heads)
    gradients = [layout.shares([Replicate()] * layout.mesh.ndim, merged=False)]
    if update_extra:
        gradients.append([Partial() if isinstance(p, Shard) else p for p in call.batch])
    results = [
        layer.proj_drop(call.called(layer, layer.proj, gradient, [part.flatten(-2)]))
        for part, gradient in zip(found, gradients, strict=True)
    ]
    if isinstance(x, DTensor):
        if update_extra and not call.sums:  # its gradient is alike on the ranks of the space
            results[1] = _share(results[1], layout.mesh, (n for n in layout.keys if n is not None))
        shapes = [(x.shape[0], *call.space, layer.dim), (x.shape[0], *results[-1].shape[1:])]
        placements = [call.of_grid(), call.batch]
        results = [
            tensors.joined(result, layout.mesh, placement, shape)
            for result, placement, shape in zip(results, placements, shapes, strict=False)
        ]
    out = results[0].movedim(-1, 1) if at == 2 else results[0]
    return (out, results[1]) if update_extra else out


def _call(layer: NeighborhoodAttention, x: Any, context: Any) -> Call:
    """What a call shares, from the placements of distributed tensors or from the layer's style."""
    style, at = layer.space_parallel, 2 if layer.layout == "channels_first" else 1
    axes = slice(at, at + layer.mask.rank)
    given = {"x": x} if context is None else {"x": x, "context": context}
    if any(isinstance(t, DTensor) for t in given.values()):
        layout = tensors.read(given, layer.mask, heads=False, axes_at=at)
        keys = x if context is None else context
        sums = style is None or style.sum_gradients
        spaces = tuple(x.shape[axes]), tuple(keys.shape[axes])
        return Call(layout, x.shape[0], *spaces, sums, style is not None)
    assert style is not None  # who calls has checked it
    layout, space, key_space = style.of_local(layer.mask)
    key_space = space if context is None else key_space
    call = Call(layout, x.shape[0], space, key_space, style.sum_gradients, True)
    if not layout.shares_space:
        return call
    try:
        number = layout.plan(layer.mask, call.space, call.key_space, table=layer.rpb is not None)
        for name, tokens in given.items():
            for axis, has in enumerate(tokens.shape[axes]):
                PLANS[number].place.check_length(name, axis, has, at=at)
    except Exception as error:
        layout.tell(error)
        raise
    return call


def _local(layout: Layout, tokens: Any) -> Tensor:
    """This rank's tokens."""
    if not isinstance(tokens, DTensor):
        return tokens
    return tensors.local(tokens, layout.shares(tokens.placements))


def _attended(
    layer: NeighborhoodAttention,
    call: Call,
    transform: dict[str, Tensor],
    x: Tensor,
    context: _Tokens,
    extra_tokens: _Tokens,
    update_extra: bool,
    slopes: _Tokens,
    named: dict[str, Any],
) -> list[Tensor]:
    """Attention of this rank's tokens in heads: of the grid, and of extra tokens that are queries.

    `transform` has the parameters of the layer's `qk_transform`.
    """
    query, key, value, *more = layer._projected(x, context, extra_tokens, update_extra)
    extras: Sequence[_Tokens] = (*(None,) * (3 - len(more)), *more)
    if not layer._is_packed(context is None):
        if call.layout.shares_space:
            query, key = _transformed(layer, call, transform, query, key)
        else:
            query, key = layer._transformed(query, key)
        extras = (*layer._transformed_extras(*extras[:2]), extras[2])
        value = value.contiguous()
    if layer.is_head_parallel and not projections.is_sharded(layer.proj.weight):
        raise inputs.proj_not_sharded()
    extra_query, extra_key, extra_value = extras
    named = {**named, "extra_key": extra_key, "extra_value": extra_value}
    named |= {"scale": layer.scale, "backend": layer.backend}
    spaces = call.space, call.key_space
    added = {"relative_bias": layer._table(), "alibi_slopes": slopes}
    found = [call.layout.computed(query, key, value, layer.mask, spaces, {**named, **added})]
    if extra_query is not None:
        rank, tokens = layer.mask.rank, extra_query.shape[1]
        everywhere = replace(call.layout, queries=(None,) * rank)
        spaces = (tokens, *(1,) * (rank - 1)), call.key_space
        line = joint.placed(extra_query, rank)
        out = everywhere.computed(line, key, value, Mask.full(rank), spaces, named)
        if not call.sums:  # a rank's gradient of it is a share, and each rank's keys need all of it
            own, mesh = call.layout.keys, call.layout.mesh
            shares = [Partial() if number in own else Replicate() for number in range(mesh.ndim)]
            out = parallel.summed(out, mesh, shares)
        found.append(out.reshape(*extra_query.shape[:-1], out.shape[-1]))
    return found


def _transformed(
    layer: NeighborhoodAttention,
    call: Call,
    transform: dict[str, Tensor],
    query: Tensor,
    key: Tensor,
) -> tuple[Tensor, Tensor]:
    """Normalises queries and keys, and transforms them as distributed tensors: a transform sees
    the whole space, with the positions of one process.
    """
    if layer.q_norm is not None and layer.k_norm is not None:
        query, key = layer._normed(layer.q_norm, query), layer._normed(layer.k_norm, key)
    module: Any = layer.qk_transform
    if module is None:
        return query.contiguous(), key.contiguous()
    mesh, layout = call.layout.mesh, call.layout
    merged = [k for k, q in zip(layout.keys, layout.queries, strict=True) if k != q]
    if merged and query.requires_grad:  # of the gradient's sum, which all get, this rank's share
        query = _share(query, mesh, merged)
    placements = call.of_grid(), call.of_grid(keys=True)
    sizes = zip((query, key), placements, (call.space, call.key_space), strict=True)
    whole = [
        tensors.joined(t, mesh, p, (call.samples, *space, *t.shape[-2:])) for t, p, space in sizes
    ]
    shared = {name: _shared(layer, call, parameter) for name, parameter in transform.items()}
    with _AllDistributed(mesh):
        found = inputs.pair(module, functional_call(module, shared, tuple(whole)))
        both = zip(("query", "key"), found, whole, strict=True)
        found = [inputs.like(name, result, before) for name, result, before in both]
    query, key = (
        tensors.local(t.redistribute(placements=p), layout.shares(p)).contiguous()  # pyright: ignore
        for t, p in zip(found, placements, strict=True)
    )
    return query, key


def _share(tensor: Tensor, mesh: DeviceMesh, numbers: Iterable[Any]) -> Tensor:
    """A tensor whose gradient, alike on all ranks along mesh dimensions, becomes a rank's share."""
    ranks = prod(mesh.size(number) for number in numbers)
    tensor = tensor.view_as(tensor)
    tensor.register_hook(lambda grad: grad / ranks)
    return tensor


def _shared(layer: NeighborhoodAttention, call: Call, parameter: Tensor) -> Tensor:
    """A parameter of a transform as a distributed tensor: its gradient is summed over the ranks."""
    mesh = call.layout.mesh
    if isinstance(parameter, DTensor):
        return parameter
    if layer.is_head_parallel:
        first: Any = layer.projections()[0]
        parameter = parallel.summed(parameter, first.weight.device_mesh, (Partial(),))
    if not call.sums and parameter.requires_grad:
        parameter = _share(parameter, mesh, call.layout.sharding)
    return DTensor.from_local(parameter, mesh, [Replicate()] * mesh.ndim, run_check=False)


class _AllDistributed(TorchFunctionMode):
    """Makes plain tensors beside distributed ones distributed: every rank has all of them."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.mesh = mesh

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if tree_any(lambda t: isinstance(t, DTensor), (args, kwargs)):
            args, kwargs = tree_map_only(Tensor, self._distributed, (args, kwargs))
        return func(*args, **kwargs)

    def _distributed(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, DTensor):
            return tensor
        everywhere = [Replicate()] * self.mesh.ndim
        return DTensor.from_local(tensor, self.mesh, everywhere, run_check=False)
