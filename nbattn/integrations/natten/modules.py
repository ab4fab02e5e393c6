"""NATTEN's modules of 0.21, 0.17 and 0.14, with the same names of weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nbattn.errors import InputError
from nbattn.integrations.natten import fused, generations, parameters, unfused
from nbattn.integrations.natten.parameters import Causal, Sizes


class _Projected(nn.Module):
    """The base of the modules of all generations: projections, and one window per axis."""

    rank: int

    def __init__(
        self, dim: int, num_heads: int, window: dict[str, Any], *, qkv_bias: bool,
        qk_scale: float | None, proj_drop: float,
    ) -> None:  # fmt: skip
        super().__init__()
        if dim % num_heads:
            raise InputError(
                f"{dim} channels are no multiple of {num_heads} heads.",
                f"num_heads={_divisor(dim, num_heads)}.",
            )
        # a space as large as any: forward checks that a window fits its axis
        parameters.window((1 << 40,) * self.rank, **window)
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5 if qk_scale is None else qk_scale
        for name, value in window.items():
            setattr(self, name, parameters.per_axis(name, value, self.rank))
        self._window = tuple(window)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def window(self) -> dict[str, Any]:
        """Returns the parameters of the window, by name."""
        return {name: getattr(self, name) for name in self._window}

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects `[B, *space, C]` to query, key and value `[B, *space, H, D]`."""
        dim = self.num_heads * self.head_dim
        _check_not_nested(x)
        if x.dim() != self.rank + 2 or x.shape[-1] != dim:
            raise InputError(
                f"x is {list(x.shape)}, not [B, {', '.join('XYZ'[: self.rank])}, {dim}].",
                _conversion(x, self.rank, dim),
            )
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        return query, key, value

    def extra_repr(self) -> str:
        """Returns heads and window."""
        shown = {"head_dim": self.head_dim, "num_heads": self.num_heads, **self.window()}
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def _check_not_nested(x: Tensor) -> None:
    parameters.check_not_nested("[layer(sample[None])[0] for sample in x.unbind()].", x)


def _divisor(dim: int, num_heads: int) -> int:
    """The largest number of heads up to this one that divides the channels."""
    return max(n for n in range(1, max(num_heads, 1) + 1) if dim % n == 0)


def _conversion(x: Tensor, rank: int, dim: int) -> str:
    """What makes the channels of x its last axis, or a layer that fits x."""
    if x.dim() == rank + 2 and x.shape[1] == dim:
        return "layer(x.movedim(1, -1)).movedim(-1, 1)."
    if x.dim() == rank + 1 and x.shape[-1] == dim:
        return "layer(x[None])[0]."
    if 3 <= x.dim() <= 5 and x.dim() != rank + 2:
        return f"natten.NeighborhoodAttention{x.dim() - 2}D for this x."
    return f"x = torch.randn(1, {'8, ' * rank}{dim})."


