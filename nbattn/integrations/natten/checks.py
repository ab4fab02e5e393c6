"""The contents of `natten.utils` and `natten.utils.checks`: parameters as one value per axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from nbattn.errors import InputError, kind
from nbattn.integrations.natten import parameters
from nbattn.integrations.natten.parameters import Causal, Sizes

_ARGUMENTS = {
    "check_input_size_arg": "input_size",
    "check_kernel_size_arg": "kernel_size",
    "check_stride_arg": "stride",
    "check_dilation_arg": "dilation",
    "check_causal_arg": "is_causal",
}


def names(generation: str) -> dict[str, Any]:
    """Returns the names of `natten.utils.checks` of a generation.

    >>> names("0.21")["check_all_args"](2, 3, None, None, is_causal=None)
    ((3, 3), (1, 1), (1, 1), (False, False))
    """
    return {
        **{name: functools.partial(_one, argument) for name, argument in _ARGUMENTS.items()},
        "check_all_args": _all if generation == "0.21" else _all_older,
        "get_num_na_weights": get_num_na_weights,
    }


def get_num_na_weights(kernel_size: Sequence[int]) -> int:
    """Returns the number of weights of a query, from the kernel size of every axis.

    >>> get_num_na_weights((7, 5))
    35
    """
    if isinstance(kernel_size, int):
        raise InputError(
            f"kernel_size is {kind(kernel_size)}, and the number of axes is not known.",
            f"kernel_size=({kernel_size}, {kernel_size}).",
        )
    return math.prod(kernel_size)


def _one(name: str, na_dim: int, value: Any) -> tuple[Any, ...]:
    return parameters.per_axis(name, value, na_dim)


def _all(
    na_dim: int, kernel_size: Sizes, stride: Sizes | None, dilation: Sizes | None, is_causal: Causal
) -> tuple[tuple[Any, ...], ...]:
    older = _all_older(na_dim, kernel_size, dilation, is_causal)
    return older[0], parameters.per_axis("stride", stride, na_dim), *older[1:]


def _all_older(
    na_dim: int, kernel_size: Sizes, dilation: Sizes | None, is_causal: Causal
) -> tuple[tuple[Any, ...], ...]:
    given = {"kernel_size": kernel_size, "dilation": dilation, "is_causal": is_causal}
    return tuple(parameters.per_axis(name, value, na_dim) for name, value in given.items())
