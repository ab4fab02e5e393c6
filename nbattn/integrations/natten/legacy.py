"""The names and argument orders of NATTEN before 0.20: `na2d_qk`, `natten2dqkrpb` and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nbattn.errors import InputError
from nbattn.integrations.natten import parameters
from nbattn.integrations.natten.parameters import Causal, Sizes
from nbattn.integrations.natten.unfused import scores, weighted


def _ranked(name: str, tensor: Tensor, rank: int) -> None:
    parameters.check_rank(name, tensor, rank, f"[B, H, {', '.join('XYZ'[:rank])}, C]")


def _named(function: Callable[..., Tensor], name: str, text: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = text
    return function


def _na_qk(rank: int) -> Callable[..., Tensor]:
    def qk(
        query: Tensor,
        key: Tensor,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        additional_keys: Tensor | None = None,
        is_causal: Causal = False,
        rpb: Tensor | None = None,
    ) -> Tensor:
        _ranked("query", query, rank)
        return scores(query, key, kernel_size, dilation, additional_keys, is_causal, rpb)

    return _named(qk, f"na{rank}d_qk", f"`unfused.scores` of {rank}-D spaces (0.14.6 to 0.17.5).")


def _na_av(rank: int) -> Callable[..., Tensor]:
    def av(
        attn: Tensor,
        value: Tensor,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        additional_values: Tensor | None = None,
        is_causal: Causal = False,
    ) -> Tensor:
        _ranked("value", value, rank)
        return weighted(attn, value, kernel_size, dilation, additional_values, is_causal)

    return _named(av, f"na{rank}d_av", f"`unfused.weighted` of {rank}-D spaces (0.14.6 to 0.17.5).")


def _natten_qkrpb(rank: int) -> Callable[..., Tensor]:
    def qkrpb(query: Tensor, key: Tensor, rpb: Tensor | None, *window: Any, **named: Any) -> Tensor:
        _ranked("query", query, rank)
        kernel = None if rpb is None else (rpb.shape[-1] + 1) // 2
        kernel_size, dilation = _window(rank, window, named, kernel)
        return scores(query, key, kernel_size, dilation, rpb=rpb)

    name, order = f"natten{rank}dqkrpb", _order(rank)
    old = "" if rank == 3 else f" Up to 0.14.4: `{name}(query, key, rpb, dilation)`."
    return _named(qkrpb, name, f"Scores with bias: `{name}(query, key, rpb, {order})`.{old}")


def _natten_qk(rank: int) -> Callable[..., Tensor]:
    def qk(query: Tensor, key: Tensor, *window: Any, **named: Any) -> Tensor:
        _ranked("query", query, rank)
        return scores(query, key, *_window(rank, window, named, None))

    name = f"natten{rank}dqk"
    return _named(qk, name, f"Scores without bias: `{name}(query, key, {_order(rank)})`.")


def _natten_av(rank: int) -> Callable[..., Tensor]:
    def av(attn: Tensor, value: Tensor, *window: Any, **named: Any) -> Tensor:
        _ranked("value", value, rank)
        kernel = None if rank == 3 else parameters.root(attn.shape[-1], rank)
        return weighted(attn, value, *_window(rank, window, named, kernel))

    name, order = f"natten{rank}dav", _order(rank)
    old = "" if rank == 3 else f" Up to 0.14.4: `{name}(attn, value, dilation)`."
    return _named(av, name, f"Weighted sums: `{name}(attn, value, {order})`.{old}")


def _names(rank: int) -> tuple[str, ...]:
    if rank == 3:
        return ("kernel_size_d", "kernel_size", "dilation_d", "dilation")
    return ("kernel_size", "dilation")


def _order(rank: int) -> str:
    return ", ".join(_names(rank))


def _window(
    rank: int, args: tuple[Any, ...], named: dict[str, Any], kernel: int | None
) -> tuple[Sizes, Sizes]:
    """Returns kernel_size and dilation of either argument order.

    Up to 0.14.4 only the dilation is an argument; the tensors give the kernel size, `kernel`.
    """
    names = _names(rank)
    if (
        rank < 3
        and kernel is not None
        and len(args) + len(named) == 1
        and "kernel_size" not in named
    ):
        args, named = (kernel,), {"dilation": args[0]} if args else named
    values = dict(zip(names, args, strict=False)) | named
    if len(args) > len(names) or set(values) != {*names} or len(args) + len(named) != len(names):
        shown = [*map(repr, args), *(f"{name}={value!r}" for name, value in named.items())]
        raise InputError(f"the window is ({', '.join(shown)}), not ({_order(rank)}).", _order(rank))
    if rank < 3:
        return values["kernel_size"], values["dilation"]
    depth, plane = values["kernel_size_d"], values["kernel_size"]
    return (depth, plane, plane), (values["dilation_d"], values["dilation"], values["dilation"])


na1d_qk, na2d_qk, na3d_qk = map(_na_qk, (1, 2, 3))
na1d_av, na2d_av, na3d_av = map(_na_av, (1, 2, 3))
natten1dqkrpb, natten2dqkrpb, natten3dqkrpb = map(_natten_qkrpb, (1, 2, 3))
natten1dqk, natten2dqk, natten3dqk = map(_natten_qk, (1, 2, 3))
natten1dav, natten2dav, natten3dav = map(_natten_av, (1, 2, 3))
