"""Checks the arguments of `attention()` and `plan()`; every error has both numbers and a fix."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nbattn.backends import families
from nbattn.errors import InputError, counted, kind
from nbattn.mask import MAX_RANK, Mask
from nbattn.program.device import DeviceInfo
from nbattn.program.device import known as known_devices
from nbattn.program.request import DTYPES, Request
from nbattn.symbolic import holds

_REQUIRED = ("query", "key", "value")
_OF_ANY_DTYPE = ("sink", "key_range")
LONGEST = 2**31 - 1  # positions of an axis: the product of two still fits 64 bits
_MANY_HEADS, _MOST_HEADS = 64, 128  # from 64 on, heads may be tokens; models have up to 128
_WARNED: set[str] = set()  # warnings that this process has given
_LARGE = 1e30  # largest scale and softcap for which float32 can hold the scores


def check_mask(mask: object) -> None:
    """Raises an InputError if the mask is not a Mask."""
    if not isinstance(mask, Mask):
        raise InputError(
            f"mask is {kind(mask)}, not an nbattn.Mask.", "mask=nbattn.Mask(nbattn.Axis(3, 3), …)."
        )


def check_shapes(
    mask: Mask, query: Sequence[int], key: Sequence[int], value: Sequence[int]
) -> None:
    """Checks that the shapes fit one another and the mask."""
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != mask.rank + 3:
            space, rank = ", ".join("XYZ"[: mask.rank]), len(shape) - 3
            fits = 0 < rank <= MAX_RANK
            raise InputError(
                f"{name} has {counted(len(shape), 'dimension')} {list(shape)}; "
                f"a mask of {counted(mask.rank, 'axis', 'axes')} needs {mask.rank + 3}.",
                f"{name} as [B, {space}, {'H' if name == 'query' else 'Hk'}, D]"
                + (f", or a mask of {counted(rank, 'axis', 'axes')}." if fits else "."),
                repr(mask),
            )
    equal = [holds(query[at] == key[at]) for at in (0, -1)]
    if not all(equal):
        size, at = ("head_dim", -1) if equal[0] else ("batch", 0)
        raise InputError(
            f"{size} differs: {query[at]} in query, {key[at]} in key.",
            f"the same {size} in both.",
            _where(query, key, value),
        )
    if not all(holds(a == b) for a, b in zip(key[:-1], value[:-1], strict=True)):
        raise InputError(
            f"key and value differ before their last dimension: "
            f"{list(key[:-1])} and {list(value[:-1])}.",
            "one key and one value per position and head.",
            _where(query, key, value),
        )
    for name, size in (
        ("heads", query[-2]),
        ("key heads", key[-2]),
        ("head_dim", query[-1]),
        ("value_dim", value[-1]),
    ):
        if not holds(size >= 1):
            where = _where(query, key, value)
            raise InputError(f"{name} is {size}.", "at least 1.", where)
    if not holds(query[-2] % key[-2] == 0):
        raise InputError(
            f"{query[-2]} query heads are no multiple of {key[-2]} key heads.",
            f"a number of key heads that divides {query[-2]}; "
            "query head h uses key head h // (H // Hk).",
            _where(query, key, value),
        )


def _where(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> str:
    return f"query {list(query)} key {list(key)} value {list(value)}"


def warn_of_heads_first(query: Sequence[int], key: Sequence[int]) -> None:
    """Warns once if queries and keys have many more heads than positions: heads may come before
    positions, which shapes alone cannot prove. Decode steps (one query) and keys with fewer heads
    give no warning.
    """
    if _is_traced() or query[-2] < _MANY_HEADS or "heads" in _WARNED:
        return
    heads = query[-2]
    rank = len(query) - 3
    if rank == 1:
        most = max(query[1], key[1])
        times = 2 if heads > _MOST_HEADS else 8
        suspicious = min(query[1], key[1]) > 1 and heads >= times * most
    else:  # a square grid after few heads
        suspicious = query[-3] == heads and 8 * query[1] <= heads
    if not suspicious or key[-2] != heads:
        return
    _WARNED.add("heads")
    space = ", ".join("NXYZ"[rank > 1 :][:rank])
    warnings.warn(
        f"query {list(query)} is taken as [B, {space}, H, D]: {heads} heads. If it is "
        f"[B, H, {space}, D], as for torch's scaled_dot_product_attention, pass "
        "query.movedim(1, -2), key and value likewise, and use out.movedim(-2, 1).",
        stacklevel=4,
    )


def warn_of_channels_first(shape: Sequence[int], dim: int) -> None:
    """Warns once if channels may come before the space: dimension 1 has `dim` entries as well, and
    the space is no square or cube of that length.
    """
    if _is_traced() or shape[1] != dim or "channels" in _WARNED:
        return
    if all(size == dim for size in shape[2:]):
        return
    _WARNED.add("channels")
    space = ", ".join("XYZ"[: len(shape) - 2])
    warnings.warn(
        f"x {list(shape)} is taken as [B, {space}, dim], with channels last. If it is "
        f"[B, dim, {space}], pass x.movedim(1, -1), and use y.movedim(-1, 1).",
        stacklevel=6,
    )


def _is_traced() -> bool:
    """Whether a tracer runs, so that sizes may be symbolic."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()  # pyright: ignore


