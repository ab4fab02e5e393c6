"""Answers to calls with too few arguments, too many, or some at the place of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbattn.axis import MAX_RANK, Axis, written
from nbattn.errors import InputError, MaskError, kind
from nbattn.fixes.masks import causal_axes
from nbattn.fixes.signatures import Misfit
from nbattn.mask import Mask

_CALL = "nbattn.attention(query, key, value, mask)"
_JOINT = "nbattn.joint_attention(query, key, value, mask, extra_query, extra_key, extra_value)"
_CALLS = {  # functions whose arguments are few, with all that they need
    "merge": "nbattn.merge(outputs, lses)",
    "key_range_from": "nbattn.key_range_from(padding)",
    "load": 'nbattn.load("nat_tiny")',
    "grids_from": "nbattn.grids_from(cu_seqlens)",
    "Grids": "nbattn.Grids([(14, 14), (20, 33)])",
    "Plan.run": "plan.run(query, key, value)",
    "plan": "nbattn.plan(mask, query.shape)",
    "joint_attention": _JOINT,
    "attention_weights": "nbattn.attention_weights(query, key, mask, at=[(0,) * mask.rank])",
}
_OF_BOTH = "grids=nbattn.grids_from(cu_seqlens_q), key_grids=nbattn.grids_from(cu_seqlens_k)"
_SURPLUS = {  # the same with more than can be given by place
    "merge": "nbattn.merge([out, other], [lse, other_lse])",
    "plan": "nbattn.plan(mask, query.shape, key.shape, value_dim=value.shape[-1])",
    "grids_from": _OF_BOTH,
    "attention_weights": "nbattn.attention_weights(query, key, mask, at=at)",
}
_WORDS = {  # other names of their arguments
    "query": ("q", "queries"),
    "key": ("k", "keys"),
    "value": ("v", "values"),
    "outputs": ("outs", "out", "output", "o"),
    "lses": ("lse", "logsumexps", "softmax_lse"),
    "padding": ("mask", "attention_mask", "padding_mask"),
    "source": ("path", "file", "name", "config"),
    "cu_seqlens": ("cu_seqlens_q", "cu_seqlens_k", "cu_seq_q", "offsets", "boundaries"),
    "array": ("sizes", "grids", "shapes", "grid_sizes", "lengths"),
}
_LENGTHS = ("lengths", "seqlens", "seq_lens", "sizes")


def refusal(call: Misfit) -> InputError:
    """Makes the error of a call of a small function."""
    others = {word: name for name, words in _WORDS.items() for word in words if name in call.names}
    renamed = {others[word]: word for word in call.named if word in others}
    code = _CALLS[call.function]
    lengths = [n for n in call.named if n in _LENGTHS and call.function == "grids_from"]
    if lengths:
        code = f"nbattn.Grids({lengths[0]})"
    elif call.function == "Grids" and len(call.given) > 1:
        code = _grids(call.given)
    elif call.function == "grids_from" and any(type(given) is int for given in call.given[1:]):
        pass  # the longest sequence
    elif renamed:
        code = f"{code.partition('(')[0]}({', '.join(f'{n}={w}' for n, w in renamed.items())})"
    elif len(call.given) > len(call.places):
        code = _SURPLUS.get(call.function, code)
    elif call.given and isinstance(call.given[0], (tuple, list)) and len(call.places) > 1:
        pairs = call.function == "merge"
        code = (
            f"{code.partition('(')[0]}(*{f'zip(*{call.places[0]})' if pairs else call.places[0]})"
        )
    return InputError(f"{call.problem}.", f"{code}.")


def _grids(given: Sequence[Any]) -> str:
    """The code of sizes that were given by place: of grids, or of queries and keys."""
    if any(
        isinstance(size, (tuple, list)) and size and isinstance(size[0], tuple) for size in given
    ):
        return f"grids={given[0]!r}, key_grids={given[1]!r}"
    code = f"nbattn.Grids({list(given)!r})"
    return code if isinstance(given[0], tuple) else f"{code}; or nbattn.Grids([{given!r}]), a grid"


def surplus(more: Sequence[Any], mask: object, rank: int = 1) -> InputError:
    """Makes the error of a call of attention with arguments by place after the mask."""
    problem = f"attention() takes 4 arguments by place, not {4 + len(more)}; the rest by name."
    numbers = [n for n in more if isinstance(n, float) and n]
    if True in [n for n in more if isinstance(n, bool)]:  # SDPA's is_causal, and Flash's
        axes = mask.axes if isinstance(mask, Mask) else (Axis(),) * min(max(rank, 1), MAX_RANK)
        try:
            code = written(causal_axes(axes))
        except MaskError:  # of a circle
            return InputError(problem)
        scale = [f", scale={n}" for n in numbers]
        return InputError(problem, f"{_CALL[:-5]}{code}{scale[0] if len(scale) == 1 else ''}).")
    if not numbers or not isinstance(mask, Mask):
        return InputError(problem, f"{_CALL}.")
    scaled = f"{_CALL[:-1]}, scale={numbers[0]})"
    dropped = f"torch.nn.functional.dropout({_CALL}, {numbers[0]})"
    fix = f"{scaled}, if it is the scale; or {dropped}, if it is a dropout."
    return InputError(problem, fix if 0 < numbers[0] < 1 else f"{scaled}.")


def missing(query: Any, key: Any, value: Any) -> InputError:
    """Makes the error of a call of attention with fewer tensors than it needs, or with the mask at
    the place of one.
    """
    tensors = {"query": query, "key": key, "value": value}
    masks = [f"{name} is a Mask" for name, given in tensors.items() if isinstance(given, Mask)]
    absent = [name for name, given in tensors.items() if given is None]
    problem = "; ".join([*masks, *(f"{name} is missing" for name in absent)])
    code = _CALL
    if isinstance(key, Mask) or (key is None and query is not None):
        rank = next((m.rank for m in (key, value) if isinstance(m, Mask)), 1)
        passed = "*query.unbind(-3)" if _is_packed(query, 3) else "query, query, query"
        if isinstance(query, (tuple, list)) or getattr(query, "shape", ())[: -rank - 3] == (3,):
            passed = "*query"  # one after another
        code = f"nbattn.attention({passed}, mask)"
    elif _is_packed(key, 2):
        code = "nbattn.attention(query, *key.unbind(-3), mask)"
    return InputError(f"{problem}; attention takes query, key, value and a mask.", f"{code}.")


def not_extras(extras: Mapping[str, Any]) -> InputError:
    """Makes the error of a call of joint_attention whose extra tokens lack a tensor, or have the
    mask at the place of one.
    """
    name = next(name for name, given in extras.items() if not hasattr(given, "unsqueeze"))
    missing = [key for key, given in extras.items() if given is None]
    fix = f"{name}=torch.as_tensor({name})." if extras[name] is not None else ""
    if any(isinstance(given, Mask) for given in extras.values()):
        fix = f"{_JOINT}."
    elif len(missing) == len(extras):
        fix = f"{_CALL}, without extra tokens."
    elif missing == ["extra_query"]:
        keys = "extra_key=extra_key, extra_value=extra_value"
        fix = f"{_CALL[:-1]}, {keys}), where they are only keys."
    shown = "None" if extras[name] is None else kind(extras[name])
    problem = f"{name} is {shown}, not a tensor: extra tokens have queries, keys and values."
    return InputError(problem, fix)


def _is_packed(tensor: Any, parts: int) -> bool:
    """Whether a tensor `[B, *space, parts, H, D]` has several in one."""
    shape = getattr(tensor, "shape", ())
    return len(shape) >= 5 and shape[-3] == parts
