"""The compiler: what reaches it, what it says, and the words where it is missing or refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import probe_kernel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_kernel import needs_nvrtc, skip_where_unknown

from nbattn.errors import BackendError
from nbattn.kernels import nvrtc, sources, toolkit
from nbattn.kernels.variant import Variant

ARCHS = ("75", "80", "86", "89", "90a", "100a", "103a", "120")


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = probe_kernel.write(tmp_path)
    monkeypatch.setattr(sources, "directory", lambda: folder)
    return folder


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHS)
def test_a_kernel_compiles_for_every_target(arch: str, probe: Path):
    skip_where_unknown(arch)
    compiled = nvrtc.compile(probe_kernel.variant(), arch)
    assert compiled.cubin[:4] == b"\x7fELF"
    assert b"nb_probe" in compiled.cubin
    facts = compiled.usage
    assert (facts.stack, facts.spill_stores, facts.spill_loads) == (0, 0, 0)
    assert (facts.shared, facts.barriers) == (0, 0)
    assert 0 < facts.registers <= 16
    assert facts.seconds > 0
    assert f"sm_{arch}" in compiled.log


@needs_nvrtc
def test_facts_are_those_of_the_kernel(probe: Path):
    """Local memory, static shared memory, barriers and spills are seen, also beside a function."""
    (probe / "probe.cu").write_text("""
__device__ __noinline__ float pick(float x, int n) {
  float a[64];
  for (int i = 0; i < n; ++i) a[i & 63] = x * i;
  return a[(int)x & 63];
}
extern "C" __global__ void nb_other(float* x) { x[0] = pick(x[1], 9); }
extern "C" __global__ void __launch_bounds__(1024, 2) nb_probe(float* x) {
  __shared__ float s[NB_HEAD_DIM];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  float a[80];
  for (int i = 0; i < 80; ++i) a[i] = s[(threadIdx.x * i) & 63];
  __syncthreads();
  for (int i = 0; i < 80; ++i) x[i] = a[i] * a[79 - i] + x[i];
}
""")
    facts = nvrtc.compile(probe_kernel.variant(64), "90a").usage
    assert facts.shared == 256
    assert facts.barriers == 1
    assert facts.registers <= 32  # 65,536 of a multiprocessor over 2,048 threads
    assert facts.stack > 0
    assert facts.spill_stores > 0
    assert facts.spill_loads > 0
    other = nvrtc.compile(Variant("probe.cu", "nb_other", (("NB_HEAD_DIM", 64),), 32, 0), "90a")
    assert (other.usage.stack >= 256, other.usage.spill_stores, other.usage.shared) == (True, 0, 0)


@needs_nvrtc
def test_an_error_names_file_line_and_options(probe: Path):
    (probe / "params.h").write_text("#pragma once\nstruct Params { nothing a; };\n")
    with pytest.raises(BackendError) as caught:
        nvrtc.compile(probe_kernel.variant(48), "86")
    first, second, *_ = str(caught.value).splitlines()
    assert first == (
        "probe.cu does not compile for sm_86 with -DNB_HEAD_DIM=48 -DNB_SHARED_BYTES=0:"
    )
    assert second == 'cuda/params.h(2): error: identifier "nothing" is undefined'
    assert f"given: NVRTC {nvrtc.identity()}, " in str(caught.value)


@needs_nvrtc
def test_a_false_assertion_is_an_error(probe: Path):
    (probe / "probe.cu").write_text('static_assert(NB_HEAD_DIM == 1, "only 1");')
    with pytest.raises(BackendError, match=r"cuda/probe.cu\(1\): error: static assertion failed"):
        nvrtc.compile(probe_kernel.variant(), "80")


@needs_nvrtc
def test_a_kernel_that_is_not_there_is_an_error(probe: Path):
    with pytest.raises(BackendError, match="the compiler says nothing of nb_none"):
        nvrtc.compile(Variant("probe.cu", "nb_none", (("NB_HEAD_DIM", 64),), 32, 0), "80")


@needs_nvrtc
def test_nothing_is_read_from_the_working_directory(
    probe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Nor from the directory of the sources: whatever is read is part of the hash."""
    (probe / "probe.cu").write_text('#include "../planted.h"\n' + probe_kernel.FILES["probe.cu"])
    (tmp_path / "planted.h").write_text("")
    monkeypatch.chdir(probe)
    with pytest.raises(BackendError, match=r'cannot open source file "../planted.h"'):
        nvrtc.compile(probe_kernel.variant(), "80")


