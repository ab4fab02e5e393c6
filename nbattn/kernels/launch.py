"""Launches kernels through CuPy, on torch's tensors and torch's current stream.

A kernel takes one argument by value. It is packed into a buffer that each thread allocates once, so
a launch creates no object per argument; the driver copies the bytes during the call.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import struct
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from nbattn.errors import BackendError
from nbattn.kernels import cubins, layout, nvrtc, tensor_maps, toolkit
from nbattn.kernels.tensor_maps import TensorMap
from nbattn.kernels.variant import Variant
from nbattn.packages import install_line

if TYPE_CHECKING:
    from torch import Tensor

_POINTERS = struct.Struct(f"<{len(layout.POINTERS)}Q")
_PLACE = {name: number for number, name in enumerate(layout.POINTERS)}
_MAX_DYNAMIC_SHARED_BYTES = 8  # a value of the enum CUfunction_attribute
_ALIGNMENT = 64


class Launcher(Protocol):
    """Runs a variant on tensors: `CuPyLauncher`, or the emulator's launcher in the tests."""

    def launch(
        self,
        variant: Variant,
        blocks: int,
        tensors: Mapping[str, Tensor],
        numbers: bytes,
        maps: Sequence[TensorMap] = (),
    ) -> None:
        """Run a kernel.

        Args:
            variant: the kernel with its constants, threads and shared memory.
            blocks: the blocks of the one-dimensional grid; 0 launches nothing.
            tensors: by their names in `layout.POINTERS`; absent ones are null pointers.
            numbers: `layout.pack_numbers(...)`; with maps, `layout.pack_boxes(...)` after it.
            maps: the kernel's tensor maps, of some of these tensors.
        """
        ...

    def load(self, variant: Variant) -> None:
        """Load a kernel on the current device, so that its first launch does not have to."""
        ...


@cache
def missing() -> str | None:
    """What is missing on this machine to run kernels and its fix, in one line; None if nothing is.

    Loads NVRTC, but neither CuPy nor a driver.
    """
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {toolkit.FIX}"
    try:
        nvrtc.version()
        toolkit.headers()
    except BackendError as error:
        return " ".join(f"{error.problem} {error.fix}".split())
    return None


@cache
def launcher() -> Launcher:
    """The process's `CuPyLauncher`.

    Raises:
        BackendError: CuPy is not installed or does not load.
    """
    return CuPyLauncher()


class CuPyLauncher:
    """Launches kernels on the tensors' device; loads each variant once per device."""

    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")
        try:
            self._cupy: Any = importlib.import_module("cupy.cuda.function")
            self._driver: Any = importlib.import_module("cupy_backends.cuda.api.driver")
        except ImportError as error:
            raise BackendError(f"CuPy does not load: {error}", toolkit.FIX) from None
        self._argument = _Argument(self._cupy.CPointer, layout.SIZE)
        self._argument_with_maps = _Argument(self._cupy.CPointer, layout.MAPPED_SIZE)
        self._names = {self._torch.float16: "float16", self._torch.bfloat16: "bfloat16"}
        self._functions: dict[tuple[int, Variant], Any] = {}

    def launch(
        self,
        variant: Variant,
        blocks: int,
        tensors: Mapping[str, Tensor],
        numbers: bytes,
        maps: Sequence[TensorMap] = (),
    ) -> None:
        """Run a kernel on torch's current stream of the tensors' device.

        The first launch of a variant on a device loads it, and compiles it if the cache of cubins
        does not contain it.

        Raises:
            BackendError: the kernel would have to be loaded while a CUDA graph is captured (the
                capture stays usable); it does not compile, or the driver cannot load it or encode
                its tensor maps.
        """
        if not blocks:
            return
        device = next(iter(tensors.values())).get_device()
        if device != self._torch._C._cuda_getDevice():
            with self._torch.cuda.device(device):
                return self.launch(variant, blocks, tensors, numbers, maps)
        function = self._functions.get((device, variant)) or self._load(device, variant)
        argument = self._argument
        if maps:
            argument, numbers = self._argument_with_maps, numbers + self._encoded(maps, tensors)
        pointers = [0] * len(_PLACE)
        for name, tensor in tensors.items():
            pointers[_PLACE[name]] = tensor.data_ptr()
        _POINTERS.pack_into(argument.buffer, 0, *pointers)
        argument.buffer[_POINTERS.size :] = numbers
        argument.stream.ptr = self._torch._C._cuda_getCurrentRawStream(device)
        function(
            (blocks, 1, 1),
            (variant.threads, 1, 1),
            argument.packed,
            variant.shared_bytes,
            argument.stream,
        )

    def load(self, variant: Variant) -> None:
        """Compile and load a variant on the current device, if it is not loaded yet.

        Raises:
            BackendError: as `launch`.
        """
        device = self._torch.cuda.current_device()
        if (device, variant) not in self._functions:
            self._load(device, variant)

    def _encoded(self, maps: Sequence[TensorMap], tensors: Mapping[str, Tensor]) -> bytes:
        """The bytes of all maps of an argument; those that it does not have are zeros."""
        encoded: list[bytes] = []
        for each in maps:
            tensor = tensors[each.tensor]
            name = self._names[tensor.dtype]
            encoded.append(tensor_maps.encode(each, tensor.data_ptr(), name))
        return b"".join(encoded).ljust(layout.MAPS * layout.MAP_BYTES, b"\0")

    def _load(self, device: int, variant: Variant) -> Any:
        """The CuPy function of a variant, loaded on the current device."""
        cuda = self._torch.cuda
        if cuda.is_current_stream_capturing():
            raise BackendError(
                f"{variant.entry} is launched for the first time while a CUDA graph is captured, "
                "which allows no loading; the capture goes on.",
                "plan.warmup() before the capture, or one call of the same shapes",
            )
        arch = nvrtc.arch_of(cuda.get_device_capability(device))
        module = self._cupy.Module()
        try:
            module.load(cubins.get(variant, arch).cubin)
            function = module.get_function(variant.entry)
            # More than 48 KiB of shared memory needs this attribute.
            self._driver.funcSetAttribute(
                function.ptr, _MAX_DYNAMIC_SHARED_BYTES, variant.shared_bytes
            )
        except self._driver.CUDADriverError as error:
            raise BackendError(
                f"the driver cannot load {variant.entry} for sm_{arch}: {error}",
                _older_nvrtc(nvrtc.version()),
                f"{variant}, {cuda.get_device_name(device)}",
            ) from None
        self._functions[device, variant] = function
        return function


def _older_nvrtc(version: tuple[int, int]) -> str:
    """What to do where the driver is older than NVRTC: the driver alone needs an administrator."""
    newer = "a driver as new as CUDA {}.{} (nvidia-smi shows its version)".format(*version)
    older = install_line("cuda12") if version[0] > 12 else 'backend="tiled"'
    return f"{older}; or {newer}"


class _Stream:
    """The only attribute of a stream that CuPy uses."""

    __slots__ = ("ptr",)
    ptr: int


class _Argument(threading.local):
    """The kernel argument of one thread: its bytes and CuPy's pointer to them."""

    def __init__(self, pointer: Any, size: int) -> None:
        self._memory = ctypes.create_string_buffer(size + _ALIGNMENT)
        start = -ctypes.addressof(self._memory) % _ALIGNMENT
        self.buffer = memoryview(self._memory).cast("B")[start : start + size]
        self.packed = (pointer(ctypes.addressof(self._memory) + start),)
        self.stream = _Stream()
