"""Answers to keys that a table of a configuration has in other libraries, and to values that are
written in another form: what to write here instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple, cast

from nbattn import synonyms
from nbattn.axis import Axis
from nbattn.config.files import KeyPath
from nbattn.config.notation import Notation

Table = Mapping[str, Any]

_DROPOUTS = {
    *("dropout", "dropout_p", "attn_drop", "attn_dropout", "attention_dropout", "attn_pdrop"),
    *("dropout_rate", "drop_rate", "attention_probs_dropout_prob"),
}
_NEIGHBORHOOD = {"kernel_size": "kernel_size", "dilation": "dilation", "stride": "stride"}
_CAUSAL = ("is_causal", "causal")
_WINDOWS = ("window_size", "window", "local_window", "attention_window", "kernel", "kernel_size")
_SHAPE = {
    *("batch", "batch_size", "heads", "num_heads", "kv_heads", "head_dim", "dim", "seq_len"),
    *("length", "space", "query_space", "key_space", "seqlen", "tokens"),
}
_BORDERS = {
    "wrap": ("circular", "periodic", "cyclic", "wrap", "ring", "torus"),
    "shift": ("shift", "inward"),
    "clip": ("clip",),
}
_FIELDS = tuple(field.name for field in fields(Axis))


class Answer(NamedTuple):
    """What is said about a key: why it is none, and the entries to write instead."""

    why: str = ""
    fix: str = ""


def of_key(path: KeyPath, table: Table, notation: Notation) -> Answer:
    """Returns the answer to an unknown key; empty where there is none."""
    key = str(path[-1])
    match path:
        case ("layers" | "plans" as section, str(name), _):
            return _of_entry(section, name, key, table, notation)
        case ("masks", _, _):
            return _of_mask(key, table, notation)
        case ("masks", _, "axes", int(), _):
            return _of_axis(key, table, notation)
        case ("masks", _, "sliding_window", _) if key in (*_WINDOWS, "size", "sliding_window"):
            return _of_sliding_window(table[key], notation)
        case _:
            return Answer()


def _of_entry(section: str, name: str, key: str, table: Table, notation: Notation) -> Answer:
    """A key of a layer or of a plan: what belongs to the mask, to the shape, or nowhere."""
    if key in _DROPOUTS:
        why = "weights of attention are never stored, so none can be dropped"
        if section == "plans" or not table[key] or "proj_drop" in table:
            return Answer(why, f"no {key}")
        fix = notation.entries({"proj_drop": table[key]})
        return Answer(f"{why}; proj_drop drops after the projection", fix)
    if key in _SHAPE and section == "plans":
        return Answer("the shape says it: query is [batch, *space, heads, head_dim]")
    if key not in (*_FIELDS, *_CAUSAL, *_WINDOWS, "sliding_window", "rank"):
        return Answer()
    mask = table.get("mask") or name
    why = f"masks.{mask} says which keys a query reads"
    entries = _mask_entries(key, table)
    if not entries or ("mask" in table and "causal" in entries[0]):  # a mask that has a window
        return Answer(why)
    pointer = "" if "mask" in table else f" and {notation.entries({'mask': mask})} here"
    return Answer(why, f"{_either(entries, notation)} in masks.{mask}{pointer}")


def _either(entries: list[Table], notation: Notation) -> str:
    """Entries of which a user takes one: a window alone does not say on which side its keys are."""
    written = [notation.entries(entry) for entry in entries]
    if len(written) == 1:
        return written[0]
    return f"{written[0]} (a query and the keys before it), or {written[1]} (keys around it)"


def _mask_entries(key: str, table: Table) -> list[Table]:
    """The entries of a mask's table that a key of another library can mean."""
    entry = _mask_entry(table)
    size = table.get(key)
    if key.endswith("window") and type(size) is int and size > 0 and "neighborhood" in entry:
        return [{"sliding_window": {"left": size - 1}}, entry]
    return [entry] if entry else []


