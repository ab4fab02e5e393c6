"""Dry runs of `tests/gpu` without a GPU: no test there fails for a reason that can be seen here.

The stand-in (`instruments/gpu_stand_in.py`) runs the tests as they are, with the emulator in the
driver's place. `make deep` runs all of them, which takes half an hour.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
import torch_forks
from emulator import build

from nbattn.kernels import launch

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
    pytest.mark.skipif(build.missing() is not None, reason=str(build.missing())),
    pytest.mark.skipif(launch.missing() is not None, reason=str(launch.missing())),
]
ROOT = Path(__file__).resolve().parents[2]
GPU = "tests/gpu"
CHILDREN = f"""
import runpy
import pytest
import small_attention

known = runpy.run_path({str(ROOT / GPU / "test_kernels.py")!r})


@pytest.mark.parametrize("name", ["FIRST_BACKWARD", "DETERMINISTIC"])
def test_scripts(name, capsys):
    exec(known[name], {{}})
    assert set(capsys.readouterr().out.split()) == {{"True"}}


def test_no_mixture_of_places():
    import torch
    there, here = torch.ones(2, device="cuda"), torch.ones(2)
    assert there.device.type == there.cpu().to("cuda").device.type == "cuda"
    assert there.cpu().device.type == (there.detach() + 1).cpu().device.type == "cpu"
    for mixed in (lambda: there + here, lambda: torch.where(here > 0, there, there)):
        with pytest.raises(RuntimeError, match="tensors on cuda:0 and cpu"):
            mixed()
"""


def dry(*words: str) -> tuple[str, dict[str, int]]:
    """The output of tests on the stand-in, and how many passed, failed …"""
    folders = (ROOT, ROOT / "tests", ROOT / "tests" / "instruments")
    run = "import pytest, sys; raise SystemExit(pytest.main(sys.argv[1:]))"
    options = ["-q", "-p", "gpu_stand_in", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = torch_forks.run(["-c", run, *options, *words], env, ROOT)
    last = done.stdout.strip().splitlines()[-1]
    return done.stdout + done.stderr, {w: int(n) for n, w in re.findall(r"(\d+) (\w+)", last)}


KERNELS = [
    f"{GPU}/test_kernels.py::{name}"
    for name in (
        "test_cuda_values_and_gradients[1-D decode-bfloat16 mma]",
        "test_error_of_a_kernel_not_loaded_before_a_capture",
    )
] + [
    f"{GPU}/test_warpgroups.py::test_a_second_launch_encodes_no_map_and_reads_the_new_numbers",
    f"{GPU}/test_added_scores.py::test_packed_grids[torch.float32-cuda]",
    f"{GPU}/test_triton.py::test_triton_values_and_gradients[1-D decode-torch.bfloat16]",
]


def test_the_gpu_suite_on_the_stand_in(tmp_path: Path) -> None:
    """Launches and PTX, some of the kernels' tests, and the scripts of child processes."""
    scripts = tmp_path / "test_children.py"
    scripts.write_text(CHILDREN)
    words = (f"{GPU}/test_launches.py", f"{GPU}/test_ptx.py", *KERNELS, str(scripts))
    output, counts = dry(*words, f"--rootdir={ROOT}")
    assert counts.get("failed", 0) == counts.get("error", 0) == 0, output[-3000:]
    assert counts.get("passed", 0) >= 49, output[-3000:]


@pytest.mark.deep
def test_the_whole_gpu_suite_on_the_stand_in() -> None:
    # Triton's interpreter takes hours for all of its tests.
    output, counts = dry(GPU, "-k", "not test_triton.py or decode or sinks")
    assert counts.get("failed", 0) == counts.get("error", 0) == 0, output[-3000:]
    assert counts["passed"] > 250
