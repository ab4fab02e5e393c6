"""Tests of launches through CuPy: what reaches a recording driver, and the messages of refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stub_driver
from own_warnings import STRICT, script
from stub_driver import NUMBERS

from nbattn.errors import BackendError
from nbattn.kernels import launch, layout, nvrtc, toolkit

ROOT = Path(__file__).resolve().parents[2]
FIX = (
    'pip install "cupy-cuda13x>=14.2,<15" "nvidia-cuda-nvrtc>=13.0,<14" '
    '"nvidia-cuda-runtime>=13.0,<14"  # with a driver of CUDA 12: pip install '
    '"cupy-cuda12x>=14.2,<15" "nvidia-cuda-nvrtc-cu12>=12.6,<13" '
    '"nvidia-cuda-runtime-cu12>=12.6,<13"'
)


@pytest.fixture(scope="module")
def recorded_by_scenario(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the stub recorded, by scenario."""
    folder = tmp_path_factory.mktemp("driver")
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("no CuPy")
    try:
        library = stub_driver.build(folder)
    except FileNotFoundError:
        pytest.skip("no gcc")
    done = subprocess.run(
        [sys.executable, *script(ROOT / "tests" / "instruments" / "stub_driver.py"), library],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUPY_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def argument(**pointers: int) -> str:
    """The bytes of `Params`, packed here field by field."""
    content = b"".join(struct.pack("<Q", pointers.get(name, 0)) for name in layout.POINTERS)
    assert len(content + NUMBERS) == layout.SIZE == 560
    return (content + NUMBERS).hex()


def test_all_launch_arguments_reach_the_kernel(recorded_by_scenario):
    record = recorded_by_scenario["first"]
    assert record["grid"] == [2**31 - 1, 1, 1]
    assert record["block"] == [128, 1, 1]
    assert (record["shared_bytes"], record["shared_limit"]) == (70_000, 70_000)
    assert record["stream"] == 0xABC000
    assert (record["entry"], record["image"]) == ("nb_fwd_simt", "nb_fwd_simt 90a")
    every = {name: 0x1000 + number for number, name in enumerate(layout.POINTERS)}
    assert record["parameter"] == argument(**every)
    assert record["address"] % 64 == 0


def test_absent_tensors_are_null_and_the_module_is_loaded_once(recorded_by_scenario):
    first, record = recorded_by_scenario["first"], recorded_by_scenario["again"]
    assert record["parameter"] == argument(query=2**63 + 16, out=48)
    assert record["grid"] == [7, 1, 1]
    assert (record["loads"], record["launches"]) == (1, 2)
    assert record["calls"] == first["calls"] + 1  # the launch
    assert (record["address"], record["function"]) == (first["address"], first["function"])


def test_without_blocks_nothing_is_launched(recorded_by_scenario):
    assert recorded_by_scenario["no blocks"] == recorded_by_scenario["again"]


def test_another_kernel_is_another_module(recorded_by_scenario):
    record = recorded_by_scenario["another kernel"]
    assert (record["entry"], record["image"]) == ("nb_delta", "nb_delta 90a")
    assert (record["block"], record["shared_bytes"]) == ([96, 1, 1], 0)
    assert (record["loads"], record["function"]) == (2, 2)


def test_another_device_has_a_guard_a_module_and_a_stream_of_its_own(recorded_by_scenario):
    record = recorded_by_scenario["another device"]
    assert (record["guards"], record["current"]) == ([1], 0)
    assert (record["stream"], record["image"]) == (0xABC001, "nb_fwd_simt 86")
    assert (record["loads"], record["function"]) == (3, 3)
    assert record["parameter"] == argument(key=64)
    assert recorded_by_scenario["another device again"]["loads"] == 3
    assert recorded_by_scenario["captured warm"]["function"] == 1  # device 0 kept its own


def test_a_loaded_kernel_is_captured(recorded_by_scenario):
    record = recorded_by_scenario["captured warm"]
    assert record["grid"] == [9, 1, 1]
    assert record["calls"] == recorded_by_scenario["another device again"]["calls"] + 1


def test_uncompiled_kernel_in_graph_capture_raises_before_any_launch(recorded_by_scenario):
    record = recorded_by_scenario["captured cold"]
    assert record["calls"] == 0
    assert record["words"] == (
        "nb_fwd_simt is launched for the first time while a CUDA graph is captured, which allows "
        "no loading; the capture goes on.\n"
        "  fix:   plan.warmup() before the capture, or one call of the same shapes"
    )
    assert (
        recorded_by_scenario["cold after the capture"]["launches"]
        == recorded_by_scenario["captured warm"]["launches"] + 1
    )


def test_a_kernel_loaded_early_is_loaded_once_and_may_be_captured(recorded_by_scenario):
    before = recorded_by_scenario["cold after the capture"]["launches"]
    assert recorded_by_scenario["loaded early"] == {"loads": 0, "launches": before}
    assert recorded_by_scenario["launched then"] == {"loads": 0, "launches": before + 1}


def test_error_of_a_kernel_that_the_driver_refuses(recorded_by_scenario):
    words = recorded_by_scenario["refused"]
    assert words.startswith("the driver cannot load nb_fwd_simt for sm_90a: ")
    assert "stub says no" in words
    assert "or a driver as new as CUDA 13.0" in words
    assert "Stub" in words
    after = recorded_by_scenario["refused, then taken"]
    assert after["launches"] == recorded_by_scenario["launched then"]["launches"] + 1


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("unknown tensor", "KeyError"),
        ("short numbers", "ValueError"),
        ("long numbers", "ValueError"),
    ],
)
def test_arguments_that_do_not_fit_are_not_launched(name: str, error: str, recorded_by_scenario):
    assert recorded_by_scenario[name] == {"error": error, "launches": 0}


