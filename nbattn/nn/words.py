"""Names of arguments that users bring from other libraries, and what they are here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from nbattn.axis import Axis
from nbattn.errors import InputError, kind
from nbattn.mask import Mask

P = ParamSpec("P")
R = TypeVar("R")
Given = Mapping[str, Any]

_OF_THE_LAYER = {
    "dim": "channels d_model embed_dim hidden_dim hidden_size in_channels in_features query_dim",
    "num_heads": "head heads n_head n_heads nhead nheads num_attention_heads num_query_heads",
    "kv_heads": "n_kv_heads num_key_heads num_key_value_heads num_kv_heads",
    "head_dim": "attention_head_dim d_head d_k dim_head head_channels head_size",
    "qkv_bias": "attention_bias bias use_bias",
    "proj_drop": "drop_rate proj_dropout projection_dropout resid_drop resid_dropout",
    "scale": "attention_scale qk_scale scaling sm_scale softmax_scale",
    "qk_norm": "normalize_qk qk_normalization use_qk_norm",
    "context_dim": "cross_attention_dim encoder_dim kdim kv_dim vdim",
    "qk_transform": "pos_embed position_embedding rope rotary rotary_emb",
    "layout": "data_format memory_format",
}
_OF_A_CALL = {
    "x": "hidden_states input q query src tgt tokens",
    "context": "encoder_hidden_states k key key_value_states kv memory",
    "extra_tokens": "cls_token extra register_tokens registers text_tokens",
}
_NEIGHBORHOOD = ("kernel_size", "dilation", "stride", "is_causal", "causal")
_WINDOWS = ("window", "window_size", "local_window", "sliding_window", "attention_window")
_DROPOUTS = ("dropout", "dropout_p", "attn_drop", "attn_dropout", "attention_dropout")
_BIASES = ("rel_pos_bias", "rpb", "relative_bias", "relative_position_bias", "use_rpb")
_WEIGHTS = ("need_weights", "average_attn_weights", "output_attentions", "return_attention")
_MASKS = ("mask", "attn_mask", "attention_mask", "block_mask", "src_mask")
_PADDINGS = ("key_padding_mask", "src_key_padding_mask", "memory_key_padding_mask")


class Code(str):
    """Text that is code already."""

    __slots__ = ()


class Answer(NamedTuple):
    """What is said about an unknown name.

    Args:
        why: what is so here.
        instead: legal arguments that mean the same; they replace those that were given.
        before: code that stands before the call.
        fix: code in the place of the whole call.
    """

    why: str
    instead: Given = MappingProxyType({})
    before: str = ""
    fix: str = ""


def answering(
    called: str, answer: Callable[..., Answer]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a method refuse unknown names in words, with the whole call as it should be. Its
    signature stays as it is.

    Args:
        called: what a user calls: the name of a class, or of an instance.
        answer: gets an unknown name, its value, all that was given, and the method's owner.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = [*inspect.signature(function).parameters.values()][1:]
        names = frozenset(p.name for p in parameters)
        order = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

        @functools.wraps(function)
        def method(*args: P.args, **named: P.kwargs) -> R:
            if named and not names.issuperset(named):
                given = dict(zip(order, args[1:], strict=False)) | named
                raise refusal(called, order, names, given, functools.partial(answer, owner=args[0]))
            return function(*args, **named)

        return method

    return decorate


def refusal(
    called: str,
    order: Sequence[str],
    names: frozenset[str],
    given: Given,
    answer: Callable[[str, Any, Given], Answer],
) -> InputError:
    """The error for a call with unknown names."""
    unknown = [name for name in given if name not in names]
    answers = [answer(name, given[name], given) for name in unknown]
    complete = {name: value for name, value in given.items() if name in names}
    for found in answers:
        complete |= found.instead
    codes = {name: code(name, value) for name, value in complete.items()}
    first = [codes.pop(name) for name in order if name in codes]
    call = f"{called}({', '.join([*first, *(f'{n}={c}' for n, c in codes.items())])})"
    fix = next((found.fix for found in answers if found.fix), "")
    before = "".join(found.before for found in answers)
    return InputError(
        f"{called} takes no argument {unknown[0]!r}: {answers[0].why}.", f"{fix or before + call}."
    )


def code(name: str, value: Any) -> str:
    """A value as code: its text where that is code, else the name of its argument."""
    if isinstance(value, Code):
        return value
    plain = (bool, int, float, str, type(None), Mask, Axis, torch.dtype)
    parts: Any = value if isinstance(value, (tuple, list)) else (value,)
    return repr(value) if all(isinstance(part, plain) for part in parts) else name


def of_the_layer(name: str, value: Any, given: Given, owner: Any) -> Answer:
    """What an unknown argument of the constructor means."""
    if name in _NEIGHBORHOOD:
        return Answer("windows are in the mask", {"mask": _mask_of(given)})
    if name in _WINDOWS:
        return Answer("windows are in the mask", _new(given, "mask", _window(value)))
    if name in _BIASES:
        return _bias(value, given)
    if name in _DROPOUTS:
        why = "attention stores no weights that could be dropped; proj_drop drops of its output"
        return Answer(why, _new(given, "proj_drop", value) if value else {})
    if name == "batch_first":
        return Answer("the batch always comes first")
    return _renamed(name, value, given, _OF_THE_LAYER, type(owner).__init__)


def of_a_call(name: str, value: Any, given: Given, owner: Any) -> Answer:
    """What an unknown argument of forward means."""
    if name in _PADDINGS:
        return Answer("padding is a range of keys", _padding(given, f"~{name}"))
    if name in _MASKS:
        return _mask_in_a_call(name, value, given, owner)
    if name in _WEIGHTS:
        return Answer("attention stores no weights that it could return")
    if name in ("is_causal", "causal"):
        why = "the layer's mask says what is causal"
        before = f"layer.mask = {_causal(owner.mask)!r}; " if value else ""
        return Answer(why, before=before)
    return _renamed(name, value, given, _OF_A_CALL, type(owner).forward)


def _renamed(
    name: str, value: Any, given: Given, synonyms: Mapping[str, str], function: Any
) -> Answer:
    """The legal name of the same or a similar word; else the argument is left out."""
    legal = [*inspect.signature(function).parameters][1:]
    meant = [own for own, others in synonyms.items() if name.lower() in others.split()]
    meant += get_close_matches(name, legal, 1, 0.7)
    if not meant:
        return Answer(f"it has {', '.join(legal)}")
    tensor = Code(name) if code(name, value) == name else value
    return Answer(f"here it is {meant[0]}", _new(given, meant[0], tensor))


def _new(given: Given, name: str, value: Any) -> Given:
    """An argument, unless it was given."""
    return {} if name in given else {name: value}


def _mask_of(given: Given) -> Any:
    """The mask of NATTEN's arguments, or the given one with them."""
    size, mask = given.get("kernel_size"), given.get("mask")
    causal = given.get("is_causal", given.get("causal", False))
    if size is None and isinstance(mask, Mask):
        steps = {n: given[n] for n in ("dilation", "stride") if isinstance(given.get(n), int)}
        changed = Mask(*(replace(axis, **steps) for axis in mask.axes))
        return _causal(changed) if causal else changed
    if size is None and causal:
        return Code("Mask.causal()")
    size = (7, 7) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    steps = [f", {n}={given[n]!r}" for n in ("dilation", "stride") if given.get(n, 1) != 1]
    steps += [f", is_causal={causal!r}"] if causal else []
    return Code(f"Mask.neighborhood({size!r}{''.join(steps)})")


