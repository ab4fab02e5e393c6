"""Names of arguments that users bring from other libraries, and what they are here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial, wraps
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from nbattn import mistaken_masks, synonyms
from nbattn.axis import Axis
from nbattn.errors import InputError, kind
from nbattn.fixes.masks import causal_axes
from nbattn.fixes.signatures import Misfit
from nbattn.mask import Mask
from nbattn.shapes import as_code

P = ParamSpec("P")
R = TypeVar("R")
Given = Mapping[str, Any]

_NEIGHBORHOOD = ("kernel_size", "dilation", "stride", "is_causal", "causal")
_WINDOWS = ("window", "window_size", "local_window", "sliding_window", "attention_window")
_DROPOUTS = ("dropout", "dropout_p", "attn_drop", "attn_dropout", "attention_dropout")
_SLOPES = ("alibi_slopes", "slopes", "alibi", "use_alibi")
_BIASES = ("rel_pos_bias", "rpb", "relative_position_bias", "use_rpb")
_SEQUENCES = ("cu_seqlens", "cu_seqlens_q", "cu_seq_q", "cu_seq_lens_q")
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
        is_known: whether the call can go without the argument, and means the same.
    """

    why: str
    instead: Given = MappingProxyType({})
    before: str = ""
    fix: str = ""
    is_known: bool = True


_EXAMPLE = {"dim": 64, "num_heads": 4, "mask": Code("Mask.neighborhood((7, 7))")}


