"""The forward and backward operators, for everything that needs attention as one operator:
compilers, exported graphs, `torch.func`, dispatch modes, tensor subclasses. This module has their
schemas, fake implementations, batching rules and FLOP counts.

Each operator makes its own plan when it runs, on real shapes, and does not depend on the plan of
the other one. Eager calls on plain tensors do not use the operators.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula  # pyright: ignore[reportUnknownVariableType]

from nbattn import execute, geometry, packing
from nbattn.backends.inputs import GRADIENTS, TENSORS, Inputs, new_lse, new_output
from nbattn.grids import PackedGrids, grids_of
from nbattn.mask import Mask, from_code
from nbattn.planner.plan import Plan

_NEEDED = ("query", "key", "value")
_SHARED = ("sink", "relative_bias", "alibi_slopes")  # by all samples: without a batch axis

_SCHEMA = ", ".join(f"Tensor{'' if name in _NEEDED else '?'} {name}" for name in TENSORS)
_OPTIONS = (
    "SymInt[] mask, SymInt[] grids, SymInt[] key_grids, float scale, float? softcap, "
    "str backend, str traits, bool training, bool deterministic, bool return_lse"
)
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library = torch.library.Library("nbattn", "FRAGMENT")
_library.define(f"forward({_SCHEMA}, {_OPTIONS}) -> (Tensor, Tensor)", tags=_TAGS)
_library.define(
    f"backward(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {_SCHEMA}, {_OPTIONS})"
    f" -> ({', '.join(['Tensor'] * len(GRADIENTS))})",
    tags=_TAGS,
)


class Options(NamedTuple):
    """The arguments of the operators that are not tensors, in the order of the schema.

    `mask` is `Mask.code()`. `traits` is `joined_names(require, forbid)`, since not every tracer of
    torch supports lists of names.
    """

    mask: list[int]
    grids: list[int]
    key_grids: list[int]
    scale: float
    softcap: float | None
    backend: str
    traits: str
    training: bool
    deterministic: bool
    return_lse: bool


def joined_names(require: Any, forbid: Any) -> str:
    """Joins the names to require and to forbid into one string.

    >>> joined_names(("fold",), ("merge", "split"))
    '+fold -merge -split'
    """
    return " ".join([*(f"+{name}" for name in require), *(f"-{name}" for name in forbid)])


@lru_cache(256)
def split_traits(traits: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits the string of `joined_names` into the names to require and to forbid.

    >>> split_traits("+fold -merge -split")
    (('fold',), ('merge', 'split'))
    """
    signs = [(name[0], name[1:]) for name in traits.split()]
    require, forbid = (tuple(name for sign, name in signs if sign == wanted) for wanted in "+-")
    return require, forbid


def inputs_of(values: tuple[Any, ...]) -> tuple[Inputs, Options]:
    """Returns the tensors and options of an operator's arguments."""
    tensors, options = values[: len(TENSORS)], Options(*values[len(TENSORS) :])
    packed = None
    if tensors[0].dim() == 3:
        mask = _mask(tuple(options.mask))
        packed = _packed(mask, options)
        packing.check_shapes(mask, packed, *(t.shape for t in tensors[:3]))
    inputs = Inputs(*tensors, scale=options.scale, softcap=options.softcap, grids=packed)
    return inputs, options


def flat_grids(packed: Any) -> tuple[list[int], list[int]]:
    """Returns the grids as operators take them; none of the keys where they are the queries'."""
    if packed is None:
        return [], []
    query, key = packed.flat()
    return query, [] if packed.is_self else key


def _packed(mask: Mask, options: Options) -> PackedGrids:
    """Returns the grids of an operator's arguments."""
    query, key = (
        grids_of(np.array(flat, dtype=np.int64).reshape(-1, mask.rank))
        for flat in (options.grids, options.key_grids)
    )
    return PackedGrids(query, key if len(options.key_grids) else query)


@lru_cache(256)
def _mask(code: tuple[int, ...]) -> Mask:
    """Returns the mask of a code, and checks its numbers, which a tracer may not have known."""
    return from_code(code)


