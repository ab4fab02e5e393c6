"""The contents of `natten.flops`: multiplications and additions of a model, as NATTEN counts them:
every query has all keys of its window, whether a border or causality cuts it or not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from nbattn.export import traced
from nbattn.integrations.natten import neighborhood_gather, parameters
from nbattn.integrations.natten.parameters import Causal, Sizes

_Shape = Sequence[int]


def fna_flop_count(
    q_shape: _Shape,
    k_shape: _Shape,
    v_shape: _Shape,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Causal = False,
    is_heads_last: bool = True,
    return_macs: bool = False,
) -> int:
    """Counts both products of an attention, in FLOPs, or in MACs, which are half as many.

    >>> fna_flop_count(*[(1, 8, 8, 2, 16)] * 3, kernel_size=3, return_macs=True)
    36864
    """
    products = na_qk_flop_count(q_shape, k_shape, kernel_size, return_macs=return_macs)
    return products + na_av_flop_count(q_shape, v_shape, kernel_size, return_macs=return_macs)


def na_qk_flop_count(
    q_shape: _Shape,
    k_shape: _Shape,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Causal = False,
    is_heads_last: bool = True,
    return_macs: bool = False,
) -> int:
    """Counts the products of queries with keys, in FLOPs or MACs."""
    return _products(q_shape, kernel_size, return_macs)


def na_av_flop_count(
    a_shape: _Shape,
    v_shape: _Shape,
    kernel_size: Sizes,
    dilation: Sizes = 1,
    is_causal: Causal = False,
    is_heads_last: bool = True,
    return_macs: bool = False,
) -> int:
    """Counts the products of weights with values, in FLOPs or MACs."""
    return _products(v_shape, kernel_size, return_macs)


def _products(shape: _Shape, kernel_size: Sizes, return_macs: bool) -> int:
    """Counts a product of every number of a tensor with every key of a window."""
    macs = math.prod(shape) * parameters.slots(kernel_size, len(shape) - 3)
    return macs if return_macs else 2 * macs


def get_flops(model: torch.nn.Module, input: Any, disable_warnings: bool = False) -> int:
    """Counts the MACs of a model's matrix products, convolutions and attentions.

    Args:
        input: the argument of `model`, or a tuple of its arguments.
        disable_warnings: no effect.

    >>> from nbattn.integrations.natten import NeighborhoodAttention1D
    >>> layer = NeighborhoodAttention1D(16, 2, kernel_size=3)
    >>> get_flops(layer, torch.randn(1, 10, 16)) == 10 * (3 * 16 * 16 + 2 * 3 * 16 + 16 * 16)
    True
    """
    arguments = input if isinstance(input, tuple) else (input,)
    operators = {getattr(torch.ops.nbattn, name): count for name, count in _FORMULAS.items()}
    counter = FlopCounterMode(display=False, custom_mapping=operators)
    with torch.no_grad(), counter:
        model(*arguments)
    return counter.get_total_flops() // 2


def add_natten_handle(flop_ctr: Any) -> Any:
    """Makes fvcore's `FlopCountAnalysis` count attention, as `get_flops` does; returns it.

    What fvcore itself does not know, such as a softmax, it reports as not supported.
    """
    return flop_ctr.set_op_handle(
        **{f"nbattn::{name}": functools.partial(_macs, name) for name in _FORMULAS}
    )


def _macs(name: str, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """Counts the MACs of an operator in a trace."""
    return _FORMULAS[name](*map(traced, inputs), out_shape=traced(outputs[0])) // 2


def _attention(query: _Shape, key: _Shape, value: _Shape, *rest: Any, **_: Any) -> int:
    schema: Any = torch.ops.nbattn.forward.default._schema  # pyright: ignore[reportPrivateUsage]
    given = dict(zip((one.name for one in schema.arguments[3:]), rest, strict=False))
    extra_key, keys = given["extra_key"], math.prod(neighborhood_gather.axis_slots(given["mask"]))
    keys += extra_key[1] if extra_key is not None else 0
    return 2 * math.prod(query[:-1]) * keys * (query[-1] + value[-1])


# FLOPs of nbattn's operators, from the shapes of their tensors.
_FORMULAS: dict[str, Callable[..., int]] = {
    "forward": _attention,
    "slot_products": lambda a, b, mask, out_shape, **_: 2 * math.prod(out_shape) * a[-1],
    "slot_sums": lambda a, b, mask, out_shape, **_: 2 * math.prod(a) * b[-1],
}
