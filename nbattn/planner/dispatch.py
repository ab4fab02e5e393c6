"""From torch's tensors, dtypes and devices to requests and plans: the hot path of every call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from nbattn.dialects import cuda, natten
from nbattn.dialects import device as devices
from nbattn.dialects.device import DeviceInfo
from nbattn.dialects.flash_providers import PROVIDERS
from nbattn.errors import InputError
from nbattn.kernels import launch
from nbattn.mask import Mask, from_code
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
        raise InputError(f"device={device!r} is not known.", fix=devices.known())
    if found.type == "cuda":
        if not torch.cuda.is_available():
            problem = f"device={device!r}: this machine has no CUDA device."
            raise InputError(problem, fix=devices.known())
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
            f"dtype={name} is not one that attention runs in.", fix=f"one of {', '.join(DTYPES)}."
        )
    return name


def layout_of(query: Tensor, key: Tensor, value: Tensor) -> str:
    """The strides class of q, k, v: what folding costs depends on it."""
    if query.is_contiguous() and key.is_contiguous() and value.is_contiguous():
        return "contiguous"
    return "strided"


@lru_cache(planner.CACHE_SIZE)
def planned(
    mask: tuple[int, ...],
    query_shape: torch.Size,
    key_shape: torch.Size,
    value_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    layout: str,
    extra_keys: int,
    flags: tuple[bool, bool, bool, bool, bool, bool],
    backend: str,
    require: tuple[str, ...],
    forbid: tuple[str, ...],
) -> Plan:
    """The plan for the facts of a call; flags are softcap, sink, key_range, training,
    deterministic, return_lse.
    """
    softcap, sink, key_range, training, deterministic, return_lse = flags
    return planner.make(
        Request(
            **shapes(from_code(mask), query_shape, key_shape),
            value_dim=value_dim,
            dtype=dtype_name(dtype),
            device=device_info(device),
            layout=layout,
            extra_keys=extra_keys,
            softcap=softcap,
            sink=sink,
            key_range=key_range,
            training=training,
            deterministic=deterministic,
            return_lse=return_lse,
            backend=backend,
            require=require,
            forbid=forbid,
        )
    )


def shapes(mask: Mask, query_shape: Sequence[int], key_shape: Sequence[int]) -> dict[str, Any]:
    """The shape fields of a request."""
    return {
        "mask": mask,
        "batch": query_shape[0],
        "query_space": tuple(query_shape[1:-2]),
        "key_space": tuple(key_shape[1:-2]),
        "heads": query_shape[-2],
        "kv_heads": key_shape[-2],
        "head_dim": query_shape[-1],
    }
