"""The devices of this machine, and devices by name, as the planner's data."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import lru_cache

import torch

from nbattn.backends import families
from nbattn.errors import InputError
from nbattn.planner import cost_table, gpus
from nbattn.program import device as device_data
from nbattn.program.device import DeviceInfo

# What a machine lacks where torch sees no GPU of a device type, and a device to plan for instead.
_WITHOUT = {
    gpus.CUDA: ("CUDA device", 'device="sm_90", which plans for an H100'),
    gpus.XPU: ("Intel GPU", 'device="xe", which plans for a Max 1550'),
}


def device_info(device: torch.device | str | DeviceInfo | None) -> DeviceInfo:
    """Returns the planner's data of a device, with the rates that `nbattn tune` measured. None
    means this machine's accelerator, else its CPU.
    """
    if isinstance(device, DeviceInfo):
        return device
    return cost_table.device(_data(device))


@lru_cache(64)
def _data(device: torch.device | str | None) -> DeviceInfo:
    """Returns the data of a device without measured rates."""
    if device is None:
        return _data(torch.device(gpus.kind() or "cpu"))
    if isinstance(device, str) and device in device_data.DEVICES:
        return device_data.named(device)
    parsed = _torch_device(device)
    if parsed is None:
        gpu = gpus.kind() or "sm_90"
        problem = f"device={device!r} is not known: {device_data.known()}."
        raise InputError(problem, device_data.fix(device, gpu))
    if parsed.type in _WITHOUT:
        if not gpus.is_available(parsed.type):
            problem = f"device={str(device)!r}: this machine has no {_WITHOUT[parsed.type][0]}."
            plan = f"{_WITHOUT[parsed.type][1]} without one"
            raise InputError(problem, f"{plan}; device=None is this machine's")
        info, providers = gpus.data(parsed), families.installed(parsed.type)
        versions = {"torch": _version(), "cudnn": _cudnn(), "triton": _triton()}
        return replace(info, providers=providers, **versions)
    if parsed.type == "cpu":
        info, providers = device_data.DEVICES["cpu"], families.installed("cpu")
        return info if providers == info.providers else replace(info, providers=providers)
    return device_data.other(parsed.type)


def _version() -> tuple[int, int]:
    """Returns the first two numbers of torch's version, which may be a nightly's."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _cudnn() -> int:
    """Returns the version of the cuDNN that torch loads; 0 without one."""
    return torch.backends.cudnn.version() or 0


def _triton() -> tuple[int, int]:
    """Returns the first two numbers of Triton's version, which is loaded where it works; those
    assumed of named devices without it.
    """
    version = getattr(sys.modules.get("triton"), "__version__", None)
    if version is None:
        return device_data.TRITON
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def is_here(info: DeviceInfo) -> bool:
    """Whether this machine has such a device: the CPU, or an accelerator of the same name."""
    return info.kind == "cpu" or info.name == device_info(None).name


def is_device(name: str) -> bool:
    """Whether a name is valid for a device: one with data, or one that torch supports."""
    return name in device_data.DEVICES or _torch_device(name) is not None


def _torch_device(device: object) -> torch.device | None:
    """Returns a torch device, given as such or by its name; None for other values, and for "hip",
    which torch's packages for ROCm call "cuda".
    """
    if not isinstance(device, (str, torch.device)):
        return None
    try:
        parsed = torch.device(device)
    except RuntimeError:
        return None
    return None if parsed.type == "hip" else parsed