def check_tensors(query: Tensor, named: dict[str, Tensor | None]) -> None:
    """Checks that every tensor is one, on the query's device, and of its dtype; sink and
    key_range have dtypes of their own.
    """
    for name, tensor in (("query", query), *named.items()):
        if tensor is None and name not in _REQUIRED:
            continue
        if not isinstance(tensor, Tensor):
            actual = "None" if tensor is None else kind(tensor)
            fix = f"{name} as [B, *space, H, D]."
            raise InputError(
                f"{name} is {actual}, not a tensor.",
                fix
                if tensor is None
                else "torch.tensor(key_range, dtype=torch.int32)."
                if name == "key_range"
                else f"torch.as_tensor({name}).",
            )
        if tensor.layout != torch.strided or tensor.is_nested:
            raise InputError(
                f"{name} is a sparse or nested tensor.",
                f"{name}.to_dense(), padded, with key_range=.",
            )
        if tensor.device != query.device:
            raise InputError(
                f"{name} is on {tensor.device}, query on {query.device}.",
                f"{name}.to({str(query.device)!r}).",
            )
        if tensor.dtype != query.dtype and name not in _OF_ANY_DTYPE:
            raise InputError(
                f"{name} is {_name(tensor.dtype)}, query {_name(query.dtype)}.",
                f"{name}.to(query.dtype).",
            )
        if name == "query" and _name(tensor.dtype) not in DTYPES:
            raise InputError(
                f"query is {_name(tensor.dtype)}, not a dtype that attention supports.",
                f"query.float(); it supports {', '.join(DTYPES)}.",
            )


def check_numbers(scale: object, softcap: object) -> None:
    """Checks that scale and softcap are numbers that float32 can hold and divide by."""
    if scale is None and softcap is None:
        return
    limits = (("scale", scale, -_LARGE, "-1e+30"), ("softcap", softcap, 1 / _LARGE, "1e-30"))
    for name, value, low, least in limits:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(
                f"{name}={value!r} is {kind(value)}, not a number.", f"{name}=None or a float."
            )
        if not low <= value <= _LARGE:
            raise InputError(
                f"{_named(name, value)} is not between {least} and 1e+30, the range for float32.",
                f"{name}=None, or a number from {least} to 1e+30.",
            )
    if scale is not None and softcap is not None:
        _check_quotient(float(scale), float(softcap))  # pyright: ignore[reportArgumentType]


def _check_quotient(scale: float, softcap: float) -> None:
    """Checks scale / softcap, by which kernels multiply in float32."""
    least = abs(scale) / _LARGE
    if softcap < least:
        if torch.compiler.is_compiling():
            times, bound = "too many", "abs(scale) / 1e30"
        else:
            times, bound = f"{abs(scale) / softcap:.3g}", f"{least!r}"
        raise InputError(
            f"{_named('scale', scale)} is {times} times {_named('softcap', softcap)}; "
            "kernels divide them and support quotients up to 1e+30.",
            f"softcap={bound} or more, or None.",
        )