def _causal(mask: Mask) -> Mask:
    """The mask without later keys on its first axis."""
    first = mask.axes[0]
    border = "clip" if first.border == "shift" else first.border
    return Mask(replace(first, right=0, causal=True, border=border), *mask.axes[1:])


def _window(value: Any) -> Code:
    """Left and right counts as Flash has them, else a window of that size around each query."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and value[0] != value[1]:
        return Code(f"Mask.from_flash({tuple(value)!r})")
    size = (value, value) if isinstance(value, int) else tuple(value)
    return Code(f"Mask.neighborhood({size!r})")


def _bias(value: Any, given: Given) -> Answer:
    """A table of position biases: NATTEN's modules have one."""
    why = "the layer has no table of position biases yet; the drop-in for NATTEN has"
    if value is False or value is None:
        return Answer(why)
    size = given.get("kernel_size", 7)
    rank = len(size) if isinstance(size, (tuple, list)) else 2
    module = f"OlderNeighborhoodAttention{rank}D"
    sizes = [code(n, given.get(n, n)) for n in ("dim", "num_heads")]
    call = f"{module}({', '.join(sizes)}, {size!r}, rel_pos_bias=True)"
    return Answer(
        why, fix=f"from nbattn.integrations.natten.modules import {module}; layer = {call}"
    )


def _padding(given: Given, real: str) -> Given:
    return _new(given, "key_range", Code(f"nbattn.key_range_from({real})"))


def _mask_in_a_call(name: str, value: Any, given: Given, owner: Any) -> Answer:
    """A mask where there is none: the layer has one; a mask of padding is a range of keys."""
    if isinstance(value, Mask):
        return Answer("the layer has one already", before=f"layer.mask = {value!r}; ")
    x = given.get("x")
    if isinstance(value, Tensor) and isinstance(x, Tensor) and value.shape == x.shape[:-1]:
        return Answer("padding is a range of keys", _padding(given, f"{name}.bool()"))
    what = "" if value is None else f", and {kind(value)} cannot take its place"
    return Answer(f"the layer's mask is {owner.mask!r}{what}")


def check_mask(mask: object) -> None:
    """Refuses a kernel size in the place of the mask."""
    sizes = mask if isinstance(mask, (tuple, list)) else (mask,)
    if sizes and all(type(size) is int for size in sizes):
        made = code("mask", _mask_of({"kernel_size": mask}))
        raise InputError(f"mask is {kind(mask)}, not an nbattn.Mask.", f"mask={made}.")
