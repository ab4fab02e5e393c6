"""Checks the arguments of `attention()` and `plan()`; every error has both numbers and a fix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from nbattn import added_scores, key_ranges, mistaken_masks
from nbattn.axis import MAX_RANK, meant_truth, nearest
from nbattn.backends import families
from nbattn.errors import InputError, counted, described, kind
from nbattn.mask import Mask
from nbattn.packing import argument_of, common_space, grid_count
from nbattn.packing import check_shapes as check_packed_shapes
from nbattn.program.device import DeviceInfo
from nbattn.program.device import known as known_devices
from nbattn.program.request import DTYPES, Request
from nbattn.shapes import check_shapes
from nbattn.symbolic import holds

_REQUIRED = ("query", "key", "value")
_OPTIONAL = (
    *("sink", "key_range", "extra_key", "extra_value"),
    *("extra_range", "relative_bias", "alibi_slopes"),
)
OF_ANY_DTYPE = ("sink", "key_range", "extra_range", "relative_bias", "alibi_slopes")
LONGEST = 2**31 - 1  # positions of an axis: the product of two still fits 64 bits
_LARGE = 1e30  # largest scale and softcap for which float32 can hold the scores


def check_mask(mask: object, rank: int = 1) -> None:
    """Raises an InputError if the mask of a space of so many axes is not a Mask."""
    if not isinstance(mask, Mask):
        raise mistaken_masks.refusal(mask, min(max(rank, 1), MAX_RANK))


def check_tensors(query: Tensor, named: dict[str, Tensor | None]) -> None:
    """Checks that every tensor is one, on the query's device, and of its dtype; what is added to
    scores, and ranges, have dtypes of their own.
    """
    for name, tensor in (("query", query), *named.items()):
        if tensor is None and name not in _REQUIRED:
            continue
        keyword = "" if name in _REQUIRED else f"{name}="  # in front of a fix
        if not isinstance(tensor, Tensor):
            actual = "None" if tensor is None else kind(tensor)
            raise InputError(f"{name} is {actual}, not a tensor.", _as_tensor(name, tensor, query))
        if tensor.layout != torch.strided or tensor.is_nested:
            jagged = "a nested" if tensor.is_nested else "a sparse"
            raise InputError(
                f"{name} is {jagged} tensor.",
                (not keyword) * _ONE_BY_ONE if tensor.is_nested else f"{keyword}{name}.to_dense().",
            )
        if tensor.device != query.device:
            raise InputError(
                f"{name} is on {tensor.device}, query on {query.device}.",
                f"{keyword}{name}.to({str(query.device)!r}).",
            )
        if tensor.is_complex():
            raise InputError(
                f"{name} is {_name(tensor.dtype)}; attention supports {', '.join(DTYPES)}.",
                _COMPLEX.replace("query.dtype", f"{name}.dtype") if not keyword else "",
            )
        if tensor.dtype != query.dtype and name not in OF_ANY_DTYPE:
            raise InputError(
                f"{name} is {_name(tensor.dtype)}, query {_name(query.dtype)}.",
                f"{keyword}{name}.to(query.dtype).",
            )
        if name == "query" and _name(tensor.dtype) not in DTYPES:
            raise InputError(
                f"query is {_name(tensor.dtype)}; attention supports {', '.join(DTYPES)}.",
                "query.float(), key.float(), value.float().",
            )


# Scores of complex numbers by their real part, that of query times the conjugate of key.
_COMPLEX = (
    "torch.view_as_complex(nbattn.attention(*[torch.view_as_real(x.to(query.dtype)).flatten(-2) "
    "for x in (query, key, value)], mask, scale=query.shape[-1] ** -0.5).unflatten(-1, (-1, 2))), "
    "whose scores are the real part of query times the conjugate of key."
)
# Sequences of a nested tensor, each with its own length.
_ONE_BY_ONE = (
    "torch.nested.nested_tensor([nbattn.attention(q[None], k[None], v[None], mask)[0] "
    "for q, k, v in zip(query.unbind(), key.unbind(), value.unbind())])."
)


def _as_tensor(name: str, given: Any, query: Any) -> str:
    """The code that makes a tensor of what was given."""
    dimensions = {"key_range": (4,), "extra_range": (4, 5, 6)}.get(name, ())
    if type(given) is int and dimensions and query.dim() in dimensions:
        return f"{name}=[[0, {given}]] * {query.shape[0]}."
    if name == "sink" and isinstance(given, (int, float)):
        return f"sink=torch.full(({query.shape[-2]},), {float(given)}, device=query.device)."
    if type(given) is bool and name not in _REQUIRED:  # a switch of `plan`
        return f"{name}=None."
    if given is None or (name.endswith("_range") and not hasattr(given, "__array__")):
        return "" if given is None else f"{name}=None."  # lists of numbers are tensors by now
    if isinstance(given, (tuple, list)) and given and all(isinstance(t, Tensor) for t in given):
        joined = "torch.cat" if given[0].dim() >= 4 else "torch.stack"
        return f"{'' if name in _REQUIRED else f'{name}='}{joined}({name})."
    return f"torch.as_tensor({name})." if name in _REQUIRED else f"{name}=torch.as_tensor({name})."


def check_numbers(scale: object, softcap: object) -> None:
    """Checks that scale and softcap are numbers that float32 can hold and divide by."""
    if scale is None and softcap is None:
        return
    limits = (("scale", scale, -_LARGE, "-1e+30"), ("softcap", softcap, 1 / _LARGE, "1e-30"))
    for name, value, low, least in limits:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            shown = kind(value) if isinstance(value, Tensor) else f"{value!r} is {kind(value)}"
            raise InputError(f"{name}={shown}, not a number.", _number(name, value))
        number: Any = value  # of numpy, too
        if not low <= number <= _LARGE:
            raise InputError(
                f"{_named(name, number)} is not between {least} and 1e+30, the range for float32.",
                f"{name}=1e+30." if name == "scale" and number > _LARGE else f"{name}=None.",
            )
    if scale is not None and softcap is not None:
        _check_quotient(float(scale), float(softcap))  # pyright: ignore[reportArgumentType]


def _number(name: str, value: Any) -> str:
    """The code of the number that was probably meant; a scale that is trained scales the query."""
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.requires_grad:
            return f"{name}={name}.item()."
        heads = "scale" if value.numel() == 1 else "scale.reshape(-1, 1)"
        scaled = f"nbattn.attention(query * {heads}, key, value, mask, scale=1.0)."
        return scaled if name == "scale" else f"{name}={name}.max().item()."
    try:
        return f"{name}={float(value) or None}."
    except (TypeError, ValueError):
        return f"{name}=None."


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
            f"softcap={bound}, or softcap=None.",
        )


def _named(name: str, value: float) -> str:
    """An argument and its number for a message; only its name while torch compiles."""
    if torch.compiler.is_compiling():
        return name
    return f"{name}={value}" if abs(value) < 1e9 or not isinstance(value, int) else f"{name}=10^…"


def check_flags(flags: Mapping[str, object]) -> None:
    """Checks that switches are bools."""
    for name, flag in flags.items():
        if flag is not True and flag is not False:
            raise InputError(
                f"{name}={described(flag)}, not a bool.", f"{name}={meant_truth(flag)}."
            )


def check_names(backend: object, dtype: object, device: object) -> None:
    """Checks the types of arguments that become part of the plan cache's key."""
    if not isinstance(backend, str):
        raise InputError(f"backend={backend!r} is {kind(backend)}.", 'backend="auto".')
    if not isinstance(dtype, (str, torch.dtype)):
        name = (
            getattr(dtype, "__name__", "").replace("float", "float32").replace("float323", "float3")
        )
        raise InputError(
            f"dtype={dtype!r} is {kind(dtype)}.",
            f"dtype=torch.{name if name in DTYPES else 'bfloat16'}.",
        )
    if device is not None and not isinstance(device, (str, torch.device, DeviceInfo)):
        named = f'"cuda:{device}"' if type(device) is int else '"cpu"'
        raise InputError(f"device={device!r} is not known: {known_devices()}.", f"device={named}.")