def _plan(inputs: Inputs, options: Options) -> Plan:
    """Returns the plan for an operator's tensors."""
    require, forbid = split_traits(options.traits)
    return execute.planned(
        _mask(tuple(options.mask)),
        inputs,
        backend=options.backend,
        require=require,
        forbid=forbid,
        training=options.training,
        deterministic=options.deterministic,
        return_lse=options.return_lse,
    )


def _forward(*values: Any) -> tuple[Tensor, Tensor]:
    inputs, options = inputs_of(values)
    out, lse = execute.forward(
        _plan(inputs, options),
        inputs,
        return_lse=options.return_lse,
        keep_lse=options.training,
    )
    if not (options.return_lse or options.training):
        return out, inputs.query.new_empty(0, dtype=torch.float32)
    return out, new_lse(inputs.query).fill_(math.nan) if lse is None else lse


def _fake_forward(*values: Any) -> tuple[Tensor, Tensor]:
    inputs, options = Inputs(*values[: len(TENSORS)]), Options(*values[len(TENSORS) :])
    wanted = options.return_lse or options.training
    lse = new_lse(inputs.query) if wanted else inputs.query.new_empty(0, dtype=torch.float32)
    return new_output(inputs.query, inputs.value), lse


def _backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any
) -> tuple[Tensor, ...]:
    inputs, options = inputs_of(values)
    grads = execute.backward(_plan(inputs, options), inputs, out, lse, grad_out, grad_lse)
    in_order = (getattr(grads, name, None) for name in GRADIENTS)
    return tuple(inputs.query.new_empty(0) if grad is None else grad for grad in in_order)


def _fake_backward(
    grad_out: Tensor, grad_lse: Tensor | None, out: Tensor, lse: Tensor, *values: Any
) -> tuple[Tensor, ...]:
    tensors = dict(zip(TENSORS, values, strict=False))
    like = (tensors[name] for name in GRADIENTS)
    return tuple(out.new_empty(0) if t is None else t.new_empty(t.shape) for t in like)


for _name, _body, _fake in (
    ("forward", _forward, _fake_forward),
    ("backward", _backward, _fake_backward),
):
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nbattn::{_name}", _fake, lib=_library)
FORWARD, BACKWARD = torch.ops.nbattn.forward.default, torch.ops.nbattn.backward.default


def register_autograd(differentiable: Any) -> None:
    """Registers the autograd node of the forward operator, for exported and compiled graphs, which
    call it directly. That node is in `nbattn.autograd`, which imports this module.
    """
    _library.impl("forward", differentiable, "Autograd")


def _vmap(op: Any, before: int) -> Any:
    """Returns the batching rule of an operator with `before` tensors before those of attention.

    The mapped axis is folded into the batch axis. Shared tensors have no batch axis: if one is
    mapped, or the backward has one, the operator runs once per mapped element instead.
    """
    count = before + len(TENSORS)
    shared = [before + TENSORS.index(name) for name in _SHARED]

    def rule(info: Any, in_dims: tuple[Any, ...], *values: Any) -> tuple[Any, Any]:
        mapped = _Mapped(info.batch_size, values[:count], in_dims[:count], values[count:])
        present = [n for n in shared if mapped.is_shared(n)]
        if (
            mapped.is_packed
            or any(mapped.dims[n] is not None for n in present)
            or (op is BACKWARD and present)
        ):
            outputs = _run_per_element(op, mapped)
        else:
            outputs = _run_folded(op, mapped, present)
        return outputs, (0,) * len(outputs)

    return rule


class _Mapped(NamedTuple):
    """A call of an operator under vmap: the number of mapped elements, the tensors and their mapped
    axes, and the options.
    """

    size: int
    tensors: tuple[Tensor | None, ...]
    dims: tuple[int | None, ...]
    options: tuple[Any, ...]

    def is_shared(self, number: int) -> bool:
        """Whether a tensor that may be one for all samples is: slopes `[B, H]` are not."""
        tensor = self.tensors[number]
        if tensor is None:
            return False
        is_slopes = len(self.tensors) - number == len(TENSORS) - TENSORS.index("alibi_slopes")
        return not is_slopes or tensor.dim() - (self.dims[number] is not None) == 1

    @property
    def is_packed(self) -> bool:
        """Whether an element has packed grids, and so no batch to fold into."""
        query = self.tensors[len(self.tensors) - len(TENSORS)]
        dim = self.dims[len(self.tensors) - len(TENSORS)]
        return query is not None and query.dim() - (dim is not None) == 3


