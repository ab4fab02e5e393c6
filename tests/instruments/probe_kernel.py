"""A small kernel with headers of its own, for tests of compiler, cache and launcher."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbattn.errors import BackendError
from nbattn.kernels import nvrtc, toolkit
from nbattn.kernels.variant import Variant

FILES = {
    "params.h": """\
#pragma once
#include "base.cuh"
struct Params { unsigned long long pointer[23]; char numbers[376]; };
static_assert(sizeof(Params) == 560, "layout");
""",
    "base.cuh": """\
#pragma once
#ifdef NB_EMULATOR
#include "emulator.h"
#endif
#include <cuda_bf16.h>
#define SCALE 2
""",
    "probe.cu": """\
// A kernel that needs its headers.
#include "base.cuh"
#include "params.h"
extern "C" __global__ void __launch_bounds__(128) nb_probe(const __grid_constant__ Params p) {
  ((float*)p.pointer[7])[threadIdx.x] = SCALE * NB_HEAD_DIM;
}
""",
}


def write(folder: Path, **changes: str) -> Path:
    """The files, in a directory called `cuda`; changes: file name without its suffix → text."""
    folder = folder / "cuda"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(changes.get(name.partition(".")[0], text))
    return folder


def variant(head_dim: int = 64, shared_bytes: int = 0, threads: int = 128) -> Variant:
    constants = (("NB_HEAD_DIM", head_dim),)
    return Variant("probe.cu", "nb_probe", constants, threads, shared_bytes)


def absent() -> str | None:
    try:
        toolkit.headers()
    except BackendError as error:
        return error.problem
    return None


needs_nvrtc = pytest.mark.skipif(absent() is not None, reason=str(absent()))


def skip_where_unknown(target: str) -> None:
    """NVRTC of CUDA 12, which comes with torch 2.8, does not know the newest targets."""
    if (generation := int(target.rstrip("af"))) not in nvrtc._targets():
        pytest.skip(f"this NVRTC does not know sm_{generation}")