@needs_nvrtc
def test_unknown_targets_list_the_known_ones(probe: Path):
    with pytest.raises(BackendError) as caught:
        nvrtc.compile(probe_kernel.variant(), "30")  # none since CUDA 11
    assert re.match(r"NVRTC \d+\.\d+ compiles for .*sm_80.*, not for sm_30\n", str(caught.value))
    assert "pip install --upgrade nvidia-cuda-nvrtc nvidia-cuda-runtime" in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((7, 5), "75"),
        ((8, 0), "80"),
        ((8, 6), "86"),
        ((8, 9), "89"),
        ((9, 0), "90a"),
        ((10, 0), "100a"),
        ((10, 3), "103a"),
        ((12, 0), "120"),
        ((12, 1), "121"),
    ],
)
def test_targets_of_devices(capability: tuple[int, int], arch: str):
    assert nvrtc.arch_of(capability) == arch


def test_flags_are_these():
    assert nvrtc.options(probe_kernel.variant(64, 1024), "90a") == (
        "-arch=sm_90a",
        "-std=c++17",
        "-default-device",
        "-ftz=true",
        "--ptxas-options=-v",
        "--no-source-include",
        "-DNB_HEAD_DIM=64",
        "-DNB_SHARED_BYTES=1024",
    )


PLANTED = [
    "NB_A=1 -I/",
    "NB_A\n",
    "-include",
    "nb_a",
    "NB_Ä",
    "",
    "NB_A(x)",
    "NB_A=__import__",
]


@pytest.mark.parametrize("name", PLANTED)
def test_no_name_brings_another_option(name: str):
    with pytest.raises(BackendError, match="is no option for the compiler"):
        nvrtc.options(Variant("probe.cu", "nb_probe", ((name, 1),), 32, 0), "80")


@pytest.mark.parametrize("value", ["1", "1 -I/", 1.0, None, -1, "٣"])
def test_no_value_but_a_natural_number(value: object):
    with pytest.raises(BackendError, match="is no option for the compiler"):
        nvrtc.options(Variant("probe.cu", "nb_probe", (("NB_A", value),), 32, 0), "80")  # pyright: ignore


@pytest.mark.parametrize("arch", ["90a -I/", "90a\n", "sm_90", "", "9", "90aa", "compute_90", "٩٠"])
def test_no_target_brings_another_option(arch: str):
    with pytest.raises(BackendError, match="is no option for the compiler"):
        nvrtc.options(probe_kernel.variant(), arch)


@pytest.mark.parametrize("source", ["../probe.cu", "/etc/passwd", "probe.cuh", "probe.cu\n", ""])
def test_no_source_outside_the_directory(source: str):
    with pytest.raises(BackendError, match="name no kernel"):
        nvrtc.compile(Variant(source, "nb_probe", (), 32, 0), "80")


anything = st.one_of(
    st.text(),
    st.from_regex(r"[A-Z_0-9]+\n?", fullmatch=True),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
)


@given(name=anything, value=anything, arch=st.text() | st.sampled_from(ARCHS))
def test_whatever_is_told_only_integers_arrive(name, value, arch, cases):
    """Read by another rule: split at the equals sign, letters by their code points."""
    cases("kernel options", 1)
    variant = Variant("probe.cu", "nb_probe", ((name, value),), 32, 0)
    try:
        flags = nvrtc.options(variant, arch)
    except BackendError:
        return
    assert flags[0][:8] == "-arch=sm"
    assert set(flags[0][9:]) <= set("0123456789af")
    for flag in flags[1 + len(nvrtc._FLAGS) :]:
        macro, number = flag.split("=")
        assert macro[:2] == "-D"
        assert set(macro[2:]) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789")
        assert set(number) <= set("0123456789")


