"""The names and argument orders of NATTEN before 0.20: `na2d_qk`, `natten2dqkrpb` and others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nbattn.errors import InputError
from nbattn.integrations.natten import parameters
from nbattn.integrations.natten.parameters import Causal, Sizes
from nbattn.integrations.natten.unfused import scores, weighted


def _ranked(name: str, tensor: Tensor, rank: int) -> None:
    parameters.check_rank(name, tensor, rank, f"[B, H, {', '.join('XYZ'[:rank])}, C]")


def _made(function: Callable[..., Tensor], name: str, text: str) -> Callable[..., Tensor]:
    """Names a function, and makes it run on every sample of nested tensors."""

    def each(*arguments: Any, **named: Any) -> Tensor:
        given = [*arguments, *named.values()]
        if not any(isinstance(one, Tensor) and one.is_nested for one in given):
            return function(*arguments, **named)
        samples = _samples(given)
        outputs = [
            function(
                *sample[: len(arguments)], **dict(zip(named, sample[len(arguments) :], strict=True))
            )
            for sample in samples
        ]
        return torch.nested.as_nested_tensor(outputs)

    each.__name__ = each.__qualname__ = name
    each.__doc__ = f"{text} Tensors of samples may be nested: every item has all dimensions."
    each.__wrapped__ = function  # pyright: ignore[reportFunctionMemberAccess]
    return each


def _samples(given: list[Any]) -> list[list[Any]]:
    """Returns the arguments of every sample; those that are not nested are the same for all."""
    nested = [one.unbind() for one in given if isinstance(one, Tensor) and one.is_nested]
    counts = {len(items) for items in nested}
    if len(counts) > 1:
        raise InputError(
            f"nested tensors of {' and '.join(map(str, sorted(counts)))} samples.",
            f"torch.nested.as_nested_tensor(list(query.unbind())[:{min(counts)}]).",
        )
    parts = iter(nested)
    columns = [
        next(parts) if isinstance(one, Tensor) and one.is_nested else [one] * len(nested[0])
        for one in given
    ]
    return [list(sample) for sample in zip(*columns, strict=True)]


def _na_qk(rank: int) -> Callable[..., Tensor]:
    def qk(
        query: Tensor,
        key: Tensor,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        additional_keys: Tensor | None = None,
        is_causal: Causal = False,
        rpb: Tensor | None = None,
    ) -> Tensor:
        _ranked("query", query, rank)
        return scores(query, key, kernel_size, dilation, additional_keys, is_causal, rpb)

    text = f"`unfused.scores` of {rank}-D spaces (0.14.6 to 0.17.5)."
    return _made(_or_depth(qk, rank, "additional_keys"), f"na{rank}d_qk", text)


def _na_av(rank: int) -> Callable[..., Tensor]:
    def av(
        attn: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        dilation: Sizes | None = 1,
        additional_values: Tensor | None = None,
        is_causal: Causal = False,
    ) -> Tensor:
        _ranked("value", value, rank)
        return weighted(attn, value, kernel_size, dilation, additional_values, is_causal)

    text = f"`unfused.weighted` of {rank}-D spaces (0.14.6 to 0.17.5)."
    return _made(_or_depth(av, rank, "additional_values"), f"na{rank}d_av", text)


def _or_depth(function: Callable[..., Tensor], rank: int, extra: str) -> Callable[..., Tensor]:
    """Makes a function of three axes also take the order of 0.15, which has four sizes in a row,
    where later versions have a tensor in the place of the third.
    """
    if rank < 3:
        return function

    @functools.wraps(function)
    def either(first: Tensor, second: Tensor, *args: Any, **named: Any) -> Tensor:
        if {"kernel_size_d", "dilation_d"} & {*named} or (len(args) > 2 and type(args[2]) is int):
            kernel_size, dilation, more = _window(rank, args, named, None, extra)
            return function(first, second, kernel_size, dilation, more)
        return function(first, second, *args, **named)

    return either


def _qk_with_bias(rank: int, name: str, bias: str) -> Callable[..., Tensor]:
    def qk(query: Tensor, key: Tensor, *args: Any, **named: Any) -> Tensor:
        _ranked("query", query, rank)
        rpb, rest = (args[0], args[1:]) if args else (named.pop(bias, None), ())
        if rpb is not None:
            parameters.check_fits(bias, rpb, query)
        kernel = None if rpb is None or not rpb.dim() else (rpb.shape[-1] + 1) // 2
        kernel_size, dilation, more = _window(rank, rest, named, kernel, "additional_keys")
        return scores(query, key, kernel_size, dilation, more, rpb=rpb)

    old = f" Up to 0.14.4: `{name}(query, key, {bias}, dilation)`." if rank < 3 else ""
    text = f"Scores with bias: `{name}(query, key, {bias}, {_order(rank)})`.{old}"
    return _made(qk, name, text)


def _natten_qk(rank: int) -> Callable[..., Tensor]:
    def qk(query: Tensor, key: Tensor, *args: Any, **named: Any) -> Tensor:
        _ranked("query", query, rank)
        return scores(query, key, *_window(rank, args, named, None, "additional_keys"))

    name = f"natten{rank}dqk"
    return _made(qk, name, f"Scores without bias: `{name}(query, key, {_order(rank)})`.")


def _natten_av(rank: int) -> Callable[..., Tensor]:
    def av(attn: Tensor, value: Tensor, *args: Any, **named: Any) -> Tensor:
        _ranked("value", value, rank)
        alone = rank < 3 and len(args) + len(named) == 1
        kernel = parameters.root(attn.shape[-1], rank) if alone else None
        return weighted(attn, value, *_window(rank, args, named, kernel, "additional_values"))

    name, order = f"natten{rank}dav", _order(rank)
    old = "" if rank == 3 else f" Up to 0.14.4: `{name}(attn, value, dilation)`."
    return _made(av, name, f"Weighted sums: `{name}(attn, value, {order})`.{old}")


def _names(rank: int) -> tuple[str, ...]:
    if rank == 3:
        return ("kernel_size_d", "kernel_size", "dilation_d", "dilation")
    return ("kernel_size", "dilation")


def _order(rank: int) -> str:
    return ", ".join(_names(rank))


def _window(
    rank: int, args: tuple[Any, ...], named: dict[str, Any], kernel: int | None, extra: str
) -> tuple[Sizes, Sizes | None, Tensor | None]:
    """Returns kernel_size, dilation and additional tokens of either argument order.

    Up to 0.14.4 only the dilation is an argument; the tensors give the kernel size, `kernel`.
    """
    names = _names(rank)
    alone = rank < 3 and len(args) + len(named) == 1 and "kernel_size" not in named
    if alone and kernel is not None:
        args, named = (kernel,), {"dilation": args[0]} if args else named
    values = dict(zip((*names, extra)[: len(args)], args, strict=False)) | named
    known = {*names} <= {*values} <= {*names, extra} and len(args) + len(named) == len(values)
    if not known:
        shown = [*map(repr, args), *(f"{name}={value!r}" for name, value in named.items())]
        raise InputError(
            f"the window is ({', '.join(shown)}), not ({_order(rank)}).",
            f"{', '.join(f'{name}={values.get(name, _example(name))}' for name in names)}.",
        )
    more = values.get(extra)
    if rank < 3:
        return values["kernel_size"], values["dilation"], more
    depth, plane = values["kernel_size_d"], values["kernel_size"]
    step = (values["dilation_d"], values["dilation"], values["dilation"])
    return (depth, plane, plane), tuple(1 if one is None else one for one in step), more


def _example(name: str) -> int:
    return 3 if name.startswith("kernel") else 1


na1d_qk, na2d_qk, na3d_qk = map(_na_qk, (1, 2, 3))
na1d_av, na2d_av, na3d_av = map(_na_av, (1, 2, 3))
na1d_qk_with_bias, na2d_qk_with_bias, na3d_qk_with_bias = (
    _qk_with_bias(rank, f"na{rank}d_qk_with_bias", "bias") for rank in (1, 2, 3)
)
natten1dqkrpb, natten2dqkrpb, natten3dqkrpb = (
    _qk_with_bias(rank, f"natten{rank}dqkrpb", "rpb") for rank in (1, 2, 3)
)
natten1dqk, natten2dqk, natten3dqk = map(_natten_qk, (1, 2, 3))
natten1dav, natten2dav, natten3dav = map(_natten_av, (1, 2, 3))
# The autograd functions up to 0.14, which some code applies.
AUTOGRAD_FUNCTIONS = {
    f"NATTEN{rank}D{kind}Function": SimpleNamespace(apply=function)
    for rank, *functions in ((1, natten1dqkrpb, natten1dav), (2, natten2dqkrpb, natten2dav))
    for kind, function in zip(("QKRPB", "AV"), functions, strict=True)
}
