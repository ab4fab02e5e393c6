"""The data of the GPUs that torch sees on this machine: by compute capability, or by AMD's and
Intel's own names.
"""

from __future__ import annotations

from typing import Any

import torch

from nbattn.program import device as device_data
from nbattn.program.device import DeviceInfo

CUDA, XPU = "cuda", "xpu"  # torch's device types; AMD's GPUs are of the first
# GeForce cards whose rates are far from those of the entry of their capability.
_CARDS = {"NVIDIA GeForce RTX 3090": "rtx_3090", "NVIDIA GeForce RTX 4090": "rtx_4090"}


def kind() -> str:
    """Returns the device type of this machine's GPUs; empty without one."""
    if torch.cuda.is_available():
        return CUDA
    return XPU if is_available(XPU) else ""


def is_available(kind: str) -> bool:
    """Whether torch sees a GPU of a device type."""
    module: Any = getattr(torch, kind, None)
    return module is not None and module.is_available()


def data(gpu: torch.device) -> DeviceInfo:
    """Returns the data of a GPU of this machine, with the packages of a named one."""
    if gpu.type == XPU:
        return device_data.intel(torch.xpu.get_device_name(gpu))
    if torch.version.hip:
        properties: Any = torch.cuda.get_device_properties(gpu)
        return device_data.amd(properties.gcnArchName)
    card = _CARDS.get(torch.cuda.get_device_name(gpu), "")
    if card:
        return device_data.named(card)
    return device_data.cuda(*torch.cuda.get_device_capability(gpu))


def models(kind: str, name: str) -> set[str]:
    """Returns the models of this machine's GPUs of a device type whose data have a name."""
    if not is_available(kind):
        return set()
    module = torch.get_device_module(kind)
    gpus = [torch.device(kind, number) for number in range(module.device_count())]
    return {module.get_device_name(gpu) for gpu in gpus if data(gpu).name == name}