def test_where_nvrtc_is_missing(monkeypatch: pytest.MonkeyPatch):
    hide(monkeypatch)
    with pytest.raises(BackendError) as caught:
        toolkit.library.__wrapped__()
    assert str(caught.value) == (
        "NVRTC, the run-time compiler of CUDA, is not installed: no libnvrtc.so.13 in the wheels "
        "of NVIDIA, CUDA_HOME or the system's libraries.\n"
        '  fix:   pip install "nbattn[cuda13]"  # with a driver of CUDA 12: "nbattn[cuda12]"'
    )


def test_where_headers_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hide(monkeypatch)
    monkeypatch.setattr(toolkit, "library", lambda: str(tmp_path / "lib" / "libnvrtc.so.13"))
    with pytest.raises(BackendError) as caught:
        toolkit.headers.__wrapped__()
    assert str(caught.value) == (
        f"CUDA's headers are not installed: no cuda_fp16.h for {tmp_path}/lib/libnvrtc.so.13.\n"
        '  fix:   pip install "nbattn[cuda13]"  # with a driver of CUDA 12: "nbattn[cuda12]"'
    )


def hide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of CUDA is anywhere."""
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(toolkit, "_SYSTEM", "/nowhere")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(toolkit.ctypes.util, "find_library", lambda name: None)


@pytest.mark.parametrize(
    ("library", "headers"),
    [
        ("cu13/lib/libnvrtc.so.13", "cu13/include"),
        ("cuda_nvrtc/lib/libnvrtc.so.12", "cuda_runtime/include"),
    ],
)
def test_wheels_are_found_without_cupy(
    library: str, headers: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    hide(monkeypatch)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    place(tmp_path / "nvidia", library, headers)
    assert toolkit.library.__wrapped__() == str(tmp_path / "nvidia" / library)
    monkeypatch.setattr(toolkit, "library", lambda: str(tmp_path / "nvidia" / library))
    assert toolkit.headers.__wrapped__() == str(tmp_path / "nvidia" / headers)


@needs_nvrtc
def test_without_cupy_the_wheel_compiles(probe: Path):
    """The library does not find its second half by itself."""
    code = (
        "import sys; sys.modules['cuda.pathfinder'] = None\n"
        f"sys.path.insert(0, {str(Path(probe_kernel.__file__).parent)!r})\n"
        "import pathlib, probe_kernel\n"
        "from nbattn.kernels import nvrtc, sources\n"
        f"sources.directory = lambda: pathlib.Path({str(probe)!r})\n"
        "print(nvrtc.compile(probe_kernel.variant(), '80').usage.registers)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "_SYSTEM"])
def test_a_toolkit_is_found(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hide(monkeypatch)
    place(tmp_path, "lib64/libnvrtc.so", "include")
    if variable == "_SYSTEM":
        monkeypatch.setattr(toolkit, "_SYSTEM", str(tmp_path))
    else:
        monkeypatch.setenv(variable, str(tmp_path))
    assert toolkit.library.__wrapped__() == str(tmp_path / "lib64/libnvrtc.so")
    monkeypatch.setattr(toolkit, "library", lambda: "libnvrtc.so.13")
    assert toolkit.headers.__wrapped__() == str(tmp_path / "include")


def place(root: Path, library: str, headers: str) -> None:
    (root / library).parent.mkdir(parents=True)
    (root / library).touch()
    (root / headers).mkdir(parents=True)
    for name in toolkit.HEADERS:
        (root / headers / name).touch()


def test_a_library_that_does_not_load_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(toolkit, "library", lambda: str(broken))
    with pytest.raises(BackendError, match=r"NVRTC does not load: .*libnvrtc\.so\.13"):
        nvrtc._library.__wrapped__()
