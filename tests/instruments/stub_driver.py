"""A driver that records, and a torch that answers, for tests of the launcher in a second process.

`python stub_driver.py LIBRARY` prints what it recorded as JSON. Nothing may compile there: NVRTC
does not survive this driver.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from work import lines

from nbattn.errors import BackendError
from nbattn.kernels import cubins, launch, layout, nvrtc
from nbattn.kernels.nvrtc import Compiled, Usage
from nbattn.kernels.tensor_maps import TensorMap
from nbattn.kernels.variant import Variant

FORWARD = Variant("fwd_simt.cu", "nb_fwd_simt", (("NB_HEAD_DIM", 64),), 128, 70_000)
DELTA = Variant("delta.cu", "nb_delta", (("NB_HEAD_DIM", 64),), 96, 0)
MAPPED = Variant("fwd_wgmma.cu", "nb_fwd_wgmma", (("NB_HEAD_DIM", 64),), 384, 200_000)
NUMBERS = bytes(range(1, 250)) + bytes(layout.NUMBERS.size - 249)


class Recorded(ctypes.Structure):
    """As in stub_driver.c."""

    _fields_ = [
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        *((name, ctypes.c_uint32) for name in ("shared_bytes", "launches", "shared_limit")),
        *((name, ctypes.c_uint32) for name in ("loads", "calls", "refuse", "encodes")),
        ("parameter_bytes", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("stream", "function", "parameter_address")),
        ("parameter", ctypes.c_ubyte * layout.MAPPED_SIZE),
        ("image", ctypes.c_ubyte * 64),
        ("entry", ctypes.c_char * 64),
    ]


class Tensor:
    """An address on a device."""

    def __init__(self, address: int, device: int = 0, dtype: str = "half") -> None:
        self.address, self.device, self.dtype = address, device, dtype

    def get_device(self) -> int:
        return self.device

    def data_ptr(self) -> int:
        return self.address


class Torch:
    """What the launcher asks of torch: devices, streams, captures, each as the test sets it."""

    def __init__(self) -> None:
        self.current, self.capturing, self.guards = 0, False, []
        self.float16, self.bfloat16 = "half", "brain"
        self._C = SimpleNamespace(
            _cuda_getDevice=lambda: self.current,
            _cuda_getCurrentRawStream=lambda device: 0xABC000 + device,
        )
        self.cuda = SimpleNamespace(
            device=self.device,
            is_current_stream_capturing=lambda: self.capturing,
            get_device_capability=lambda device: [(9, 0), (8, 6)][device],
            get_device_name=lambda device: "Stub",
            current_device=lambda: self.current,
        )

    @contextlib.contextmanager
    def device(self, number: int) -> Iterator[None]:
        self.guards.append(number)
        before, self.current = self.current, number
        yield
        self.current = before


def build(folder: Path) -> Path:
    """The library; FileNotFoundError where there is no gcc."""
    library = folder / "libcuda.so.1"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    source = Path(__file__).with_name("stub_driver.c")
    subprocess.run(["gcc", *flags, source, "-o", library], check=True)
    return library


def install(library: str) -> Recorded:
    """Put the stub where CuPy will look; later loads of "libcuda.so.1" find it by its soname."""
    stub = ctypes.PyDLL(library)
    runtime: Any = importlib.import_module("cupy_backends.cuda.api.runtime")
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
    )
    for name, function, form in (
        ("getDevice", stub.stub_device, b"int (int __pyx_skip_dispatch)"),
        ("getDeviceCount", stub.stub_device_count, b"int (int __pyx_skip_dispatch)"),
        ("_ensure_context", stub.stub_context, b"PyObject *(void)"),
    ):
        CAPSULE_NAMES.append(form)  # a capsule keeps the address of its name
        runtime.__pyx_capi__[name] = new(ctypes.cast(function, ctypes.c_void_p), form, None)
    return Recorded.in_dll(stub, "stub")


CAPSULE_NAMES: list[bytes] = []


def seen(stub: Recorded) -> dict[str, Any]:
    """The record as plain data."""
    return {
        "grid": list(stub.grid),
        "block": list(stub.block),
        "parameter": bytes(stub.parameter)[: stub.parameter_bytes].hex(),
        "image": bytes(stub.image).rstrip(b"\0").decode(),
        "entry": stub.entry.decode(),
        **{
            name: getattr(stub, name)
            for name in ("shared_bytes", "launches", "shared_limit", "loads", "calls", "stream")
        },
        "function": stub.function,
        "encodes": stub.encodes,
        "address": stub.parameter_address,
    }


def fake_cubin(variant: Variant, arch: str) -> Compiled:
    """A "cubin" that says what it is for."""
    return Compiled(
        f"{variant.entry} {arch}".encode().ljust(64, b"\0"), Usage(1, 0, 0, 0, 0, 0, 0), ""
    )


def refusal(launcher: launch.Launcher, *arguments: Any) -> str:
    try:
        launcher.launch(*arguments)
    except BackendError as error:
        return str(error)
    return "none"


def scenarios(stub: Recorded, torch: Torch) -> Iterator[tuple[str, Any]]:
    """Records of every scenario, by its name."""
    launcher = launch.launcher()
    every = {name: Tensor(0x1000 + number) for number, name in enumerate(layout.POINTERS)}
    some = {"query": Tensor(2**63 + 16), "out": Tensor(48)}

    launcher.launch(FORWARD, 2**31 - 1, every, NUMBERS)
    yield "first", seen(stub)
    launcher.launch(FORWARD, 7, some, NUMBERS)
    yield "again", seen(stub)
    launcher.launch(FORWARD, 0, some, NUMBERS)
    yield "no blocks", seen(stub)
    launcher.launch(DELTA, 5, some, NUMBERS)
    yield "another kernel", seen(stub)
    launcher.launch(FORWARD, 3, {"key": Tensor(64, device=1)}, NUMBERS)
    yield "another device", seen(stub) | {"guards": list(torch.guards), "current": torch.current}
    launcher.launch(FORWARD, 3, {"key": Tensor(64, device=1)}, NUMBERS)
    yield "another device again", seen(stub)

    before = stub.calls
    torch.capturing = True
    launcher.launch(FORWARD, 9, some, NUMBERS)
    yield "captured warm", seen(stub)
    before = stub.calls
    cold = Variant("fwd_simt.cu", "nb_fwd_simt", (("NB_HEAD_DIM", 128),), 128, 0)
    words = refusal(launcher, cold, 9, some, NUMBERS)
    yield "captured cold", {"words": words, "calls": stub.calls - before}
    torch.capturing = False
    launcher.launch(cold, 9, some, NUMBERS)
    yield "cold after the capture", seen(stub)

    early = Variant("fwd_simt.cu", "nb_fwd_simt", (("NB_HEAD_DIM", 32),), 128, 0)
    launcher.load(early)
    loaded = stub.loads
    launcher.load(early)
    yield "loaded early", {"loads": stub.loads - loaded, "launches": stub.launches}
    torch.capturing = True
    launcher.launch(early, 9, some, NUMBERS)
    torch.capturing = False
    yield "launched then", {"loads": stub.loads - loaded, "launches": stub.launches}

    stub.refuse = 1
    other = Variant("fwd_simt.cu", "nb_fwd_simt", (("NB_HEAD_DIM", 8),), 128, 0)
    yield "refused", refusal(launcher, other, 9, some, NUMBERS)
    stub.refuse = 0
    launcher.launch(other, 9, some, NUMBERS)
    yield "refused, then taken", seen(stub)

    for name, wrong in {
        "unknown tensor": ({"querry": Tensor(0)}, NUMBERS),
        "short numbers": (some, NUMBERS[:-1]),
        "long numbers": (some, NUMBERS + b"\0"),
    }.items():
        before = stub.launches
        try:
            launcher.launch(FORWARD, 1, *wrong)
            words = "none"
        except (KeyError, ValueError) as error:
            words = type(error).__name__
        yield name, {"error": words, "launches": stub.launches - before}

    yield from with_maps(stub, launcher)
    yield "threads", threads(stub, launcher)
    yield "lines", lines(partial(launcher.launch, FORWARD, 7, every, NUMBERS))


def with_maps(stub: Recorded, launcher: launch.Launcher) -> Iterator[tuple[str, Any]]:
    """Launches of a kernel that reads boxes."""
    query, key = (
        TensorMap(
            tensor,
            offset,
            (192, 7, 300, 5, 2**31 - 1),
            (384, 2**39, 16, 2**40 - 16),
            (channels, 8, 256, 2, 1),
            (1, 1, 8, 2, 1),
            2 * channels,
        )
        for tensor, offset, channels in (("query", 0, 64), ("key", 1 << 33, 32))
    )
    maps, numbers = (query, key, key), NUMBERS + bytes(range(144)) + bytes(256)
    tensors = {"query": Tensor(1 << 40), "key": Tensor(1 << 41, dtype="brain"), "out": Tensor(48)}
    launcher.launch(FORWARD, 2, tensors, NUMBERS)
    plain = stub.parameter_address
    launcher.launch(MAPPED, 11, tensors, numbers, maps)
    yield "maps", seen(stub) | {"plain": plain}
    launcher.launch(MAPPED, 12, tensors, numbers, maps)
    yield "maps again", seen(stub)
    launcher.launch(MAPPED, 13, tensors | {"key": Tensor(3 << 41)}, numbers, maps[:2])
    yield "another address", seen(stub)
    launcher.launch(MAPPED, 13, tensors | {"key": Tensor(0)}, numbers, maps[1:2])
    yield "no elements", seen(stub)
    launcher.launch(FORWARD, 2, tensors, NUMBERS)
    yield "no maps after maps", seen(stub)
    launcher.launch(MAPPED, 2, {"query": Tensor(1 << 40, device=1)}, numbers, maps[:1])
    yield "maps on another device", seen(stub)
    stub.refuse = 1
    words = refusal(launcher, MAPPED, 1, tensors | {"key": Tensor(5 << 41)}, numbers, maps)
    yield "maps refused", {"words": words, "launches": stub.launches}
    stub.refuse = 0
    yield "map lines", lines(partial(launcher.launch, MAPPED, 7, tensors, numbers, maps))


def threads(stub: Recorded, launcher: launch.Launcher) -> dict[str, Any]:
    """Sixteen at once, each with a buffer of its own that stays where it is."""
    addresses: dict[int, set[int]] = {}
    lock, ready = threading.Lock(), threading.Barrier(16)

    def work(number: int) -> None:
        addresses[number] = set()
        ready.wait()
        for turn in range(50):
            with lock:  # the stub has room for one launch
                launcher.launch(FORWARD, 1 + turn, {"query": Tensor(number)}, NUMBERS)
                assert stub.parameter[0] == number
                addresses[number].add(stub.parameter_address)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {str(number): sorted(found) for number, found in addresses.items()}


def main(library: str) -> None:
    stub, torch = install(library), Torch()
    sys.modules["torch"] = torch  # pyright: ignore
    cubins.get = fake_cubin
    nvrtc.version = lambda: (13, 0)
    print(json.dumps(dict(scenarios(stub, torch))))


if __name__ == "__main__":
    main(sys.argv[1])