def _named(name: str, value: float) -> str:
    """An argument and its number for a message; only its name while torch compiles."""
    if torch.compiler.is_compiling():
        return name
    return f"{name}={value}" if abs(value) < 10 or not isinstance(value, int) else f"{name}=10^…"


def check_flags(flags: Mapping[str, object]) -> None:
    """Checks that switches are bools."""
    for name, flag in flags.items():
        if flag is not True and flag is not False:
            raise InputError(
                f"{name}={flag!r} is {kind(flag)}, not a bool.", f"{name}=True or {name}=False."
            )


def check_names(backend: object, dtype: object, device: object) -> None:
    """Checks the types of arguments that become part of the plan cache's key."""
    if not isinstance(backend, str):
        raise InputError(f"backend={backend!r} is {kind(backend)}.", 'backend="auto".')
    if not isinstance(dtype, (str, torch.dtype)):
        raise InputError(f"dtype={dtype!r} is {kind(dtype)}.", "dtype=torch.bfloat16.")
    if device is not None and not isinstance(device, (str, torch.device, DeviceInfo)):
        raise InputError(f"device={device!r} is not known.", known_devices())


def check_run(request: Request, query: Tensor, named: dict[str, Any]) -> None:
    """Checks the names of the arguments of `Plan.run`, and that its tensors' shapes fit."""
    known = ("key", "value", "sink", "key_range", "extra_key", "extra_value", "scale", "softcap")
    for name in named:
        if name not in known:
            raise InputError(
                f"run() takes no argument {name!r}; the plan fixes it.",
                f"only {', '.join(known[2:])} besides query, key and value.",
            )
    check_tensors(query, {n: t for n, t in named.items() if n not in ("scale", "softcap")})
    check_numbers(named["scale"], named["softcap"])
    key, value = named["key"], named["value"]
    check_shapes(request.mask, query.shape, key.shape, value.shape)
    optional = (named.get(n) for n in known[2:6])
    check_extras(query, key, value, *optional)


