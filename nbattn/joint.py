"""The public function joint_attention(): tokens on a grid, and extra tokens beside it, are queries
and keys, which is two attentions over the same tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nbattn import arguments, mistaken_places, mistaken_words
from nbattn.axis import MAX_RANK
from nbattn.errors import InputError, NbattnError
from nbattn.fixes import signatures
from nbattn.functional import attention, autocast
from nbattn.mask import Mask

_FULL = tuple(Mask.full(rank) for rank in range(1, MAX_RANK + 1))


@signatures.answering(mistaken_places.refusal)
def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    extra_query: Tensor,
    extra_key: Tensor,
    extra_value: Tensor,
    *,
    extra_range: Tensor | Sequence[Any] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sink: Tensor | None = None,
    key_range: Tensor | Sequence[Any] | None = None,
    relative_bias: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    grids: Any = None,
    key_grids: Any = None,
    backend: str = "auto",
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    return_lse: bool = False,
    **unknown: Any,
) -> tuple[Tensor, ...]:
    """Computes attention of tokens on a grid and of extra tokens beside it: text (MMDiT), CLS,
    registers that are updated.

    A token of the grid attends to the keys that the mask allows and to all extra tokens. An extra
    token attends to the whole grid and to all extra tokens. Ranges leave out keys, never queries:
    extra tokens outside `extra_range` attend, too, and nobody attends to them.

    Args:
        query, key, value, mask: of the grid, as in `attention`.
        extra_query: `[B, E, H, D]`; E may be 0.
        extra_key, extra_value: `[B, E, Hk, D]`, `[B, E, Hk, Dv]`.
        extra_range: whole numbers `[B, 2]`: nobody attends to extra tokens outside [start, stop).
        scale, softcap, sink: as in `attention`, for both.
        key_range: as in `attention`: nobody attends to tokens of the grid outside of it.
        relative_bias, alibi_slopes: as in `attention`, between tokens of the grid only: extra
            tokens have no position.
        grids, key_grids: as in `attention`: tensors of the grid are then `[T, H, D]`, and B is the
            number of grids, each of which has its own extra tokens.
        backend, require, forbid: as in `attention`; both attentions run so, each by its own plan.
        return_lse: whether to return the logsumexps as well.

    Returns:
        `[B, *space, H, Dv]` of the grid and `[B, E, H, Dv]` of the extra tokens; with `return_lse`
        also their logsumexps `[B, *space, H]` and `[B, E, H]`.

    Raises:
        InputError, MaskError, BackendError: as `attention`.

    >>> import torch
    >>> image, text = torch.randn(1, 32, 32, 2, 16), torch.randn(1, 77, 2, 16)
    >>> mask = Mask.neighborhood((7, 7))
    >>> out, extra_out = joint_attention(image, image, image, mask, text, text, text)
    >>> out.shape, extra_out.shape
    (torch.Size([1, 32, 32, 2, 16]), torch.Size([1, 77, 2, 16]))
    """
    if unknown:
        shape = getattr(query, "shape", None)
        raise mistaken_words.refusal("joint_attention", unknown, _ARGUMENTS, mask, shape)
    extras = {"extra_query": extra_query, "extra_key": extra_key, "extra_value": extra_value}
    if not all(isinstance(given, Tensor) for given in extras.values()):
        raise mistaken_places.not_extras(extras)
    if isinstance(query, Tensor) and query.is_nested and query.layout == torch.jagged:
        raise _of_nested(query, key)
    # once, not for each part
    query, cast = autocast(query, {"key": key, "value": value, **extras})
    key, value, extra_query, extra_key, extra_value = cast.values()
    shared: dict[str, Any] = {
        "scale": scale,
        "softcap": softcap,
        "sink": sink,
        "key_range": key_range,
        "extra_key": extra_key,
        "extra_value": extra_value,
        "extra_range": extra_range,
        "backend": backend,
        "require": require,
        "forbid": forbid,
        "return_lse": return_lse,
    }
    added = {"relative_bias": relative_bias, "alibi_slopes": alibi_slopes}
    packed = {"grids": grids, "key_grids": key_grids}
    try:
        of_grid: Any = attention(query, key, value, mask, **added, **packed, **shared)
    except NbattnError as error:
        raise _for_both(error) from None
    rank, is_packed = mask.rank, grids is not None
    if torch.compiler.is_compiling() or extra_query.shape[:2] != extra_key.shape[:2]:
        arguments.check_extra_query(query, extra_query, extra_key, rank)
    if is_packed:
        count, length = extra_query.shape[:2]
        keys = grids if key_grids is None else key_grids
        packed = {"grids": lines(count, length, rank), "key_grids": keys}
    if hasattr(key, "device_mesh"):
        from nbattn.distributed import tensors

        extra_query = tensors.beside(extra_query, key)
    tokens = placed(extra_query, rank, is_packed=is_packed)
    try:
        of_extras: Any = attention(tokens, key, value, _FULL[rank - 1], **packed, **shared)
    except NbattnError:
        arguments.check_extra_query(query, extra_query, extra_key, rank)  # in its own words
        raise
    shape = extra_query.shape[:-1]
    if not return_lse:
        return of_grid, of_extras.reshape(*shape, value.shape[-1])
    (out, lse), (extra_out, extra_lse) = of_grid, of_extras
    return out, extra_out.reshape(*shape, value.shape[-1]), lse, extra_lse.reshape(shape)


def _for_both(error: NbattnError) -> NbattnError:
    """Returns an error without a fix that is a call of attention: it has no extra queries."""
    is_whole = "nbattn.attention(" in error.fix
    return type(error)(error.problem, "", error.where) if is_whole else error


def _of_nested(query: Any, key: Any) -> InputError:
    """The error for jagged nested tensors, which are packed grids of one axis."""
    grids = "grids=nbattn.grids_from(query.offsets())"
    if getattr(key, "is_nested", False) and key.offsets() is not query.offsets():
        grids += ", key_grids=nbattn.grids_from(key.offsets())"
    return InputError(
        "query is a nested tensor; joint_attention takes packed grids.",
        "nbattn.joint_attention(query.values(), key.values(), value.values(), mask, extra_query, "
        f"extra_key, extra_value, {grids}), with the other arguments.",
    )


def placed(extra_query: Tensor, rank: int, *, is_packed: bool = False) -> Tensor:
    """Returns queries `[B, E, H, D]` as those of a grid, `[B, E, 1, …, H, D]`, or of packed grids,
    `[B E, H, D]`: a mask without limits takes any lengths.
    """
    if is_packed:
        return extra_query.flatten(0, 1)
    for _ in range(rank - 1):
        extra_query = extra_query.unsqueeze(2)
    return extra_query


def lines(count: int, tokens: int, rank: int) -> list[tuple[int, ...]]:
    """Returns the sizes of packed grids of so many extra tokens each, in lines.

    >>> lines(2, 3, 2)
    [(3, 1), (3, 1)]
    """
    return [(tokens, *[1] * (rank - 1))] * count


_ARGUMENTS = signatures.show(joint_attention)