def test_every_thread_has_its_own_argument_buffer(recorded_by_scenario, cases):
    addresses = [address for (address,) in recorded_by_scenario["threads"].values()]
    assert len(set(addresses)) == len(addresses) == 16
    assert all(address % 64 == 0 for address in addresses)
    assert all(abs(a - b) >= layout.SIZE for a in addresses for b in addresses if a != b)
    cases("launches on a stub driver", recorded_by_scenario["first"]["launches"] + 16 * 50)


def test_a_launch_takes_few_lines_of_the_host(recorded_by_scenario):
    """The module is loaded: three lines for each tensor, one of the stub's, and few more."""
    assert recorded_by_scenario["lines"] <= 3 * len(layout.POINTERS) + 30


# Kernels that read boxes by tensor maps


def encoded(address: int, channels: int, kind: int) -> bytes:
    """What the stub makes of a map of `stub_driver.with_maps`: its arguments, packed here."""
    sizes, strides = (192, 7, 300, 5, 2**31 - 1), (384, 2**39, 16, 2**40 - 16)
    swizzle = {32: 2, 64: 3}[channels]
    content = struct.pack("<Q5Q4Q6B", address, *sizes, *strides, kind, 5, 0, swizzle, 3, 0)
    content += struct.pack("<5H5B", channels, 8, 256, 2, 1, 1, 1, 8, 2, 1)
    return content.ljust(128, b"\xee")


def mapped_argument(*maps: bytes, **pointers: int) -> str:
    """The bytes of `MappedParams`: `Params`, boxes, padding, 24 maps."""
    content = bytes.fromhex(argument(**pointers)) + bytes(range(144)) + bytes(256)
    assert len(content) == layout.FIRST_MAP == 960
    content += b"".join(maps) + bytes(128) * (24 - len(maps))
    assert len(content) == layout.MAPPED_SIZE == 4032
    return content.hex()


QUERY, KEY = encoded(1 << 40, 64, 6), encoded((1 << 41) + (1 << 33), 32, 9)


