"""Which tokens of text are read: the padding that a forward pass says, as ranges `[B, 2]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nbattn.errors import InputError


def unpadded(_: Mapping[str, Any]) -> None:
    """All tokens of the text are read."""


def counted(given: Mapping[str, Any]) -> Tensor:
    """As many tokens from the start of the text as `encoder_attention_mask` has ones.

    HunyuanVideo counts them, whatever their places are.
    """
    count = given["encoder_attention_mask"].sum(dim=1, dtype=torch.int32)
    return torch.stack([torch.zeros_like(count), count], dim=-1)


def masked(given: Mapping[str, Any]) -> Tensor | None:
    """The run of ones in `encoder_hidden_states_mask`, if there is one; None for no mask.

    Raises:
        InputError: the ones of a sample are not one run.
    """
    mask = given.get("encoder_hidden_states_mask")
    if mask is None:
        return None
    mask = mask.bool()
    count = mask.sum(dim=1, dtype=torch.int32)
    start = mask.int().argmax(dim=1).int()
    at = torch.arange(mask.shape[1], device=mask.device)
    run = (at >= start[:, None]) & (at < (start + count)[:, None])
    if not torch.equal(run, mask):
        sample = int((run != mask).any(dim=1).nonzero()[0])
        raise InputError(
            f"the padding of sample {sample}'s text has holes: its tokens are not one run.",
            "text padded on the left or on the right only.",
        )
    return torch.stack([start, start + count], dim=-1)


def behind(valid: Tensor | None, further: int) -> Tensor | None:
    """Returns ranges of the text as those of the tokens of further images and the text behind them.

    Raises:
        InputError: there are such images, and the text is padded on the left.
    """
    if valid is None or not further:
        return valid
    if bool((valid[:, 0] > 0).any()):
        raise InputError(
            "text that is padded on the left stands beside reference images: the tokens that are "
            "read are not one run.",
            "text padded on the right.",
        )
    return valid + torch.tensor([0, further], dtype=valid.dtype, device=valid.device)