class _Current(_Projected):
    """Neighborhood attention with its projections, as in NATTEN 0.21.

    Args:
        embed_dim: channels of input and output `[B, *space, embed_dim]`.
        num_heads: H.
        kernel_size, stride, dilation, is_causal: per axis, or one value for all.
        qkv_bias: whether the first projection has a bias.
        qk_scale: factor of the scores; default `head_dim ** -0.5`.
        proj_drop: probability of dropout after the last projection.

    Raises:
        InputError, MaskError: an argument is not legal; in forward, a window exceeds its axis.
    """

    @generations.checked
    def __init__(
        self, embed_dim: int, num_heads: int, kernel_size: Sizes, stride: Sizes | None = 1,
        dilation: Sizes | None = 1, is_causal: Causal = False, qkv_bias: bool = True,
        qk_scale: float | None = None, proj_drop: float = 0.0,
    ) -> None:  # fmt: skip
        generations.check_places(dilation, is_causal)
        window = {"kernel_size": kernel_size, "stride": stride}
        window |= {"dilation": dilation, "is_causal": is_causal}
        super().__init__(
            embed_dim, num_heads, window, qkv_bias=qkv_bias, qk_scale=qk_scale, proj_drop=proj_drop
        )
        self.embed_dim = embed_dim

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, *space, embed_dim]` to the same shape."""
        out = fused.neighborhood_attention_generic(
            *self.heads(x), **self.window(), scale=self.scale
        )
        assert isinstance(out, Tensor)
        return self.proj_drop(self.proj(out.flatten(-2)))


class _Older(_Projected):
    """Neighborhood attention with its projections, as in NATTEN 0.17.

    Args:
        dim: channels of input and output `[B, *space, dim]`.
        num_heads: H.
        kernel_size, dilation, is_causal: per axis, or one value for all.
        rel_pos_bias: whether there is a bias table `rpb`, `[H, 2 K - 1]` per axis.
        qkv_bias, qk_scale, proj_drop: as in 0.21.
        attn_drop: dropout of the weights; applied also where NATTEN's fused kernels ignore it.
        use_experimental_ops: selects one of NATTEN's kernels; no effect.

    Raises:
        InputError, MaskError: an argument is not legal; in forward, a window exceeds its axis.
    """

    @generations.checked
    def __init__(
        self, dim: int, num_heads: int, kernel_size: Sizes, dilation: Sizes | None = 1,
        is_causal: Causal = False, rel_pos_bias: bool = False, qkv_bias: bool = True,
        qk_scale: float | None = None, attn_drop: float = 0.0, proj_drop: float = 0.0,
        use_experimental_ops: bool = False,
    ) -> None:  # fmt: skip
        window = {"kernel_size": kernel_size, "dilation": dilation, "is_causal": is_causal}
        super().__init__(
            dim, num_heads, window, qkv_bias=qkv_bias, qk_scale=qk_scale, proj_drop=proj_drop
        )
        sizes: Any = self.kernel_size
        table = torch.empty(num_heads, *(2 * size - 1 for size in sizes))
        self.rpb = nn.Parameter(nn.init.trunc_normal_(table, std=0.02)) if rel_pos_bias else None
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, *space, dim]` to the same shape."""
        query, key, value = self.heads(x)
        if not (self.training and self.attn_drop.p):
            out = fused.older(query, key, value, **self.window(), rpb=self.rpb, scale=self.scale)
        else:
            query, key, value = (t.movedim(-2, 1) for t in (query * self.scale, key, value))
            weights = unfused.scores(query, key, **self.window(), rpb=self.rpb).softmax(-1)
            out = unfused.weighted(self.attn_drop(weights), value, **self.window())
            out = out.movedim(1, -2)
        return self.proj_drop(self.proj(out.flatten(-2)))

    def extra_repr(self) -> str:
        """Returns heads, window, and whether there is a bias."""
        return f"{super().extra_repr()}, has_bias={self.rpb is not None}"


class _Oldest(_Older):
    """Neighborhood attention with its projections, as in NATTEN 0.14.6 to 0.15.

    Inputs smaller than the window are padded with zeros on the right before the projections, and
    queries attend to the padding, as in NATTEN.

    Args:
        dim, num_heads, kernel_size, dilation, qkv_bias, qk_scale, attn_drop, proj_drop: as in 0.17.
        bias: whether there is a bias table `rpb`.

    Raises:
        InputError, MaskError: an argument is not legal.
    """

    @generations.checked
    def __init__(
        self, dim: int, num_heads: int, kernel_size: Sizes, dilation: Sizes | None = 1,
        bias: bool = True, qkv_bias: bool = True, qk_scale: float | None = None,
        attn_drop: float = 0.0, proj_drop: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(
            dim, num_heads, kernel_size, dilation, rel_pos_bias=bias, qkv_bias=qkv_bias,
            qk_scale=qk_scale, attn_drop=attn_drop, proj_drop=proj_drop,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, *space, dim]` to the same shape."""
        _check_not_nested(x)
        sizes: Any = self.kernel_size
        steps: Any = self.dilation
        space = x.shape[1:-1]
        padding = [0, 0]
        for length, size, step in reversed([*zip(space, sizes, steps, strict=False)]):
            padding += [0, max(0, size * step - length)]
        out = super().forward(nn.functional.pad(x, padding))
        return out[(slice(None), *(slice(length) for length in space))]


class _Oldest3D(_Oldest):
    """Neighborhood attention of three axes with its projections, as in NATTEN 0.15.

    Args:
        kernel_size, dilation: of the last two axes.
        kernel_size_d, dilation_d: of the first axis; None is that of the others.

    The other arguments are those of the other modules of this generation.

    Raises:
        InputError, MaskError: an argument is not legal.
    """

    @generations.checked
    def __init__(
        self, dim: int, num_heads: int, kernel_size: int, kernel_size_d: int | None = None,
        dilation: int | None = 1, dilation_d: int | None = None, bias: bool = True,
        qkv_bias: bool = True, qk_scale: float | None = None, attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:  # fmt: skip
        step = dilation or 1
        super().__init__(
            dim, num_heads, (kernel_size_d or kernel_size, kernel_size, kernel_size),
            (dilation_d or step, step, step), bias, qkv_bias, qk_scale, attn_drop, proj_drop,
        )  # fmt: skip


def _of_rank(parent: type[_Projected], rank: int, prefix: str = "") -> Any:
    """Makes the class for a number of axes, with a name that pickle can import."""
    name = f"NeighborhoodAttention{rank}D"
    fields = {"rank": rank, "__doc__": parent.__doc__, "__module__": __name__}
    return type(name, (parent,), {**fields, "__qualname__": prefix + name})


NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D = (
    _of_rank(_Current, rank) for rank in (1, 2, 3)
)
OlderNeighborhoodAttention1D, OlderNeighborhoodAttention2D, OlderNeighborhoodAttention3D = (
    _of_rank(_Older, rank, "Older") for rank in (1, 2, 3)
)
OldestNeighborhoodAttention1D, OldestNeighborhoodAttention2D, OldestNeighborhoodAttention3D = (
    _of_rank(parent, rank, "Oldest")
    for rank, parent in ((1, _Oldest), (2, _Oldest), (3, _Oldest3D))
)


class NeighborhoodAttentionGeneric(_Current):
    """The current module for `na_dim` axes; the other arguments are those of that module."""

    def __init__(self, na_dim: int, *arguments: Any, **named: Any) -> None:
        self.rank = na_dim
        super().__init__(*arguments, **named)
