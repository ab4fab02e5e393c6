"""From torch's tensors, dtypes and devices to requests and plans: the hot path of every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from typing import NamedTuple

import torch
from torch import Tensor

from nbattn.dialects import cuda, natten
from nbattn.dialects import device as devices
from nbattn.dialects.device import DeviceInfo
from nbattn.dialects.flash_providers import PROVIDERS
from nbattn.errors import InputError
from nbattn.kernels import launch
from nbattn.mask import Mask
from nbattn.planner import measured, planner
from nbattn.planner.plan import Plan
from nbattn.planner.request import DTYPES, Request


def device_info(device: torch.device | str | DeviceInfo | None) -> DeviceInfo:
    """The planner's data for a device, with the rates that `nbattn tune` measured: None is this
    machine's accelerator, else its CPU.
    """
    if isinstance(device, DeviceInfo):
        return device
    return measured.device(_data(device))


@lru_cache(64)
def _data(device: torch.device | str | None) -> DeviceInfo:
    """What is known of a device before anything is measured."""
    if device is None:
        return _data(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(device, str) and device in devices.DEVICES:
        return devices.named(device)
    found = _torch_device(device)
    if found is None:
        raise InputError(f"device={device!r} is not known.", devices.known())
    if found.type == "cuda":
        if not torch.cuda.is_available():
            problem = f"device={device!r}: this machine has no CUDA device."
            raise InputError(problem, devices.known())
        info = devices.cuda(*torch.cuda.get_device_capability(found))
        return replace(info, providers=_installed())
    return devices.DEVICES["cpu"] if found.type == "cpu" else devices.other(found.type)


def _installed() -> tuple[str, ...]:
    """The optional packages of kernels that are there, without importing them; CuPy with NVRTC."""
    packages = {provider.package for provider in PROVIDERS.values()} - {"torch"} | {natten.PACKAGE}
    found = {name for name in packages if [*metadata.Distribution.discover(name=name)]}
    return tuple(sorted(found | ({cuda.PACKAGE} if launch.missing() is None else set())))


def is_device(name: str) -> bool:
    """Whether a name means a device on some machine: one with data, or one that torch knows."""
    return name in devices.DEVICES or _torch_device(name) is not None


def _torch_device(device: object) -> torch.device | None:
    """A torch device, or the one that a string names."""
    if not isinstance(device, (str, torch.device)):
        return None
    try:
        return torch.device(device)
    except RuntimeError:
        return None


def dtype_name(dtype: torch.dtype | str) -> str:
    """A dtype by the name that requests use."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(
            f"dtype={name} is not one that attention runs in.", f"one of {', '.join(DTYPES)}."
        )
    return name


def layout_of(query: Tensor, key: Tensor, value: Tensor) -> str:
    """The strides class of q, k, v, a name of `LAYOUTS`: what folding costs depends on it.

    "packed" is what a projection to q, k and v leaves: views of one tensor, row beside row. In
    cross attention keys and values are, and the queries are a tensor of their own.
    """
    if query.is_contiguous() and key.is_contiguous() and value.is_contiguous():
        return "contiguous"
    if not _side_by_side(key, value):
        return "strided"
    alone = query.is_contiguous() and query.shape[:-2] != key.shape[:-2]
    return "packed" if alone or _side_by_side(query, key) else "strided"


def _side_by_side(one: Tensor, other: Tensor) -> bool:
    """Whether rows of two tensors are parts of the same longer rows."""
    return (
        one.stride()[:-2] == other.stride()[:-2]
        and one.stride()[-2:] == (one.shape[-1], 1)
        and other.stride()[-2:] == (other.shape[-1], 1)
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    )


class Facts(NamedTuple):
    """What a plan depends on, of a call or of `nbattn.plan`, in torch's terms; it can be a key.

    The shapes are `[B, *space, H, D]` and `[B, *key_space, Hk, D]`; the rest is as in `Request`.
    """

    mask: Mask
    query_shape: Sequence[int]
    key_shape: Sequence[int]
    value_dim: int
    dtype: torch.dtype | str
    device: torch.device | str | DeviceInfo | None
    layout: str
    extra_keys: int
    softcap: bool
    sink: bool
    key_range: bool
    training: bool
    deterministic: bool
    return_lse: bool
    backend: str
    require: tuple[str, ...]
    forbid: tuple[str, ...]


@lru_cache(planner.CACHE_SIZE)
def planned(facts: Facts) -> Plan:
    """The plan for the facts."""
    return planner.make(request(facts))


def request(facts: Facts) -> Request:
    """The request of the facts: the one place where requests come from tensors and shapes."""
    named = facts._asdict()
    query, key = named.pop("query_shape"), named.pop("key_shape")
    named |= {"dtype": dtype_name(facts.dtype), "device": device_info(facts.device)}
    return Request(
        batch=query[0],
        query_space=tuple(query[1:-2]),
        key_space=tuple(key[1:-2]),
        heads=query[-2],
        kv_heads=key[-2],
        head_dim=query[-1],
        **named,
    )