def check_run(request: Request, query: Tensor, named: dict[str, Any], *, joint: bool) -> None:
    """Checks the names of the arguments of `Plan.run`, and that its tensors' shapes fit; of a
    joint plan, where the queries of extra tokens are known.
    """
    beside = ("extra_query",) * joint
    known = ("key", "value", *beside, *_OPTIONAL, "scale", "softcap")
    for name in named:
        if name not in known:
            kept = ["query", "key", "value"]
            for n in known[2:]:
                if n in beside or named.get(n) is not None:
                    kept.append(f"{n}={named[n] if n in ('scale', 'softcap') else n}")
            raise InputError(
                f"run() takes no argument {name!r}, which the plan fixes; besides query, key and "
                f"value it takes {', '.join(known[2:])}.",
                f"{name}={named[name]!r}, an argument of nbattn.plan."
                if name in Request.__dataclass_fields__ and type(named[name]) is bool
                else f"plan.run({', '.join(kept)}).",
            )
    check_tensors(query, {n: t for n, t in named.items() if n not in ("scale", "softcap")})
    check_numbers(named["scale"], named["softcap"])
    key, value = named["key"], named["value"]
    spaces = query.shape, key.shape, value.shape
    if request.grids is None:
        check_shapes(request.mask, *spaces)
    else:
        check_packed_shapes(request.mask, request.grids, *spaces)
    optional = (named.get(name) for name in _OPTIONAL)
    check_optional(request.mask, query, key, value, *optional, packed=request.grids)


