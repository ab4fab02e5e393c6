"""Tests of launches on a GPU: argument bytes, streams, graphs, devices and work of the host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import probe_kernel
import pytest
import torch
from gpu_problems import needs_hopper
from torch import Tensor
from work import lines

from nbattn.errors import BackendError
from nbattn.kernels import cubins, launch, layout, sources, tensor_maps
from nbattn.kernels.launch import CuPyLauncher
from nbattn.kernels.tensor_maps import TensorBoxes, View

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing())),
]
NUMBERS = bytes(range(1, 250)) + bytes(layout.NUMBERS.size - 249)
WORDS = layout.SIZE // 4
# Copies its argument to `out`, through the last bytes of its shared memory; adds `query` to `lse`.
SOURCE = f"""
#include "params.h"
extern "C" __global__ void nb_probe(const __grid_constant__ Params p) {{
  extern __shared__ unsigned shared[];
  unsigned* const last = shared + NB_SHARED_BYTES / 4 - {WORDS};
  for (int i = threadIdx.x; i < {WORDS}; i += NB_HEAD_DIM) last[i] = ((const unsigned*)&p)[i];
  __syncthreads();
  unsigned* const out = (unsigned*)p.pointer[{layout.POINTERS.index("out")}];
  if (out && blockIdx.x == gridDim.x - 1)
    for (int i = threadIdx.x; i < {WORDS}; i += NB_HEAD_DIM) out[i] = last[i];
  int* const lse = (int*)p.pointer[{layout.POINTERS.index("lse")}];
  if (lse && blockIdx.x + threadIdx.x == 0) *lse += *(const int*)p.pointer[0];
}}
"""
# The same of an argument with tensor maps.
MAPPED_SOURCE = f"""
#include "params.h"
struct alignas(64) Mapped {{ unsigned word[{layout.MAPPED_SIZE // 4}]; }};
extern "C" __global__ void nb_probe(const __grid_constant__ Mapped m) {{
  unsigned* const out = (unsigned*)((const Params&)m).pointer[{layout.POINTERS.index("out")}];
  for (int i = threadIdx.x; i < {layout.MAPPED_SIZE // 4}; i += NB_HEAD_DIM) out[i] = m.word[i];
}}
"""


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuPyLauncher]:
    """One that has loaded nothing."""
    folder = probe_kernel.write(tmp_path, probe=SOURCE)
    monkeypatch.setattr(sources, "directory", lambda: folder)
    cubins.forget()
    yield CuPyLauncher()
    cubins.forget()


def probe(threads: int = 128, shared_bytes: int = layout.SIZE):
    return probe_kernel.variant(threads, shared_bytes, threads)


def number(value: int, device: str = "cuda") -> Tensor:
    return torch.tensor([value], dtype=torch.int32, device=device)


@pytest.mark.parametrize("shared_bytes", [layout.SIZE, 48 << 10, 64 << 10])
@pytest.mark.parametrize(("threads", "blocks"), [(32, 1), (128, 3), (256, 70_000)])
def test_every_byte_of_the_argument_arrives(
    launcher: CuPyLauncher, shared_bytes: int, threads: int, blocks: int
):
    """Through more shared memory, too, than a kernel has without asking."""
    out = torch.zeros(WORDS, dtype=torch.int32, device="cuda")
    tensors = {"key": number(1), "out": out}
    launcher.launch(probe(threads, shared_bytes), blocks, tensors, NUMBERS)
    found = bytes(out.cpu().view(torch.uint8).tolist())
    addresses = (tensors[n].data_ptr() if n in tensors else 0 for n in layout.POINTERS)
    assert found == b"".join(a.to_bytes(8, "little") for a in addresses) + NUMBERS


@needs_hopper
def test_every_byte_of_an_argument_with_maps_arrives(
    launcher: CuPyLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Twice with the same maps, and once with those of another tensor."""
    folder = probe_kernel.write(tmp_path / "mapped", probe=MAPPED_SOURCE)
    monkeypatch.setattr(sources, "directory", lambda: folder)
    cubins.forget()
    boxes = tensor_maps.boxes_of("key", View.contiguous((1, 300, 2, 64)), (1, 1, 64))
    assert isinstance(boxes, TensorBoxes)
    (tensor_map,) = boxes.maps
    numbers = NUMBERS + layout.pack_boxes({"key": boxes.numbers})
    keys = [torch.zeros(1, 300, 2, 64, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    for key in (keys[0], keys[0], keys[1]):
        out = torch.zeros(layout.MAPPED_SIZE // 4, dtype=torch.int32, device="cuda")
        tensors = {"key": key, "out": out}
        launcher.launch(probe(), 1, tensors, numbers, boxes.maps)
        found = bytes(out.cpu().view(torch.uint8).tolist())
        addresses = (tensors[n].data_ptr() if n in tensors else 0 for n in layout.POINTERS)
        maps = tensor_maps.encode(tensor_map, key.data_ptr(), "bfloat16")
        wanted = b"".join(a.to_bytes(8, "little") for a in addresses) + numbers + maps
        assert found == wanted.ljust(layout.MAPPED_SIZE, b"\0")


def test_a_launch_runs_on_the_current_stream(launcher: CuPyLauncher):
    """After what was put there before, and before what comes after, while other streams wait."""
    query, lse = number(1), number(0)
    launcher.launch(probe(), 1, {"query": query, "lse": lse}, NUMBERS)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        query.fill_(10)
        launcher.launch(probe(), 1, {"query": query, "lse": lse}, NUMBERS)
        query.fill_(100)
    torch.cuda.synchronize()
    assert lse.item() == 11


def test_a_loaded_kernel_in_a_graph(launcher: CuPyLauncher):
    query, lse = number(1), number(0)
    tensors = {"query": query, "lse": lse}
    launcher.load(probe())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launcher.launch(probe(), 1, tensors, NUMBERS)
        query.add_(1)
        launcher.launch(probe(), 1, tensors, NUMBERS)
    assert lse.item() == 0
    graph.replay()
    graph.replay()
    assert lse.item() == 1 + 2 + 2 + 3


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_another_thread_may_be_the_first_to_launch_in_a_graph(launcher: CuPyLauncher, mode: str):
    """As autograd's is, in a backward under capture. CuPy asks the runtime for the device's memory
    once per thread, and "global" forbids some calls to every thread.
    """
    tensors = {"query": number(1), "lse": number(0)}
    launcher.load(probe())
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def work() -> None:
        with torch.cuda.stream(stream):
            launcher.launch(probe(), 1, tensors, NUMBERS)

    with torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
    graph.replay()
    torch.cuda.synchronize()
    assert tensors["lse"].item() == 1


def test_a_kernel_not_loaded_leaves_the_capture_usable(launcher: CuPyLauncher):
    query, lse = number(1), number(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        query.add_(1)
        with pytest.raises(BackendError, match="is launched for the first time while a CUDA graph"):
            launcher.launch(probe(), 1, {"query": query, "lse": lse}, NUMBERS)
        query.add_(1)
    graph.replay()
    assert query.item() == 3
    launcher.launch(probe(), 1, {"query": query, "lse": lse}, NUMBERS)
    assert lse.item() == 3


def test_every_device_loads_its_own_kernel(launcher: CuPyLauncher):
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    for device in (1, 0, 1):
        name = f"cuda:{device}"
        tensors = {"query": number(5, name), "lse": number(0, name)}
        with torch.cuda.device(0):
            launcher.launch(probe(shared_bytes=64 << 10), 1, tensors, NUMBERS)
            assert torch.cuda.current_device() == 0
        assert tensors["lse"].item() == 5


@pytest.mark.parametrize("first", [1, 0])
def test_a_fresh_thread_launches_on_every_device(launcher: CuPyLauncher, first: int):
    """CuPy makes the context of a thread for one device: the others must still be right."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    names = [f"cuda:{number}" for number in (first, 1 - first, first)]
    tensors = [{"query": number(5, name), "lse": number(0, name)} for name in names]
    worker = threading.Thread(
        target=lambda: [launcher.launch(probe(), 1, one, NUMBERS) for one in tensors]
    )
    worker.start()
    worker.join()
    for number_of_device in (0, 1):
        torch.cuda.synchronize(number_of_device)
    assert [one["lse"].item() for one in tensors] == [5, 5, 5]


def test_a_launch_on_a_gpu_takes_few_lines_of_the_host(launcher: CuPyLauncher):
    """Its time is measured by `benchmarks/overhead.py`."""
    tensors, variant = {"query": number(0), "lse": number(0)}, probe()
    launcher.load(variant)
    assert lines(lambda: launcher.launch(variant, 1, tensors, NUMBERS)) <= 40