def _run_per_element(op: Any, mapped: _Mapped) -> tuple[Tensor, ...]:
    """Runs the operator once per mapped element, and stacks the outputs."""
    if not mapped.size:
        fake: Any = _fake_forward if op is FORWARD else _fake_backward
        results = fake(*_empty_element(mapped), *mapped.options)
        return tuple(t.new_empty((0, *t.shape)) for t in results)
    parts = [op(*_element(mapped, number), *mapped.options) for number in range(mapped.size)]
    return tuple(torch.stack(group) for group in zip(*parts, strict=True))


def _element(mapped: _Mapped, number: int) -> list[Tensor | None]:
    """Returns the tensors of one mapped element."""
    return [
        t if t is None or d is None else t.select(d, number)
        for t, d in zip(mapped.tensors, mapped.dims, strict=True)
    ]


def _empty_element(mapped: _Mapped) -> list[Tensor | None]:
    """Returns tensors of the shapes of one mapped element, for a mapped axis without elements."""
    return [
        t if t is None or d is None else t.new_empty((*t.shape[:d], *t.shape[d + 1 :]))
        for t, d in zip(mapped.tensors, mapped.dims, strict=True)
    ]


def _run_folded(op: Any, mapped: _Mapped, shared: list[int]) -> tuple[Tensor, ...]:
    """Runs the operator once, with the mapped axis in the batch axis of all but shared tensors."""
    size, (first, *_) = mapped.size, mapped.tensors
    assert first is not None
    dim = mapped.dims[0]
    batch = first.shape[0] if dim is None else first.movedim(dim, 0).shape[1]
    folded = [
        t if n in shared else _fold(t, d, size)
        for n, (t, d) in enumerate(zip(mapped.tensors, mapped.dims, strict=True))
    ]
    outputs = op(*folded, *mapped.options)
    return tuple(
        t.unflatten(0, (size, batch)) if t.dim() > 1 else t.expand(size, 0) for t in outputs
    )


def _fold(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Folds the mapped axis into the batch axis."""
    if tensor is None:
        return None
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


torch.library.register_vmap("nbattn::forward", _vmap(FORWARD, 0), lib=_library)
torch.library.register_vmap("nbattn::backward", _vmap(BACKWARD, 4), lib=_library)


def _flops(values: tuple[Any, ...], products: int) -> int:
    """Returns the useful FLOPs: `products` matrix products over the pairs that the mask allows."""
    shapes = dict(zip(TENSORS, values, strict=False))
    query, value, options = shapes["query"], shapes["value"], Options(*values[len(TENSORS) :])
    mask = from_code(options.mask)
    extra = 0 if shapes["extra_key"] is None else shapes["extra_key"][1]
    if len(query) == 3:
        sizes = _packed(mask, options).sizes
        spaces = zip(sizes.query.tolist(), sizes.key.tolist(), sizes.count.tolist(), strict=True)
    else:
        spaces = [(tuple(query[1:-2]), tuple(shapes["key"][1:-2]), query[0])]
    pairs = sum(
        count * (geometry.pairs(geometry.bind(mask, space, key_space)) + math.prod(space) * extra)
        for space, key_space, count in spaces
    )
    return products * query[-2] * pairs * (query[-1] + value[-1])


def forward_flops(*values: Any, **named: Any) -> int:
    """Returns the FLOPs of the forward operator, from shapes in the place of tensors."""
    return _flops(values, 2)


def _backward_flops(*values: Any, **named: Any) -> int:
    return _flops(values[4:], 5)


register_flop_formula(torch.ops.nbattn.forward)(forward_flops)
register_flop_formula(torch.ops.nbattn.backward)(_backward_flops)
