"""A stand-in for a GPU, so that the tests of `tests/gpu` run where there is none: a pytest plugin.

`python -m pytest -p gpu_stand_in tests/gpu/test_kernels.py -k 2-D`. Tensors "on" the device lie on
the CPU but say that they do not, and an operation on tensors of both places fails as on a GPU. The
launcher is the real one up to the driver's call, which the emulator takes; Triton's kernels run in
its interpreter. Graphs record operations, and replays run them again; streams, and everything that
needs a real driver, do nothing or are skipped. It shows mistakes of the tests themselves, never
that hardware does what is tested.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton_interpreter
from emulator import build
from emulator.launcher import Launcher
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from nbattn.backends.triton import launch as triton_launch
from nbattn.kernels import cubins, launch, layout, sources
from nbattn.kernels.nvrtc import Compiled, Usage
from nbattn.planner import devices
from nbattn.program.device import DEVICES

INFO = DEVICES["sm_90"]
NEEDS_A_GPU = {
    "test_flash": "needs Flash's kernels",
    "test_tensor_maps": "asks the driver",
    "test_every_byte_of_an_argument_with_maps_arrives": "asks the driver",
    "test_compiled_checkpointed_and_under_autocast": "needs a compiler for the device",
    "test_the_sanitizer_finds_nothing": "needs compute-sanitizer",
    "test_without_cublas_workspace": "needs a device in a process of its own",
    "test_the_first_backward_of_a_process_in_a_graph": "needs a device in a process of its own",
    "test_torch_takes_the_kernel_of_the_plan": "asks torch for the device's kernels",
    "test_a_launch_on_a_gpu_takes_few_lines_of_the_host": "counts lines of the real launcher",
    **dict.fromkeys(
        (
            "test_a_second_run_compiles_nothing",
            "test_lengths_and_windows_compile_nothing_new",
            "test_warmup_compiles_what_both_passes_launch",
            "test_a_second_process_takes_kernels_from_the_cache",
        ),
        "counts what Triton's compiler compiles",
    ),
    "test_tf32_only_where_torch_allows_it": "needs tensor cores",
    "test_both_families_agree_where_no_matrix_fits": "takes hours",
    "test_tiles_of_every_kernel_are_measured": "needs the device's clock",
}
MOVES = ("copy_", "to", "cpu", "cuda", "__setitem__", "__getitem__", "index", "item", "tolist")
PLACE = torch.device("cuda", 0)


def on_gpu(value: Any) -> bool:
    """In a backward every tensor is: those that autograd makes have no mark."""
    here = BACKWARD.runs or getattr(value, "_stand_in", False)
    return isinstance(value, Tensor) and here


class Backward(threading.local):
    """Whether autograd's engine runs, and the engine, which then runs under the mode again."""

    runs = False
    engine = staticmethod(torch.autograd._engine_run_backward)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        before, self.runs = self.runs, True
        try:
            with Device():
                return self.engine(*arguments, **named)
        finally:
            self.runs = before


BACKWARD = Backward()


