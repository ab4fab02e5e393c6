"""Tests of the compiler: its options, its messages, and errors where it is missing or refuses."""

from __future__ import annotations

import re
from pathlib import Path

import probe_kernel
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probe_kernel import needs_nvrtc, skip_where_unknown

from nbattn.errors import BackendError
from nbattn.kernels import nvrtc, sources, toolkit
from nbattn.kernels.variant import Variant
from nbattn.packages import install_line

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
def test_reported_resources_are_those_of_the_kernel(probe: Path):
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
    with pytest.raises(BackendError, match="the compiler's log has no resource usage of nb_none"):
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
    assert caught.value.fix == f"{install_line('cuda13')} --upgrade"


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


def test_compiler_options():
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
def test_names_cannot_add_an_option(name: str):
    with pytest.raises(BackendError, match="is not a valid compiler option"):
        nvrtc.options(Variant("probe.cu", "nb_probe", ((name, 1),), 32, 0), "80")


@pytest.mark.parametrize("value", ["1", "1 -I/", 1.0, None, -1, "٣"])
def test_values_are_natural_numbers(value: object):
    with pytest.raises(BackendError, match="is not a valid compiler option"):
        nvrtc.options(Variant("probe.cu", "nb_probe", (("NB_A", value),), 32, 0), "80")  # pyright: ignore


@pytest.mark.parametrize("arch", ["90a -I/", "90a\n", "sm_90", "", "9", "90aa", "compute_90", "٩٠"])
def test_targets_cannot_add_an_option(arch: str):
    with pytest.raises(BackendError, match="is not a valid compiler option"):
        nvrtc.options(probe_kernel.variant(), arch)


@pytest.mark.parametrize("source", ["../probe.cu", "/etc/passwd", "probe.cuh", "probe.cu\n", ""])
def test_no_source_outside_the_directory(source: str):
    with pytest.raises(BackendError, match="are not a kernel's file and name"):
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
def test_compiler_options_contain_only_integers(name, value, arch, cases):
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


def test_error_of_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    broken = tmp_path / "libnvrtc.so.13"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(toolkit, "library", lambda: str(broken))
    with pytest.raises(BackendError, match=r"NVRTC does not load: .*libnvrtc\.so\.13"):
        nvrtc._library.__wrapped__()
