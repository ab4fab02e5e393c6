"""The public function joint_attention(): tokens on a grid, and extra tokens beside it, are queries
and keys, which is two attentions over the same tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from nbattn import arguments, mistaken_places, mistaken_words
from nbattn.axis import MAX_RANK
from nbattn.errors import NbattnError
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
    of_grid = _attended(query, key, value, mask, **added, **shared)
    arguments.check_extra_query(query, extra_query, extra_key)
    rank = query.dim() - 3
    of_extras = _attended(placed(extra_query, rank), key, value, _FULL[rank - 1], **shared)
    if not return_lse:
        return of_grid, of_extras.flatten(1, rank)
    (out, lse), (extra_out, extra_lse) = of_grid, of_extras
    return out, extra_out.flatten(1, rank), lse, extra_lse.flatten(1, rank)


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Mask, **options: Any) -> Any:
    """Computes one part; a fix that is a whole call of attention would leave out the other one."""
    try:
        return attention(query, key, value, mask, **options)
    except NbattnError as error:
        if "nbattn.attention(" not in error.fix:
            raise
        raise type(error)(error.problem, "", error.where) from None


def placed(extra_query: Tensor, rank: int) -> Tensor:
    """Returns queries `[B, E, H, D]` as those of a grid, `[B, E, 1, …, H, D]`: a mask without
    limits takes any lengths.
    """
    for _ in range(rank - 1):
        extra_query = extra_query.unsqueeze(2)
    return extra_query


_ARGUMENTS = signatures.show(joint_attention)