def check_optional(
    mask: Mask,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sink: Tensor | None,
    key_range: Tensor | None,
    extra_key: Tensor | None,
    extra_value: Tensor | None,
    extra_range: Tensor | None,
    relative_bias: Tensor | None,
    alibi_slopes: Tensor | None,
    *,
    packed: Any = None,
) -> None:
    """Checks shapes and dtypes of the optional tensors; of packed grids there is one entry each."""
    batch, rank, heads = query.shape[0], mask.rank, key.shape[-2]
    if packed is not None:
        batch = grid_count(packed)
    if sink is not None:
        _shaped("sink", sink, (query.shape[-2],), "one logit per query head")
        if not sink.is_floating_point():
            raise InputError(
                f"sink is {_name(sink.dtype)}, not a floating dtype.", "sink=sink.float()."
            )
    if key_range is not None and (
        key_range.dtype != torch.int32 or not _fits(key_range.shape, (batch, rank, 2))
    ):
        space = key.shape[1:-2] if packed is None else common_space(packed)
        of_keys = {} if packed is None else {argument_of(packed, "key"): key.shape[0]}
        raise key_ranges.refusal(key_range, batch, space, of_keys)
    if (extra_key is None) != (extra_value is None):
        missing, given = ("key", "value") if extra_key is None else ("value", "key")
        raise InputError(
            f"extra_{missing} is missing; extra keys need both.",
            f"extra_key=extra_key, extra_value=extra_value; or extra_{given}=None, for none.",
        )
    if extra_key is not None and extra_value is not None:
        count = _extra_keys(extra_key.shape, batch, heads, key.shape[-1])
        _shaped("extra_key", extra_key, (batch, count, heads, key.shape[-1]), "[B, E, Hk, D]")
        _shaped(
            "extra_value", extra_value, (batch, count, heads, value.shape[-1]), "[B, E, Hk, Dv]"
        )
    if extra_range is not None:
        _check_extra_range(extra_range, batch, extra_key)
    added_scores.check(mask, query, key, relative_bias, alibi_slopes, packed)


def check_extra_query(query: Tensor, extra_query: Tensor, extra_key: Tensor, rank: int) -> None:
    """Checks the queries of extra tokens, as many as their keys, which are checked already.

    Args:
        query: of the grid, or of packed grids.
        extra_query, extra_key: of the extra tokens.
        rank: the axes of the mask.
    """
    check_tensors(query, {"extra_query": extra_query})
    batch, heads, dim = extra_key.shape[0], query.shape[-2], query.shape[-1]
    count = _extra_keys(extra_query.shape, batch, heads, dim)
    _shaped("extra_query", extra_query, (batch, count, heads, dim), "[B, E, H, D]")
    own, keys = extra_query.shape[1], extra_key.shape[1]
    if not holds(own == keys):
        tokens = f"extra_query[:, :{', None' * (rank - 1)}]" if rank > 1 else "extra_query"
        named = "extra_key=extra_key, extra_value=extra_value"
        fix = (
            f"nbattn.attention(query, key, value, mask, {named}), nbattn.attention({tokens}, key, "
            f"value, nbattn.Mask.full({rank}), {named}), each with the other arguments."
        )
        raise InputError(
            f"extra_query has {counted(own, 'token')}, extra_key {keys}: both are those of the "
            "extra tokens.",
            fix if query.dim() == rank + 3 else "",  # packed grids have other queries
        )


def _check_extra_range(extra_range: Tensor, batch: int, extra_key: Tensor | None) -> None:
    if extra_key is None:
        raise InputError("extra_range is given, but there are no extra keys.", "extra_range=None.")
    if extra_range.dtype != torch.int32:
        is_padding = extra_range.dtype == torch.bool and _fits(
            extra_range.shape, extra_key.shape[:2]
        )
        raise InputError(
            f"extra_range is {_name(extra_range.dtype)}, not int32.",
            "extra_range=nbattn.key_range_from(extra_range)[:, 0], with True where a token is real."
            if is_padding
            else "extra_range=extra_range.int().",
        )
    meaning = "[start, stop) of the extra keys, per sample"
    if extra_range.dim() == 1 and extra_range.shape[0] == batch:
        both = "; or extra_range=[[*map(int, extra_range)]] * 2, for one range of both"
        raise InputError(
            f"extra_range has shape [{batch}], not [{batch}, 2]: {meaning}.",
            "extra_range=[[0, int(stop)] for stop in extra_range], for lengths of samples"
            f"{both * (batch == 2)}.",
        )
    _shaped("extra_range", extra_range, (batch, 2), meaning)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shaped(name: str, tensor: Tensor, shape: Sequence[Any], meaning: str) -> None:
    sizes = tensor.shape
    if not _fits(sizes, shape):
        expected = f"[{', '.join(map(str, shape))}]"
        raise InputError(
            f"{name} has shape {list(tensor.shape)}, not {expected}: {meaning}.",
            _reshaped(name, sizes, shape),
        )


