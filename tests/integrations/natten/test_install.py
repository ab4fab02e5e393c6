"""Tests of nbattn installed as the module natten: names of each generation, switches, the order of
imports, and refusals.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_forks
from own_warnings import STRICT

from nbattn import InputError
from nbattn.integrations import natten
from nbattn.integrations.natten import fused, modules

ROOT = Path(__file__).parents[3]
GENERATIONS = ("0.21", "0.17", "0.14")


@pytest.fixture
def natten_uninstalled_after() -> Iterator[None]:
    yield
    natten.uninstall()
    assert not natten.is_installed()


def run(code: str, path: Path) -> str:
    """What an interpreter prints that has loaded torch, with another folder to import from."""
    start = f"import sys; sys.path[:0] = [{str(path)!r}, {str(ROOT)!r}]\n"
    done = torch_forks.run(["-c", STRICT + start + code], {**os.environ})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def other(folder: Path) -> Path:
    """A folder with another natten."""
    (folder / "natten").mkdir()
    (folder / "natten" / "__init__.py").write_text("na2d = 'real'\n")
    (folder / "natten" / "functional.py").write_text("na2d = 'real'\n")
    (folder / "natten" / "extra.py").write_text("")
    return folder


INSTALL = "from nbattn.integrations import natten as drop\n"
ORDERS = {
    "installed first": (
        INSTALL + "drop.install(replace=True)\nimport natten, natten.functional as f\n"
        "print(natten.na2d is f.na2d is drop.na2d)",
        "True",
    ),
    "the real one first": (
        "import natten.functional, natten.extra\n" + INSTALL + "drop.install(replace=True)\n"
        "from natten.functional import na2d\nprint(na2d is drop.na2d)",
        "True",
    ),
    "back to the real one": (
        "import natten, natten.functional as first\nnatten.mark = 1\n"
        + INSTALL
        + "drop.install(replace=True)\nimport natten.modules\ndrop.uninstall()\n"
        "import natten, natten.extra\nfrom natten.functional import na2d\n"
        "print(natten.mark, na2d, sys.modules['natten.functional'] is first,"
        " 'natten.modules' in sys.modules)",
        "1 real True False",
    ),
    "never loaded before": (
        INSTALL + "drop.install(replace=True)\nimport natten\ndrop.uninstall()\nimport natten\n"
        "print(natten.na2d)",
        "real",
    ),
    "names taken earlier stay": (
        "from natten import na2d\n" + INSTALL + "drop.install(replace=True)\nprint(na2d)",
        "real",
    ),
    "not without replace=True": (
        INSTALL + "try:\n    drop.install()\nexcept Exception as e:\n    print(e.problem)\n"
        "import natten\nprint(natten.na2d)",
        "natten is installed; two modules cannot have one name.\nreal",
    ),
    "twice, and another generation": (
        INSTALL + "drop.install(replace=True)\ndrop.install(generation='0.17')\nimport natten\n"
        "print(natten.__version__[:6]); drop.uninstall()\nimport natten\nprint(natten.na2d)",
        "0.17.5\nreal",
    ),
    "the module that is returned": (
        INSTALL + "found = drop.install(replace=True)\nimport natten\nprint(found is natten)",
        "True",
    ),
}


FORKS = """
import json, os, nbattn.nn  # loaded once: every order starts from here
for code in json.loads({codes!r}):
    sys.stdout.flush()
    if not os.fork():
        exec(code, {{"sys": sys}})
        print(end={end!r}, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, code
"""
END = "the end of an order"


@pytest.fixture(scope="module")
def output_by_order(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What every order prints, each in a process without natten and nbattn's integrations."""
    codes = json.dumps([code for code, _ in ORDERS.values()])
    output = run(FORKS.format(codes=codes, end=END), other(tmp_path_factory.mktemp("natten")))
    return dict(zip(ORDERS, map(str.strip, output.split(END)), strict=False))


@pytest.mark.parametrize("order", ORDERS)
def test_beside_a_real_natten(order: str, output_by_order: dict[str, str]) -> None:
    assert output_by_order[order] == ORDERS[order][1]


def test_transformers_detects_natten_while_it_is_installed(natten_uninstalled_after: None) -> None:
    seen = pytest.importorskip("transformers").utils.is_natten_available
    before = seen()
    natten.install(replace=True)
    assert seen()
    natten.uninstall()
    assert seen() == before


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_submodule_imports(generation: str, natten_uninstalled_after: None) -> None:
    natten.install(replace=True, generation=generation)
    names = ["functional", "flops", "utils", "utils.log", "utils.checks", "utils.testing"]
    names += {
        "0.21": ["context", "modules", "types", "_libnatten"],
        "0.17": [
            *("context", "types", "experimental"),
            *("na1d", "na2d", "na3d", "natten1d", "natten2d", "natten3d"),
        ],
        "0.14": ["natten1d", "natten2d", "natten3d"],
    }[generation]
    for name in names:
        module = importlib.import_module(f"natten.{name}")
        assert set(module.__all__) <= set(vars(module))
    assert len([name for name in sys.modules if name.startswith("natten.")]) == len(names)
    top = importlib.import_module("natten")
    prefix = {"0.21": "", "0.17": "Older", "0.14": "Oldest"}[generation]
    wanted = getattr(modules, f"{prefix}NeighborhoodAttention2D")
    assert top.NeighborhoodAttention2D is wanted
    assert top.functional.natten2dqkrpb is natten.natten2dqkrpb
    function = {"0.21": natten.na2d, "0.17": fused.older_na2d}.get(generation)
    assert getattr(top.functional, "na2d", None) is function
    # by these, code tells generations apart
    assert hasattr(top, "use_fused_na") == (generation != "0.14")
    assert hasattr(top.functional, "disable_tiled_na") == (generation == "0.14")
    with pytest.raises(InputError, match=r"dilation=.* has 3 values for 2 axes"):
        top.utils.check_all_args(2, 3, is_causal=False, dilation=(1, 2, 3), **STRIDE[generation])
    if generation != "0.14":
        types = importlib.import_module("natten.types")
        assert types.CausalArg2DTypeOrDed == bool | tuple[bool, bool]
        assert types.Dimension3DType == tuple[int, int, int]
    assert hasattr(top.functional, "NATTEN2DAVFunction") == (generation == "0.14")
    if generation == "0.17":
        assert sys.modules["natten.experimental"].na3d is fused.older_na3d
    if generation != "0.21":
        assert sys.modules["natten.natten2d"].NeighborhoodAttention2D is wanted
    assert isinstance(top.utils.log.get_logger("x"), logging.Logger)


STRIDE: dict[str, dict[str, Any]] = {"0.21": {"stride": None}, "0.17": {}, "0.14": {}}


def test_contexts_reset_their_switches(natten_uninstalled_after: None) -> None:
    top: Any = natten.install(replace=True, generation="0.17")
    top.use_fused_na()
    top.set_memory_usage_preference("strict")
    top.use_autotuner(True, True)
    top.context.NattenContext.reset()
    assert not top.is_fused_na_enabled()
    assert top.is_memory_usage_default()
    assert top.is_autotuner_enabled()
    top.context.AutotunerContext.reset()
    assert not top.is_autotuner_enabled()


def test_switches_of_0_17_are_seen_as_attributes(natten_uninstalled_after: None) -> None:
    top: Any = natten.install(replace=True, generation="0.17")
    assert not top.is_kv_parallelism_in_fused_na_enabled()
    top.use_fused_na()
    assert top.is_kv_parallelism_in_fused_na_enabled()
    assert top.context.NattenContext.is_fused_na_enabled
    top.use_fused_na(True, kv_parallel=False)
    assert not top.is_kv_parallelism_in_fused_na_enabled()
    top.use_fused_na(False, kv_parallel=True)
    assert not top.is_kv_parallelism_in_fused_na_enabled()
    top.use_autotuner(False, True, warmup_steps_forward=8, steps_backward=1)
    top.use_autotuner(warmup_steps_backward=3, steps_forward=2)
    tuned = top.context.AutotunerContext
    assert (tuned.warmup_steps_forward, tuned.warmup_steps_backward) == (8, 3)
    assert (tuned.steps_forward, tuned.steps_backward) == (2, 1)
    assert tuned.enabled_for_backward
    assert not top.is_autotuner_enabled_for_forward()
    with pytest.raises(TypeError, match="steps"):
        top.use_autotuner(steps=3)


def test_switches_are_remembered_and_change_nothing(natten_uninstalled_after: None) -> None:
    query = torch.randn(1, 9, 9, 2, 8, generator=torch.Generator().manual_seed(0))
    before = natten.na2d(query, query, query, 3)
    top: Any = natten.install(replace=True)
    assert not top.is_fused_na_enabled()
    top.use_fused_na(True, kv_parallel=True, use_flex_attention=False)
    assert top.is_fna_enabled()
    assert top.context.is_fna_enabled()
    top.use_fna(False)
    assert not top.is_fused_na_enabled()
    top.use_kv_parallelism_in_fused_na(False)
    assert not top.is_kv_parallelism_in_fused_na_enabled()
    assert top.is_memory_usage_default()
    top.set_memory_usage_preference("unrestricted")
    assert top.is_memory_usage_unrestricted()
    assert top.get_memory_usage_preference().name == "Unrestricted"
    top.use_autotuner()
    assert not top.is_autotuner_enabled()
    top.use_autotuner(forward_pass=True, backward_pass=False, thorough_mode_forward=True)
    assert top.is_autotuner_enabled()
    assert top.is_autotuner_thorough_for_forward()
    assert not top.is_autotuner_enabled_for_backward()
    top.disable_autotuner()
    assert not top.is_autotuner_enabled()
    top.use_flex_attention()
    assert top.should_use_flex_attention()
    assert not top.should_force_flex_attention()
    assert not top.disable_tf32()
    assert top.enable_gemm_na()
    assert top.is_gemm_na_enabled()
    top.allow_flex_compile()
    assert top.is_flex_compile_allowed()
    assert not top.disable_flex_compile()
    assert not top.is_flex_compile_allowed()
    assert top.has_fna()
    assert top.HAS_LIBNATTEN
    assert top.has_cuda() == torch.cuda.is_available()
    assert not top.has_gemm()
    top.use_deterministic_algorithms(False)
    assert top.are_deterministic_algorithms_enabled() is False
    assert torch.equal(top.na2d(query, query, query, 3), before)
    natten.install(replace=True)
    assert not importlib.import_module("natten").is_memory_usage_unrestricted()  # as at first


REFUSED = {
    "a kernel by force": (
        lambda top: top.use_fused_na(force_flex_attention=True),
        "force_flex_attention names a kernel, and nbattn replaces no named kernel.\n"
        '  fix:   natten.use_fused_na(), or nbattn.attention(..., backend="flex").',
    ),
    "determinism": (
        lambda top: top.use_deterministic_algorithms(),
        "NATTEN's own switch for determinism is about its kernels.\n"
        "  fix:   torch.use_deterministic_algorithms(True), which nbattn follows.",
    ),
    "a preference": (
        lambda top: top.set_memory_usage_preference("greedy"),
        "pref='greedy' is not known: 'default', 'strict', 'unrestricted'.\n"
        '  fix:   natten.set_memory_usage_preference("default").',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_message_of_every_unsupported_natten_feature(
    name: str, natten_uninstalled_after: None
) -> None:
    call, text = REFUSED[name]
    top = natten.install(replace=True)
    with pytest.raises(InputError) as error:
        call(top)
    assert str(error.value) == text


def test_code_written_for_natten_0_17_runs_unchanged(natten_uninstalled_after: None) -> None:
    """As public models write it: switches at import, a subclass with a forward of its own."""
    natten.install(replace=True, generation="0.17")
    code = """
import natten
import torch
from natten import NeighborhoodAttention2D, use_fused_na
from natten.context import is_fna_enabled
from natten.functional import na2d, na2d_av, na2d_qk
from natten.types import CausalArg2DTypeOrDed, Dimension2DTypeOrDed
from natten.utils import check_all_args, log

natten.use_fused_na()
natten.use_kv_parallelism_in_fused_na(True)
natten.set_memory_usage_preference("unrestricted")
logger = log.get_logger(__name__)


class Own(NeighborhoodAttention2D):
    def forward(self, x):
        B, H, W, C = x.shape
        kernel, dilation, causal = check_all_args(2, self.kernel_size, self.dilation, False)
        qkv = self.qkv(x).reshape(B, H, W, 3, self.num_heads, self.head_dim)
        if is_fna_enabled():
            q, k, v = qkv.permute(3, 0, 1, 2, 4, 5)
            x = na2d(q, k, v, kernel_size=kernel, dilation=dilation, is_causal=causal,
                     rpb=self.rpb, scale=self.scale)
        else:
            q, k, v = qkv.permute(3, 0, 4, 1, 2, 5)
            attn = na2d_qk(q * self.scale, k, kernel_size=kernel, dilation=dilation,
                           is_causal=causal, rpb=self.rpb)
            attn = self.attn_drop(attn.softmax(dim=-1))
            x = na2d_av(attn, v, kernel_size=kernel, dilation=dilation, is_causal=causal)
            x = x.permute(0, 2, 3, 1, 4)
        return self.proj_drop(self.proj(x.reshape(B, H, W, C)))


torch.manual_seed(0)
own = Own(dim=16, num_heads=2, kernel_size=3, dilation=2, rel_pos_bias=True)
theirs = NeighborhoodAttention2D(16, 2, 3, 2, rel_pos_bias=True)
theirs.load_state_dict(own.state_dict())
x = torch.randn(1, 8, 9, 16)
fused = own(x)
use_fused_na(False)
unfused, wanted = own(x), theirs(x)
"""
    found: dict[str, Any] = {"__name__": "model"}
    exec(code, found)
    for one in ("fused", "unfused"):
        torch.testing.assert_close(found[one], found["wanted"])