def _mask_entry(table: Table) -> Table:
    """The entry of a mask's table that means the keys of another library; empty if none does."""
    steps = {name: table[name] for name in ("dilation", "stride") if name in table}
    causal = next((table[name] for name in _CAUSAL if name in table), False)
    axis = {name: table[name] for name in _FIELDS if name in table and name not in _CAUSAL}
    window = next((table[name] for name in _WINDOWS if name in table), None)
    if "sliding_window" in table and isinstance(table["sliding_window"], int):
        return {"from_transformers": {"sliding_window": table["sliding_window"]}}
    if axis.keys() & {"left", "right", "border", "prefix"}:
        return {"axes": [axis | ({"causal": True} if causal else {})]}
    if isinstance(window, list) and len(window) == 2 and window[0] != window[1]:
        return {"from_flash": {"window_size": window} | ({"causal": True} if causal else {})}
    rank = {"rank": table["rank"]} if "rank" in table else {}
    if window is not None:
        named = {"is_causal": causal} if causal else {}
        ranked = {} if isinstance(window, list) else rank
        return {"neighborhood": {"kernel_size": window, **steps, **named, **ranked}}
    if causal is True or isinstance(causal, dict):
        return {} if steps else {"causal": (causal if isinstance(causal, dict) else {}) | rank}
    return {"full": rank} if rank else {}


def _of_mask(key: str, table: Table, notation: Notation) -> Answer:
    """A key of an axis or of a constructor in the place of their table."""
    if key in ("type", "kind", "name"):
        return _of_type(key, table, notation)
    if key not in (*_FIELDS, *_CAUSAL, *_WINDOWS, "rank"):
        return Answer()
    entries = _mask_entries(key, table)
    return (
        Answer("it needs a table of its own", _either(entries, notation)) if entries else Answer()
    )


def _of_type(key: str, table: Table, notation: Notation) -> Answer:
    """The kind of a mask, which the name of its one table says."""
    kind = synonyms.meant(table[key], synonyms.MASK_KEYS, synonyms.MASK_KEYS)
    rest = {name: value for name, value in table.items() if name != key}
    if not kind:
        return Answer()
    fix = f"no {key}" if kind in rest else notation.entries({kind: rest})
    return Answer("the name of a mask's one table says it", fix)


def _of_axis(key: str, table: Table, notation: Notation) -> Answer:
    """A window by its size, or a border by its own key."""
    value = table[key]
    for border, words in _BORDERS.items():
        if key in words and "border" not in table:
            return Answer("", notation.entries({"border": border}) if value else f"no {key}")
    if key not in (*_WINDOWS, "size"):
        return Answer()
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value):
        sides = {n: s for n, s in zip(("left", "right"), value, strict=True) if s >= 0}
        return Answer("a window is its two sides", notation.entries(sides) or f"no {key}")
    if type(value) is not int or value < 1:
        return Answer()
    if table.get("causal") is True:
        return Answer("a window is its two sides", notation.entries({"left": value - 1}))
    sides = {"left": value // 2, "right": (value - 1) // 2}
    if key.startswith("kernel") and "border" not in table:
        sides |= {"border": "shift"}
    return Answer("a window is its two sides", notation.entries(sides))


def _of_sliding_window(value: object, notation: Notation) -> Answer:
    if type(value) is not int or value < 1:
        return Answer()
    why = f"left counts the keys before a query, which is the last of {value}"
    return Answer(why, notation.entries({"left": value - 1}))


def of_value(path: KeyPath, table: Any, expected: str, notation: Notation) -> str:
    """Returns the entry of a table with its value in the form that is expected, if there is one
    certain form.

    >>> from nbattn.config.notation import TOML
    >>> of_value(("masks", "a", "axes", 0, "left"), {"left": "3"}, "a whole number", TOML)
    'left = 3'
    >>> of_value(("masks", "a", "neighborhood"), {"neighborhood": 7}, "a table", TOML)
    'neighborhood = { kernel_size = 7 }'
    """
    key = path[-1]
    if isinstance(key, str) and (not isinstance(table, dict) or key not in table):
        return ""  # the path ends with the name of one of several legal types
    value = cast("Any", table)[key]
    if key == "causal" and len(path) == 3 and len(table) > 1:
        return _of_mask("causal", cast("Table", table), notation).fix
    if path[:1] == ("masks",) and len(path) in (2, 4) and expected == "a table":
        table = _mask(value) if len(path) == 2 else _axis(value)
        if table and len(path) == 2:
            return notation.entries({str(key): table})
        return notation.value(table) if table else ""
    if path[:1] == ("masks",) and len(path) == 3 and expected == "a table":
        return _constructor(str(key), value, notation)
    mended = _mended(key, value, expected)
    if mended is None:
        return ""
    return notation.entries({key: mended}) if isinstance(key, str) else notation.value(mended)


def _mask(value: object) -> Table:
    """The table of a mask that is given by a word, or by the sizes of its window."""
    kind = synonyms.meant(value, ("causal", "full"), synonyms.MASK_KEYS)
    if kind:
        return {kind: {}}
    sizes = value if isinstance(value, list) else [value]
    if sizes and all(type(size) is int and size > 0 for size in sizes):
        return {"neighborhood": {"kernel_size": value}}
    return {}


def _axis(value: object) -> Table:
    """The table of an axis that is given by a word, or by its two sides."""
    if synonyms.meant(value, ("causal",), synonyms.MASK_KEYS):
        return {"causal": True}
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value):
        return dict(zip(("left", "right"), value, strict=True))
    return {}