def _fits(sizes: Sequence[int], shape: Sequence[Any]) -> bool:
    return len(sizes) == len(shape) and all(
        holds(a == b) for a, b in zip(sizes, shape, strict=True)
    )


def _extra_keys(sizes: Sequence[int], batch: int, heads: int, dim: int) -> int | str:
    """The number of extra keys of a tensor, which may lack the batch or the heads; else "E"."""
    if len(sizes) == 4:
        return sizes[1]
    padded = (1, *sizes)
    if len(sizes) in (2, 3) and padded[-2:] == (heads, dim):
        return padded[-3]
    return padded[-2] if padded[-1] == heads * dim else "E"


def _reshaped(name: str, sizes: Sequence[int], shape: Sequence[Any]) -> str:
    """The code that gives a tensor a shape, where it has as many numbers, or can repeat them."""
    if name.startswith("extra_") and len(sizes) == 4 and sizes[1] == shape[2]:
        return f"{name}={name}.transpose(1, 2)."  # [B, Hk, E, D]
    if "E" in shape:
        return ""
    is_flat = len(sizes) == 3 and shape[0] > 1 and not sizes[0] % shape[0]
    if name.startswith("extra_") and is_flat and _fits(sizes[1:], shape[2:]):
        each = f"{name}={name}.unflatten(0, ({shape[0]}, -1)), if each sample has its own"
        return (
            f"{name}={name}.expand({', '.join(map(str, shape))}), for the same in all; or {each}."
        )
    if name.startswith("extra_") and sizes[-1:] == (shape[-2] * shape[-1],):  # heads in one
        split = f"{name}.unflatten(-1, ({shape[-2]}, {shape[-1]}))"
        batch = "" if len(sizes) == 3 else f".expand({shape[0]}, -1, -1, -1)"
        return f"{name}={split}{batch}."
    if math.prod(sizes) == math.prod(shape) and len(sizes) != len(shape):
        return f"{name}={name}.reshape({', '.join(map(str, shape))})."
    if math.prod(sizes) == 1:
        return f"{name}={name}.flatten().expand({shape[0]})." if len(shape) == 1 else ""
    longer = [n for n, (a, b) in enumerate(zip(sizes, shape, strict=False)) if a > b]
    cut = [b if n in longer else a for n, (a, b) in enumerate(zip(sizes, shape, strict=False))]
    if len(sizes) == len(shape) == 4 and longer == [1] and cut == [*shape]:
        return f"{name}={name}[:, :{shape[1]}]."
    fits = all(a in (1, b) for a, b in zip(sizes[::-1], shape[::-1], strict=False))
    if fits and len(sizes) <= len(shape):
        return f"{name}={name}.expand({', '.join(map(str, shape))})."
    return ""


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
        fix = f"{name}={name.removesuffix('_shape')}.shape."
        plain = type(shape) is tuple or type(shape) is list
        if not plain and (not isinstance(shape, Sequence) or isinstance(shape, str)):
            shown = kind(shape) if isinstance(shape, Tensor) else repr(shape)
            raise InputError(f"{name}={shown} is not a shape [B, *space, H, D].", fix)
        if {*map(type, shape)} != {int} or min(shape) < 0 or max(shape) > LONGEST:
            if not shape:
                raise InputError(f"{name}={shape!r} has no length.", fix)
            wrong = next(n for n in shape if type(n) is not int or not 0 <= n <= LONGEST)
            shown = tuple(shape)
            if type(wrong) is int and wrong > LONGEST:
                raise InputError(f"{name}: {wrong} is beyond {LONGEST}.")
            legal = tuple(n if n is not wrong else nearest(n, 0) for n in shape)
            raise InputError(f"{name}={shown!r}: {wrong!r} is not a length.", f"{name}={legal}.")
    for name, value, low in (("value_dim", value_dim, 1), ("extra_keys", extra_keys, 0)):
        if (value is None and low) or (type(value) is int and value >= low):
            continue
        if isinstance(value, (tuple, list)) and len(value) == 1:
            fix = f"{name}={nearest(value[0], low)}."
        elif getattr(value, "shape", ()):
            fix = f"{name}={'value.shape[-1]' if low else 'extra_key.shape[1]'}."
        else:
            fix = f"{name}={nearest(value, low)}."
        if type(value) is not int:
            raise InputError(f"{name}={described(value)}, not an integer.", fix)
        raise InputError(f"{name}={value} is below {low}.", fix)
    check_flags(flags)