def check_extras(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_range: Tensor | None,
    extra_key: Tensor | None,
    extra_value: Tensor | None,
) -> None:
    """Checks shapes and dtypes of the optional tensors."""
    batch, rank, heads = query.shape[0], query.dim() - 3, key.shape[-2]
    if sink is not None:
        _shaped("sink", sink, (query.shape[-2],), "one logit per query head")
        if not sink.is_floating_point():
            raise InputError(f"sink is {_name(sink.dtype)}, not a floating dtype.", "sink.float().")
    if key_range is not None:
        _shaped("key_range", key_range, (batch, rank, 2), "[start, stop) per sample and axis")
        if key_range.dtype != torch.int32:
            raise InputError(
                f"key_range is {_name(key_range.dtype)}, not int32.", "key_range.int()."
            )
    if (extra_key is None) != (extra_value is None):
        missing = "extra_key" if extra_key is None else "extra_value"
        raise InputError(
            f"{missing} is missing; extra keys need both.",
            "extra_key= and extra_value=, or neither.",
        )
    if extra_key is not None and extra_value is not None:
        count = extra_key.shape[1] if extra_key.dim() == 4 else "E"
        _shaped("extra_key", extra_key, (batch, count, heads, key.shape[-1]), "[B, E, Hk, D]")
        _shaped(
            "extra_value", extra_value, (batch, count, heads, value.shape[-1]), "[B, E, Hk, Dv]"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shaped(name: str, tensor: Tensor, shape: Sequence[Any], meaning: str) -> None:
    sizes = tensor.shape
    if len(sizes) != len(shape) or not all(
        holds(a == b) for a, b in zip(sizes, shape, strict=True)
    ):
        expected = f"[{', '.join(map(str, shape))}]"
        raise InputError(
            f"{name} has shape {list(tensor.shape)}, not {expected}.",
            f"{name}: {meaning}, {expected}.",
        )


def check_backend(backend: str, require: Sequence[str], forbid: Sequence[str]) -> None:
    """Checks that names are known, and that require= and forbid= are tuples of them."""
    if backend in families.BACKENDS:  # first, as its message is clearer
        check_names_given(require, forbid)
    families.check_names(backend, tuple(require), tuple(forbid))


def check_names_given(require: object, forbid: object) -> None:
    """Checks that require= and forbid= are sequences of names, not one name."""
    if type(require) is tuple and type(forbid) is tuple and not require and not forbid:
        return  # the usual case, which every plan look-up takes
    for name, traits in (("require", require), ("forbid", forbid)):
        if isinstance(traits, str):
            raise InputError(f"{name}={traits!r} is a string.", f"{name}=({traits!r},).")
        if not isinstance(traits, Sequence):
            names = tuple(sorted(traits)) if isinstance(traits, (set, frozenset)) else ()
            raise InputError(f"{name}={traits!r} is not a tuple of names.", f"{name}={names!r}.")
        if not all(isinstance(trait, str) for trait in traits):
            names = tuple(trait for trait in traits if isinstance(trait, str))
            problem = (
                f"{name}={tuple(traits)!r} has values that are not names of strategies or backends."
            )
            raise InputError(problem, f"{name}={names!r}.")


def check_plan(
    query: Sequence[int],
    key: Sequence[int] | None,
    value_dim: int | None,
    extra_keys: int,
    flags: Mapping[str, object],
) -> None:
    """Checks the sizes and switches of a plan request, before they become a key of the cache."""
    for name, shape in (("query_shape", query), ("key_shape", key)):
        if shape is None:
            continue
        fix = f"{name}=[B, *space, H, D], whole numbers >= 0."
        plain = type(shape) is tuple or type(shape) is list
        if not plain and (not isinstance(shape, Sequence) or isinstance(shape, str)):
            raise InputError(f"{name}={shape!r} is not a shape.", fix)
        if {*map(type, shape)} != {int} or min(shape) < 0 or max(shape) > LONGEST:
            if not shape:
                raise InputError(f"{name}={shape!r} has no length.", fix)
            wrong = next(n for n in shape if type(n) is not int or not 0 <= n <= LONGEST)
            shown = tuple(shape)
            if type(wrong) is int and wrong > LONGEST:
                raise InputError(f"{name}: {wrong} is beyond {LONGEST}.", fix)
            raise InputError(f"{name}={shown!r}: {wrong!r} is not a length.", fix)
    for name, value, low in (("value_dim", value_dim, 1), ("extra_keys", extra_keys, 0)):
        if (value is None and low) or (type(value) is int and value >= 0):
            continue
        fix = f"{name} is a whole number >= {low}."
        if type(value) is not int:
            raise InputError(f"{name}={value!r} is {kind(value)}, not an integer.", fix)
        raise InputError(f"{name}={value} is below {low}.", fix)
    check_flags(flags)


def check_parts(
    outputs: Sequence[Tensor], lses: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the arguments of `merge` as lists, checked for one shape, dtype and device."""
    if isinstance(outputs, Tensor) or isinstance(lses, Tensor):
        problem = "merge takes lists of outputs and logsumexps, not one tensor."
        raise InputError(problem, "merge([out_a, out_b], [lse_a, lse_b]).")
    outputs, lses = list(outputs), list(lses)
    if not outputs or len(outputs) != len(lses):
        raise InputError(
            f"{len(outputs)} outputs and {len(lses)} logsumexps.",
            "as many of both, at least one: merge([a, b], [x, y]).",
        )
    for out, lse in zip(outputs, lses, strict=True):
        for name, part in (("an output", out), ("a logsumexp", lse)):
            if not isinstance(part, Tensor):
                raise InputError(f"{name} is {kind(part)}, not a tensor.", "torch.as_tensor.")
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise InputError(
                f"output {list(out.shape)} and logsumexp {list(lse.shape)} "
                f"do not fit {list(outputs[0].shape)}.",
                "outputs [B, *space, H, Dv] and logsumexps [B, *space, H] of the same queries.",
            )
    for name, tensors in (("outputs", outputs), ("logsumexps", lses)):
        kinds = {f"{_name(t.dtype)} on {t.device}": None for t in tensors}
        if len(kinds) > 1 or not tensors[0].is_floating_point():
            raise InputError(
                f"{name} are {' and '.join(kinds)}.", "one floating dtype, one device."
            )
    if outputs[0].device != lses[0].device:
        raise InputError(
            f"outputs are on {outputs[0].device}, logsumexps on {lses[0].device}.", "one device."
        )
    return outputs, lses