def test_maps_are_encoded_by_the_driver_and_reach_the_kernel(recorded_by_scenario):
    record = recorded_by_scenario["maps"]
    pointers = {"query": 1 << 40, "key": 1 << 41, "out": 48}
    assert record["parameter"] == mapped_argument(QUERY, KEY, KEY, **pointers)
    assert record["address"] % 64 == 0
    assert record["address"] != record["plain"]
    assert (record["grid"], record["block"]) == ([11, 1, 1], [384, 1, 1])
    assert record["encodes"] == 2


def test_a_map_is_encoded_once_for_an_address(recorded_by_scenario):
    first, record = recorded_by_scenario["maps"], recorded_by_scenario["maps again"]
    assert record["parameter"] == first["parameter"]
    assert record["encodes"] == first["encodes"]
    assert record["calls"] == first["calls"] + 1  # the launch: it can be captured


def test_maps_of_another_address_are_others_and_absent_ones_are_zeros(recorded_by_scenario):
    record = recorded_by_scenario["another address"]
    pointers = {"query": 1 << 40, "key": 3 << 41, "out": 48}
    key = encoded((3 << 41) + (1 << 33), 32, 6)
    assert record["parameter"] == mapped_argument(QUERY, key, **pointers)
    assert record["encodes"] == 3


def test_a_tensor_without_elements_has_no_map(recorded_by_scenario):
    record = recorded_by_scenario["no elements"]
    assert record["parameter"] == mapped_argument(query=1 << 40, out=48)
    assert record["encodes"] == 3


def test_a_launch_without_maps_after_one_with_maps(recorded_by_scenario):
    record = recorded_by_scenario["no maps after maps"]
    assert record["parameter"] == argument(query=1 << 40, key=1 << 41, out=48)
    assert record["address"] == recorded_by_scenario["maps"]["plain"]


def test_maps_on_another_device(recorded_by_scenario):
    record = recorded_by_scenario["maps on another device"]
    assert record["parameter"] == mapped_argument(QUERY, query=1 << 40)
    assert record["stream"] == 0xABC001


def test_error_of_a_map_that_the_driver_refuses(recorded_by_scenario):
    record = recorded_by_scenario["maps refused"]
    assert record["words"] == (
        "cuTensorMapEncodeTiled refuses, with error 1, TensorMap(tensor='key', offset=8589934592, "
        "sizes=(192, 7, 300, 5, 2147483647), strides=(384, 549755813888, 16, 1099511627760), "
        "box=(32, 8, 256, 2, 1), steps=(1, 1, 8, 2, 1), swizzle=64) of float16 at 0xa0000000000\n"
        '  fix:   forbid=("wgmma",)'
    )
    assert record["launches"] == recorded_by_scenario["maps on another device"]["launches"]


def test_a_launch_with_known_maps_takes_few_lines_more(recorded_by_scenario):
    assert recorded_by_scenario["map lines"] <= 3 * 3 + 4 * 3 + 35


# What is missing


@pytest.fixture(autouse=True)
def clear_launcher_caches():
    yield
    launch.missing.cache_clear()
    launch.launcher.cache_clear()


def test_nothing_is_missing_with_cupy_nvrtc_and_headers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(toolkit, "headers", lambda: "include")
    launch.missing.cache_clear()
    assert launch.missing() is None


def test_missing_names_cupy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    launch.missing.cache_clear()
    assert launch.missing() == f"CuPy is not installed: {FIX}"


def test_missing_names_nvrtc(monkeypatch: pytest.MonkeyPatch):
    def none() -> str:
        raise BackendError("NVRTC is not installed.", fix=FIX)

    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(nvrtc, "version", none)
    launch.missing.cache_clear()
    assert launch.missing() == " ".join(f"NVRTC is not installed. {FIX}".split())


def test_missing_loads_no_cupy(tmp_path: Path):
    code = (
        "import sys; from nbattn.kernels import launch; launch.missing()\n"
        "print([m for m in ('cupy', 'torch', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", STRICT + code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_error_of_a_broken_cupy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda.function", None)
    with pytest.raises(BackendError) as caught:
        launch.launcher()
    assert str(caught.value).startswith("CuPy does not load: ")
    assert FIX in str(caught.value)