def refuse_unknown(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a constructor refuse unknown names and missing arguments in words, with the whole call
    as it should be. Its signature stays as it is.
    """
    names = _arguments(function)

    @wraps(function)
    def constructor(*args: P.args, **named: P.kwargs) -> R:
        if not names.keys() >= named.keys():
            first = zip(names, args[1:], strict=False)
            raise _refused("NeighborhoodAttention", names, dict(first) | named, of_the_layer)
        given = dict(zip(names, args[1:], strict=False)) | named
        if isinstance(given.get("num_heads"), Mask) and type(given.get("mask")) is int:
            swapped = given | {"num_heads": given["mask"], "mask": given["num_heads"]}
            raise InputError(
                "num_heads is a Mask, and mask an int.",
                f"NeighborhoodAttention({', '.join(_codes(names, swapped))}).",
            )
        if not given.keys() >= _EXAMPLE.keys():
            missing = [name for name in _EXAMPLE if name not in given]
            shown = ", ".join(_codes(names, _EXAMPLE | given))
            raise InputError(
                f"NeighborhoodAttention needs {' and '.join(missing)}.",
                f"NeighborhoodAttention({shown}).",
            )
        return function(*args, **named)

    return constructor


def refused_call(layer: Any, given: Given, more: tuple[Any, ...], others: Given) -> InputError:
    """The error for a call of a layer with arguments that it does not have."""
    names = _arguments(type(layer).forward)
    values = {**given, **others}
    first = next(iter(values.values()), None)
    again = [n for n in ("k", "key", "v", "value") if others.get(n) is first is not None]
    others = {name: value for name, value in others.items() if name not in again}
    if others:
        return _refused("layer", names, {**given, **others}, partial(of_a_call, layer=layer))
    same = all(value is given["x"] for value in (given.get("context"), *more))
    count = len(more) + 2 if more else len(again) + 1
    same = same or not isinstance(given.get("context"), Tensor)
    shown = ", ".join(_codes(names, given if not same else {"x": given["x"]}))
    return InputError(
        f"layer takes x and a context, not {count} tensors: it projects queries, keys and "
        "values itself.",
        f"layer({shown}).",
    )


def refused_plan(call: Misfit) -> InputError:
    """The error for a call of `plan_for` that does not fit its signature."""
    if not call.unknown:
        return InputError(f"{call.problem}.", "layer.plan_for(x.shape).")
    given = {**dict(zip(call.places, call.given, strict=False)), **call.named}
    names = {name: name in call.places for name in call.names}
    return _refused("layer.plan_for", names, given, of_a_plan)


def _arguments(function: Any) -> dict[str, bool]:
    """The names of a method's arguments, and whether each may go without its name."""
    parameters = [*inspect.signature(function).parameters.values()][1:]
    return {
        p.name: p.kind is p.POSITIONAL_OR_KEYWORD
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def _refused(
    called: str, names: Mapping[str, bool], given: Given, answer: Callable[..., Answer]
) -> InputError:
    """The error for a call with unknown names."""
    unknown = [name for name in given if name not in names]
    answers = [answer(name, given[name], given, names) for name in unknown]
    complete = {name: value for name, value in given.items() if name in names}
    for found in answers:
        complete |= found.instead
    before = "".join(found.before for found in answers)
    call = f"{before}{called}({', '.join(_codes(names, complete))})"
    fix = next((found.fix for found in answers if found.fix), call)
    first = next((n for n, found in enumerate(answers) if not found.is_known), 0)
    return InputError(
        f"{called} takes no argument {unknown[first]!r}: {answers[first].why}.",
        f"{fix}." if answers[first].is_known else "",
    )


def _codes(names: Mapping[str, bool], given: Given) -> list[str]:
    """The arguments of a call as code, those first that need no name."""
    return [
        code(name, given[name]) if bare else f"{name}={code(name, given[name])}"
        for name, bare in names.items()
        if name in given
    ]


def code(name: str, value: Any) -> str:
    """A value as code: its text where that is code, else the name of its argument."""
    if isinstance(value, Code):
        return value
    if isinstance(value, Mask):
        return as_code(value.axes)
    plain = (bool, int, float, str, type(None), Axis, torch.dtype)
    parts: Any = value if isinstance(value, (tuple, list)) else (value,)
    return repr(value) if all(isinstance(part, plain) for part in parts) else name


def of_the_layer(name: str, value: Any, given: Given, names: Collection[str]) -> Answer:
    """What an unknown argument of the constructor means."""
    if name in _NEIGHBORHOOD:
        return Answer("windows are in the mask", {"mask": _mask_of(given)})
    if name in _WINDOWS:
        return Answer("windows are in the mask", _new(given, "mask", _window(value, given)))
    if name in _BIASES:
        return _bias(value, given)
    if name in _SLOPES:
        why = "slopes are given to each call, layer(x, alibi_slopes=slopes)"
        return Answer(why, is_known=False)
    if name in _DROPOUTS:
        why = "attention stores no weights that could be dropped; proj_drop drops of its output"
        return Answer(why, _new(given, "proj_drop", value) if value else {})
    if name == "batch_first":
        return Answer("the batch always comes first")
    return _renamed(name, value, given, synonyms.LAYER_KEYS, names)


def of_a_call(name: str, value: Any, given: Given, names: Collection[str], *, layer: Any) -> Answer:
    """What an unknown argument of forward means."""
    if name in _PADDINGS:
        return Answer("padding is a range of keys", _padding(given, f"~{name}"))
    if name in _MASKS:
        return _mask_in_a_call(name, value, given, layer.mask)
    if name in _SEQUENCES:
        return _packed(name, given)
    if name in _WEIGHTS:
        return Answer("attention stores no weights that it could return")
    if name in ("is_causal", "causal"):
        before = (
            f"layer.mask = {code('mask', Mask(*causal_axes(layer.mask.axes)))}; " if value else ""
        )
        return Answer("the layer's mask says what is causal", before=before)
    if name in ("scale", "backend") and hasattr(layer, name):
        return Answer("it belongs to the layer", before=f"layer.{name} = {code(name, value)}; ")
    return _renamed(name, value, given, synonyms.LAYER_INPUTS, names)


def of_a_plan(name: str, value: Any, given: Given, names: Collection[str]) -> Answer:
    """What an unknown argument of `plan_for` means."""
    if name in _SEQUENCES:
        return _packed(name, given)
    return _renamed(name, value, given, synonyms.PLAN_KEYS, names)


def _packed(name: str, given: Given) -> Answer:
    """Boundaries of packed sequences."""
    sizes = _new(given, "grids", Code(f"nbattn.grids_from({name})"))
    return Answer("packed sequences are packed grids of one axis", sizes)


def _renamed(
    name: str, value: Any, given: Given, table: synonyms.Synonyms, names: Collection[str]
) -> Answer:
    """The legal name of the same or a similar word; else the argument is left out."""
    meant = synonyms.meant(name, names, table)
    if not meant:
        return Answer(f"it has {', '.join(names)}", is_known=False)
    if meant == "qk_transform" and not callable(value):
        return Answer(f"here it is {meant}, a torch.nn.Module", is_known=False)
    tensor = Code(name) if code(name, value) == name else value
    return Answer(f"here it is {meant}", _new(given, meant, tensor))


def _new(given: Given, name: str, value: Any) -> Given:
    """An argument, unless it was given."""
    return {} if name in given else {name: value}


def _mask_of(given: Given) -> Any:
    """The mask of NATTEN's arguments, or the given one with them."""
    size, mask = given.get("kernel_size"), given.get("mask")
    window = next((given[name] for name in _WINDOWS if name in given), None)
    if size is None and mask is None and window is not None:
        return _window(window, given)
    causal = given.get("is_causal", given.get("causal", False))
    if size is None and isinstance(mask, Mask):
        steps = {n: given[n] for n in ("dilation", "stride") if isinstance(given.get(n), int)}
        changed = Mask(*(replace(axis, **steps) for axis in mask.axes))
        return Mask(*causal_axes(changed.axes)) if causal else changed
    if size is None and causal:
        return Code("Mask.causal()")
    size = (7, 7) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    steps = [f", {n}={given[n]!r}" for n in ("dilation", "stride") if given.get(n, 1) != 1]
    steps += [f", is_causal={causal!r}"] if causal else []
    return Code(f"Mask.neighborhood({size!r}{''.join(steps)})")


def _window(value: Any, given: Given) -> Any:
    """Left and right counts as Flash has them, else a window of that size around each query; with
    NATTEN's other arguments.
    """
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    is_of_flash = len(sides) == 2 and (sides[0] != sides[1] or sides[0] in (-1, None))
    if not is_of_flash:
        return _mask_of({**given, "kernel_size": sides})
    causal = bool(given.get("is_causal", given.get("causal", False)))
    steps = {n: given[n] for n in ("dilation", "stride") if isinstance(given.get(n), int)}
    if steps:
        axes = Mask.from_flash(sides, causal=causal).axes
        return Mask(*(replace(axis, **steps) for axis in axes))
    return Code(f"Mask.from_flash({sides!r}{', causal=True' * causal})")


def _bias(value: Any, given: Given) -> Answer:
    """A table of position biases."""
    is_wanted = value is not False and value is not None
    return Answer("here it is relative_bias", _new(given, "relative_bias", is_wanted))


def _padding(given: Given, real: str) -> Given:
    return _new(given, "key_range", Code(f"nbattn.key_range_from({real})"))


def _mask_in_a_call(name: str, value: Any, given: Given, mask: Mask) -> Answer:
    """A mask where there is none: the layer has one; a mask of padding is a range of keys."""
    if isinstance(value, Mask):
        return Answer("the layer has one already", before=f"layer.mask = {code('mask', value)}; ")
    x = given.get("x")
    if isinstance(value, Tensor) and isinstance(x, Tensor) and value.shape == x.shape[:-1]:
        return Answer("padding is a range of keys", _padding(given, f"{name}.bool()"))
    found = mistaken_masks.found(value) if mask.rank == 1 and hasattr(value, "shape") else None
    if found is not None:
        return Answer("the layer has a mask", before=f"layer.mask = {code('mask', found)}; ")
    what = "" if value is None else f", and {kind(value)} cannot take its place"
    return Answer(f"the layer's mask is {mask!r}{what}")


def check_mask(mask: object) -> None:
    """Refuses a kernel size in the place of the mask."""
    sizes = mask if isinstance(mask, (tuple, list)) else (mask,)
    if sizes and all(type(size) is int for size in sizes):
        made = code("mask", _mask_of({"kernel_size": mask}))
        raise InputError(f"mask is {kind(mask)}, not an nbattn.Mask.", f"mask={made}.")
