"""The devices of this machine, and devices by name, as the planner's data."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

from nbattn.backends import families
from nbattn.errors import InputError
from nbattn.planner import cost_table
from nbattn.program import device as device_data
from nbattn.program.device import DeviceInfo


def device_info(device: torch.device | str | DeviceInfo | None) -> DeviceInfo:
    """The planner's data for a device, with the rates that `nbattn tune` measured: None is this
    machine's accelerator, else its CPU.
    """
    if isinstance(device, DeviceInfo):
        return device
    return cost_table.device(_data(device))


@lru_cache(64)
def _data(device: torch.device | str | None) -> DeviceInfo:
    """What is known of a device before anything is measured."""
    if device is None:
        return _data(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if isinstance(device, str) and device in device_data.DEVICES:
        return device_data.named(device)
    found = _torch_device(device)
    if found is None:
        raise InputError(f"device={device!r} is not known.", device_data.known())
    if found.type == "cuda":
        if not torch.cuda.is_available():
            problem = f"device={device!r}: this machine has no CUDA device."
            raise InputError(problem, device_data.known())
        info = device_data.cuda(*torch.cuda.get_device_capability(found))
        return replace(info, providers=families.installed())
    return device_data.DEVICES["cpu"] if found.type == "cpu" else device_data.other(found.type)


def is_device(name: str) -> bool:
    """Whether a name means a device on some machine: one with data, or one that torch knows."""
    return name in device_data.DEVICES or _torch_device(name) is not None


def _torch_device(device: object) -> torch.device | None:
    """A torch device, or the one that a string names."""
    if not isinstance(device, (str, torch.device)):
        return None
    try:
        return torch.device(device)
    except RuntimeError:
        return None
