"""The public function merge(): joins attentions over disjoint sets of keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nbattn import mistaken_places
from nbattn.errors import InputError, kind
from nbattn.fixes.signatures import answering


@answering(mistaken_places.refusal)
def merge(outputs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Joins attention outputs of the same queries over disjoint sets of keys into one.

    Args:
        outputs: each `[B, *space, H, Dv]`.
        lses: each `[B, *space, H]`, natural logarithm; -inf for queries without keys, whose output
            may be anything.

    Returns:
        The joint output in the outputs' dtype, and the logsumexp in float32 or wider;
        differentiable in all of them, any number of times.

    Raises:
        InputError: nothing to merge, or shapes, dtypes or devices that differ.

    >>> from nbattn import Mask, attention
    >>> q, k = torch.randn(1, 8, 2, 16), torch.randn(1, 8, 2, 16)
    >>> halves = (k[:, :4], k[:, 4:])
    >>> parts = [attention(q, half, half, Mask.full(), return_lse=True) for half in halves]
    >>> out, lse = merge(*zip(*parts))
    >>> torch.allclose(out, attention(q, k, k, Mask.full()), atol=1e-6)
    True
    """
    outputs, lses = _checked(outputs, lses)
    exact = torch.promote_types(outputs[0].dtype, lses[0].dtype)
    stacked = torch.stack(lses).to(torch.promote_types(exact, torch.float32))
    empty = (stacked == float("-inf")).all(dim=0)
    safe = torch.where(empty, 0.0, stacked)
    lse = safe.logsumexp(dim=0)
    weights = torch.where(empty, 0.0, (safe - lse).exp())
    # outputs of queries without keys are ignored: kernels leave 0 there, or NaN
    out = sum(
        weight[..., None] * part.to(weight.dtype).masked_fill(no_keys[..., None], 0)
        for weight, part, no_keys in zip(weights, outputs, stacked == float("-inf"), strict=True)
    )
    assert isinstance(out, Tensor)
    return out.to(outputs[0].dtype), lse.masked_fill(empty, float("-inf"))


def _checked(
    outputs: Sequence[Tensor], lses: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the arguments of `merge` as lists, checked for one shape, dtype and device."""
    if isinstance(outputs, Tensor) or isinstance(lses, Tensor):
        problem = "merge takes lists of outputs and logsumexps, not one tensor."
        single = all(isinstance(p, Tensor) and p.dim() == n for p, n in ((outputs, 4), (lses, 3)))
        raise InputError(
            problem,
            "nbattn.merge([out], [lse])." if single else "nbattn.merge([*outputs], [*lses]).",
        )
    if not isinstance(outputs, Iterable) or not isinstance(lses, Iterable):
        wrong = lses if isinstance(outputs, Iterable) else outputs
        raise InputError(
            f"merge takes lists of outputs and logsumexps, not {kind(wrong)}; with return_lse=True "
            "attention returns both.",
            "nbattn.merge([out, other], [lse, other_lse]).",
        )
    outputs, lses = list(outputs), list(lses)
    if not outputs or len(outputs) != len(lses):
        few = min(len(outputs), len(lses))
        pairs = f"outputs[:{few}], lses[:{few}]" if few else "[out], [lse]"
        raise InputError(
            f"{len(outputs)} outputs and {len(lses)} logsumexps; merge needs as many of both, "
            "at least one.",
            f"nbattn.merge({pairs}).",
        )
    for out, lse in zip(outputs, lses, strict=True):
        for name, part in (("an output", out), ("a logsumexp", lse)):
            if not isinstance(part, Tensor):
                fix = (
                    "nbattn.merge([*map(torch.as_tensor, outputs)], [*map(torch.as_tensor, lses)])."
                )
                raise InputError(f"{name} is {kind(part)}, not a tensor.", fix)
            if part.is_nested:
                values = "nbattn.merge([out.values() for out in outputs], [lse.values() for lse in "
                is_jagged = part.layout == torch.jagged
                fix = f"{values}lses]), of the tokens of all sequences." if is_jagged else ""
                raise InputError(f"{name} is a nested tensor.", fix)
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise InputError(
                f"output {list(out.shape)} and logsumexp {list(lse.shape)} "
                f"do not fit {list(outputs[0].shape)}: outputs are [B, *space, H, Dv], "
                "logsumexps [B, *space, H], of the same queries.",
                _fitting(outputs, out, lse),
            )
    for name, tensors in (("outputs", outputs), ("logsumexps", lses)):
        kinds = {f"{str(t.dtype).removeprefix('torch.')} on {t.device}": None for t in tensors}
        if len(kinds) > 1 or not tensors[0].is_floating_point():
            variable = "outputs" if name == "outputs" else "lses"
            first = "torch.float32" if not tensors[0].is_floating_point() else f"{variable}[0]"
            raise InputError(
                f"{name} are {' and '.join(kinds)}, not of one floating dtype on one device.",
                f"{variable}=[part.to({first}) for part in {variable}].",
            )
    if outputs[0].device != lses[0].device:
        raise InputError(
            f"outputs are on {outputs[0].device}, logsumexps on {lses[0].device}.",
            "lses=[lse.to(outputs[0].device) for lse in lses].",
        )
    return outputs, lses


def _fitting(outputs: Sequence[Tensor], out: Tensor, lse: Tensor) -> str:
    """The code for pairs of an output and its logsumexp; for logsumexps with heads before the
    positions, as Flash returns them, or with a last dimension of 1; and for parts of different
    queries, which are concatenated.
    """
    first = outputs[0]
    if len(outputs) == 2 and outputs[1].shape == first.shape[:-1]:
        return "nbattn.merge(*zip(outputs, lses))."
    if lse.shape != out.shape[:-1]:
        if lse.movedim(1, -1).shape == out.shape[:-1]:
            return "lses=[lse.movedim(1, -1) for lse in lses]."
        return "lses=[lse.squeeze(-1) for lse in lses]." if lse.shape[:-1] == out.shape[:-1] else ""
    if out.dim() == first.dim() and out.shape[2:] == first.shape[2:]:
        return "torch.cat(outputs, dim=1), torch.cat(lses, dim=1), for parts of the queries."
    return ""