def each(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from each(one)
    elif isinstance(value, dict):
        yield from each(list(value.values()))


def is_cuda(device: Any) -> bool:
    return device is not None and str(device).startswith("cuda")


class Device(TorchFunctionMode):
    """Puts tensors on the stand-in, and refuses operations on tensors of both places."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        qualified = resolve_name(func) or ""
        if name == "__get__" and on_gpu(args[0]):
            for what, answer in (("device", PLACE), ("is_cuda", True)):
                if f".{what}." in qualified:
                    return answer
        if name == "get_device" and on_gpu(args[0]):
            return 0
        mine, target = list(each([args, kwargs])), kwargs.get("device")
        if name == "to" and target is None:
            target = next((a for a in args[1:] if isinstance(a, str | torch.device)), None)
        if name == "cuda":
            return marked(args[0].clone())
        if name == "cpu":
            return args[0].clone()
        self._check(name or qualified, mine)
        args = tuple(torch.device("cpu") if moves(a) else a for a in args)
        if "device" in kwargs and is_cuda(target):
            kwargs["device"] = torch.device("cpu")
        changes = name.endswith("_") and not name.startswith("__") and name != "requires_grad_"
        if CAPTURE.graph is not None and changes:
            CAPTURE.graph.append(lambda: func(*args, **kwargs))  # runs at the replay only
            return args[0]
        found = func(*args, **kwargs)
        stays = any(map(on_gpu, mine)) and not (target is not None and not is_cuda(target))
        if is_cuda(target) or stays:
            for one in each(found):
                marked(one)
        elif target is not None and name == "to" and any(map(on_gpu, mine)):
            found = found.clone() if any(found is one for one in mine) else found
            for one in each(found):
                one._stand_in = False
        if CAPTURE.graph is not None and isinstance(found, Tensor) and on_gpu(found):
            CAPTURE.graph.append(lambda: again(found, func, args, kwargs))
        return found

    @staticmethod
    def _check(name: str, mine: list[Tensor]) -> None:
        if name in MOVES or name.startswith("_") or name == "__get__":
            return
        ours = [on_gpu(t) for t in mine if t.dim()]
        if any(ours) and not all(ours):
            raise RuntimeError(f"{name}: tensors on cuda:0 and cpu")


def moves(value: Any) -> bool:
    return isinstance(value, str | torch.device) and is_cuda(value)


def marked(tensor: Tensor) -> Tensor:
    tensor._stand_in = True
    return tensor


def again(found: Tensor, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
    with torch.no_grad():
        new = func(*args, **kwargs)
        if new.data_ptr() != found.data_ptr():
            found.copy_(new)


# Graphs and streams


class Capture(threading.local):
    graph: list[Callable[[], object]] | None = None


CAPTURE = Capture()


class Graph:
    """Operations in their order; in-place ones and launches run at the replays only."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], object]] = []

    def replay(self) -> None:
        for step in self.steps:
            step()


@contextlib.contextmanager
def capture(graph: Graph, **_: Any) -> Iterator[None]:
    CAPTURE.graph = Launching.shared = graph.steps
    try:
        yield
    finally:
        CAPTURE.graph = Launching.shared = None


class Stream:
    cuda_stream = 0

    def wait_stream(self, other: object) -> None: ...

    def synchronize(self) -> None: ...


# The launcher


class AnyDevice(int):
    """The current device: the one of whatever tensor is launched on."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


class Launching(launch.CuPyLauncher):
    """CuPy's launcher up to the driver's call, which the emulator takes instead."""

    shared: list[Callable[[], object]] | None = None  # launches of any thread are captured

    def __init__(self) -> None:
        super().__init__()
        self.now = threading.local()
        self._torch = SimpleNamespace(
            _C=SimpleNamespace(
                _cuda_getDevice=lambda: AnyDevice(0), _cuda_getCurrentRawStream=lambda _: 0
            ),
            cuda=SimpleNamespace(
                current_device=lambda: AnyDevice(-1),
                is_current_stream_capturing=lambda: Launching.shared is not None,
                get_device_capability=lambda *_: (9, 0),
                get_device_name=lambda *_: "stand-in",
            ),
        )
        self._driver = SimpleNamespace(
            funcSetAttribute=lambda *_: None, CUDADriverError=self._driver.CUDADriverError
        )
        module = SimpleNamespace(load=lambda _: None, get_function=self.function)
        self._cupy = SimpleNamespace(Module=lambda: module)

    def _load(self, device: int, variant: Any) -> Any:
        self.now.variant = variant
        return super()._load(device, variant)

    def function(self, entry: str) -> Any:
        variant, folder = self.now.variant, sources.directory()
        assert variant.entry == entry
        emulator = Launcher("lazy", folder=folder)

        def run(grid: Any, block: Any, packed: Any, shared_bytes: int, stream: Any) -> None:
            assert (block[0], shared_bytes) == (variant.threads, variant.shared_bytes)
            maps, tensors = self.now.maps, self.now.tensors
            own = self._argument_with_maps if maps else self._argument
            argument = bytes(own.buffer)

            def step() -> None:
                with torch._C.DisableTorchFunction():
                    if entry == "nb_probe":
                        return probe(argument, tensors)
                    end = layout.FIRST_MAP if maps else layout.SIZE
                    numbers = argument[8 * len(layout.POINTERS) : end]
                    return emulator.launch(variant, grid[0], tensors, numbers, maps)

            if Launching.shared is not None:
                Launching.shared.append(step)
            else:
                step()

        return Function(run)

    def _encoded(self, maps: Any, tensors: Any) -> bytes:
        return bytes(layout.MAPS * layout.MAP_BYTES)  # the emulator has its own form of maps

    def launch(
        self, variant: Any, blocks: int, tensors: Any, numbers: bytes, maps: Any = ()
    ) -> None:
        self.now.tensors, self.now.maps = dict(tensors), maps
        with torch._C.DisableTorchFunction():
            super().launch(variant, blocks, tensors, numbers, maps)


class Interpreting(triton_interpreter.Launcher):
    """Triton's interpreter in the place of its launcher."""

    def launch(self, *given: Any) -> None:
        def step() -> None:
            with torch._C.DisableTorchFunction():
                super(Interpreting, self).launch(*given)

        if Launching.shared is not None:
            Launching.shared.append(step)
        else:
            step()


def probe(argument: bytes, tensors: dict[str, Tensor]) -> None:
    """What the kernel of `test_launches.py` does; the emulator keeps no earlier content of lse."""
    if "out" in tensors:
        tensors["out"].copy_(torch.frombuffer(bytearray(argument), dtype=torch.int32))
    if "lse" in tensors:
        tensors["lse"].add_(tensors["query"])


class Function:
    """A loaded kernel."""

    ptr = 0

    def __init__(self, run: Callable[..., None]) -> None:
        self.run = run

    def __call__(self, *arguments: Any) -> None:
        self.run(*arguments)


def cubin(variant: Any, arch: str, real: Callable[..., Compiled] = cubins.get) -> Compiled:
    """Kernels that the tests write are compiled for the device, too; the project's are not."""
    if sources.directory() != build.CUDA:
        return real(variant, arch)
    return Compiled(b"", Usage(1, 0, 0, 0, 0, 0, 0), "")


ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_capability": lambda *_: (9, 0),
    "get_device_name": lambda *_: "stand-in",
    "synchronize": lambda *_: None,
    "mem_get_info": lambda *_: (1 << 40, 1 << 40),
    "manual_seed_all": lambda _: None,
    "Stream": Stream,
    "current_stream": lambda *_: Stream(),
    "default_stream": lambda *_: Stream(),
    "stream": lambda _: contextlib.nullcontext(),
    "device": lambda _: contextlib.nullcontext(),
    "_sleep": lambda _: None,
    "CUDAGraph": Graph,
    "graph": capture,
}


def pytest_configure() -> None:
    """Before any test is imported: tests take names from these modules."""
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, answer)
    torch.autograd._engine_run_backward = BACKWARD
    launch.CuPyLauncher = Launching  # pyright: ignore
    triton_launch.TritonLauncher = Interpreting  # pyright: ignore
    cubins.get = cubin
    info = SimpleNamespace(**{n: getattr(INFO, n) for n in INFO.__dataclass_fields__})
    info.providers = ("cupy", "triton")
    devices.device_info = lambda *_: type(INFO)(**vars(info))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for part, reason in NEEDS_A_GPU.items():
            if item.name.partition("[")[0] == part or item.path.stem == part:
                item.add_marker(pytest.mark.skip(reason=f"stand-in: {reason}"))


@pytest.fixture(autouse=True)
def tensors_on_the_stand_in(monkeypatch: pytest.MonkeyPatch, request: Any) -> Iterator[None]:
    """Small sizes instead of those that only show on a device, and the mode."""
    for name, size in (("FAR", 700), ("SIDE", 20), ("TIMES", 1)):
        if hasattr(request.module, name):
            monkeypatch.setattr(request.module, name, size)
    with Device():
        yield