def _constructor(name: str, value: object, notation: Notation) -> str:
    """A constructor's table for its first argument."""
    first = {
        "neighborhood": "kernel_size",
        "from_flash": "window_size",
        "from_transformers": "sliding_window",
        "from_cudnn": "left_bound",
        "causal": "align",
        "full": "rank",
    }
    if value is True or value is None:
        return notation.entries({name: {}}) if name in ("causal", "full") else ""
    if name == "sliding_window" and type(value) is int and value > 0:
        before, whole = ({name: {"left": left}} for left in (value, value - 1))
        some, all_ = notation.entries(before), notation.entries(whole)
        return f"{some} for {value} before the query's own, {all_} for {value} in all"
    if name not in first or isinstance(value, bool):
        return ""
    number = _mended(name, value, "a whole number")
    return notation.entries({name: {first[name]: value if number is None else number}})


def of_entries(table: Table, notation: Notation) -> str:
    """Returns the one entry that a mask's table with none or several should have."""
    given = [notation.entries({name: value}) for name, value in table.items() if value is not None]
    if given:
        return f"{' alone, or '.join(given)} alone"
    example = notation.entries({"neighborhood": {"kernel_size": 7}})
    return f"{example}, or {notation.entries({'full': {}})}"


_NUMBERS = re.compile(r"[\[(]?\s*\d+(\s*[,x]\s*\d+)+\s*[\])]?")  # "2, 12, 4, 16", "2x12"
_SIZES = ("grids", "key_grids")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _mended(key: str | int, value: object, expected: str) -> object:
    """The value in another form; None if there is no certain one."""
    if expected.startswith("a whole number"):
        if isinstance(value, float) and value.is_integer():
            return int(value)
        text = value.strip() if isinstance(value, str) else ""
        if re.fullmatch(r"-?[1-9][0-9]{0,2}(,[0-9]{3})+", text):  # commas between thousands
            text = text.replace(",", "")
        return int(text) if re.fullmatch(r"-?(0|[1-9][0-9]*)", text) else None
    if expected == "true or false":
        if type(value) is int and value in (0, 1):
            return bool(value)
        return _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if expected == "a number" and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    if expected == "a list" and isinstance(value, str) and _NUMBERS.fullmatch(value.strip()):
        numbers = [int(number) for number in re.findall(r"\d+", value)]
        return [numbers] if key in _SIZES else numbers
    if expected == "a list" and type(value) is int and (key in _SIZES or type(key) is int):
        return [value] if type(key) is int else [[value]]
    if expected == "a list" and (isinstance(value, Mapping) or key in ("require", "forbid")):
        return [value]
    return None
