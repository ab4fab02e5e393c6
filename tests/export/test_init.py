"""Tests of graphs that leave torch: ONNX in onnxruntime, rewritten programs, traces, and tools that
read traces.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import sym_node

import nbattn
from nbattn import Axis, Mask, NeighborhoodAttention
from nbattn.export import decompositions, fvcore_handles, standard_form

BATCH = torch.export.Dim("batch", min=1, max=64)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, of its exporters
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


def onnx_results(file: bytes, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What onnxruntime computes."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    found = session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))
    return [torch.from_numpy(array) for array in found]


def to_onnx(module: Any, tensors: Sequence[Tensor], **options: Any) -> bytes:
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(module, tuple(tensors), dynamo=True, verbose=False, **options)
    assert program is not None
    assert {node.domain for node in program.model_proto.graph.node} == {""}  # standard operators
    return program.model_proto.SerializeToString()


@torch.no_grad()
def same(file: bytes, module: nn.Module, *calls: Sequence[Tensor], limit: float = 2e-6) -> None:
    for tensors in calls:
        wanted = module(*tensors)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for found, other in zip(onnx_results(file, tensors), wanted, strict=True):
            assert found.dtype == other.dtype
            torch.testing.assert_close(found, other, rtol=limit, atol=limit)


class Attend(nn.Module):
    """One attention with everything, as a model calls it."""

    def __init__(self, mask: Mask, **options: Any) -> None:
        super().__init__()
        self.mask, self.options = mask, options

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *optional: Tensor) -> Any:
        names = ("sink", "key_range", "extra_key", "extra_value")
        extras: Any = dict(zip(names, optional, strict=False))
        return nbattn.attention(
            query, key, value, self.mask, return_lse=True, **extras, **self.options
        )


def layer(mask: Mask, **options: Any) -> NeighborhoodAttention:
    torch.manual_seed(0)
    return NeighborhoodAttention(16, 2, mask, **options).eval()


def test_onnx_model_with_a_dynamic_batch() -> None:
    small, large = (
        Mask.neighborhood((3, 3), dilation=2),
        Mask(Axis(1, 1), Axis(1, 1, border="wrap")),
    )
    model = nn.Sequential(layer(large), nn.MaxPool2d((2, 1)), layer(small, kv_heads=1)).eval()
    x = torch.randn(2, 24, 24, 16)
    file = to_onnx(model, (x,), dynamic_shapes=({0: BATCH},))
    same(file, model, (x,), (torch.randn(1, 24, 24, 16),), (torch.randn(5, 24, 24, 16),))
    program = torch.export.export(model, (x,))  # elsewhere the operators stay
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("nbattn.forward.default") == 2


def test_onnx_graph_of_a_cross_attention_with_everything() -> None:
    torch.manual_seed(0)
    mask = Mask(Axis(2, 1, align="bottom-right"), Axis(1, 0, align="top-left", offset=2))
    key_range = torch.tensor([[[1, 4], [0, 3]], [[0, 5], [0, 4]]], dtype=torch.int32)
    tensors = (
        *(torch.randn(2, 4, 3, 4, 8), torch.randn(2, 5, 4, 2, 8), torch.randn(2, 5, 4, 2, 6)),
        *(torch.randn(4), key_range, torch.randn(2, 3, 2, 8), torch.randn(2, 3, 2, 6)),
    )
    module = Attend(mask, softcap=2.0, scale=-0.7)
    program = torch.export.export(module, tensors)  # exported before, as for other uses
    same(to_onnx(program, ()), module, tensors)
    rewritten = program.run_decompositions(decompositions())
    assert not any("nbattn" in str(node.target) for node in rewritten.graph.nodes)
    found = rewritten.module()(*tensors)
    torch.testing.assert_close(found, module(*tensors), rtol=2e-6, atol=2e-6)
    without = Mask(Axis(2, 1, align="top-left", offset=9), Axis(1, 0, align="top-left"))
    same(to_onnx(Attend(without), tensors[:3]), Attend(without), tensors[:3])  # rows without keys


class Added(nn.Module):
    """A table, slopes, and extra keys with a range."""

    def __init__(self, mask: Mask, size: int, backend: str = "auto") -> None:
        super().__init__()
        self.mask, self.backend = mask, backend
        self.table = nn.Parameter(torch.randn(2, size))
        self.register_buffer("slopes", torch.tensor([0.5, 0.25]))

    def forward(self, query: Tensor, extra: Tensor, extra_range: Tensor) -> Any:
        return nbattn.attention(
            query, query, query, self.mask, relative_bias=self.table, alibi_slopes=self.slopes,
            extra_key=extra, extra_value=extra, extra_range=extra_range, backend=self.backend,
            return_lse=True,
        )  # fmt: skip


def added_call(length: int) -> list[Tensor]:
    tensors = [torch.randn(2, length, 2, 8), torch.randn(2, 3, 2, 8)]
    return [*tensors, torch.tensor([[1, 3], [2, 2]], dtype=torch.int32)]


ADDED_MASK = Mask(Axis(3, 2, border="shift", dilation=2))


@pytest.mark.skipif(
    not hasattr(sym_node, "DynamicInt"), reason="torch 2.8 fixes the lengths of a dilated axis"
)
@pytest.mark.parametrize("backend", ["auto", pytest.param("reference", marks=pytest.mark.deep)])
def test_onnx_graph_of_what_is_added_to_scores(backend: str) -> None:
    module = Added(ADDED_MASK, 11, backend).eval()
    shapes = ({1: torch.export.Dim("length", min=12, max=64)}, None, None)
    file = to_onnx(module, added_call(14), dynamic_shapes=shapes)
    same(file, module, added_call(14), added_call(21))


@pytest.mark.deep
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_graphs_of_what_is_added_to_scores_of_one_length(backend: str) -> None:
    module = Added(ADDED_MASK, 11, backend).eval()
    same(to_onnx(module, added_call(14)), module, added_call(14))
    program = torch.export.export(module, tuple(added_call(14)))
    program = program.run_decompositions(decompositions())
    assert not any("nbattn" in str(node.target) for node in program.graph.nodes)


def test_onnx_graph_with_dynamic_lengths() -> None:
    queries, keys = (torch.export.Dim(name, min=2, max=99) for name in ("queries", "keys"))
    module = layer(Mask(Axis(2, 1, dilation=2, align="bottom-right")))
    file = to_onnx(
        module,
        (torch.randn(2, 7, 16), torch.randn(2, 9, 16)),
        dynamic_shapes=({0: BATCH, 1: queries}, {0: BATCH, 1: keys}),
    )
    sizes = ((1, 3), (1, 19)), ((3, 34), (3, 7))
    same(file, module, *([torch.randn(*size, 16) for size in pair] for pair in sizes))


@pytest.mark.deep
def test_onnx_graph_with_dynamic_planes() -> None:
    height, width = (torch.export.Dim(name, min=2, max=99) for name in ("height", "width"))
    module = layer(Mask(Axis(2, 1, border="shift", dilation=2), Axis(2, causal=True)))
    shapes = ({0: BATCH, 1: height, 2: width},)
    file = to_onnx(module, (torch.randn(2, 7, 6, 16),), dynamic_shapes=shapes)
    same(file, module, (torch.randn(1, 3, 9, 16),), (torch.randn(3, 34, 5, 16),))


@pytest.mark.deep
def test_onnx_graph_of_the_reference_and_of_half_precision() -> None:
    length = torch.export.Dim("length", min=2, max=99)
    module = layer(Mask.neighborhood(3), backend="reference").half()
    x = torch.randn(2, 12, 16).half()
    file = to_onnx(module, (x,), dynamic_shapes=({0: BATCH, 1: length},))
    same(file, module, (x,), (torch.randn(1, 5, 16).half(),), limit=2e-3)


def test_what_onnx_cannot_check_is_refused_in_words() -> None:
    pytest.importorskip("onnxscript")
    n, m = (torch.export.Dim(name, min=2, max=99) for name in "nm")
    tensors, shapes = list(torch.randn(2, 2, 6, 16)), ({1: n}, {1: m})
    with pytest.raises(Exception, match="align=None needs as many queries as keys") as raised:
        to_onnx(layer(Mask(Axis(3, 1))), tensors, dynamic_shapes=shapes)
    assert "fix:   one torch.export.Dim" in str(raised.value)


@pytest.mark.deep
@pytest.mark.parametrize("dense_pairs", [0, 1 << 18])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_onnx_of_traces_and_in_inference_mode(
    backend: str, dense_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standard_form, "DENSE_PAIRS", dense_pairs)
    module = nn.Sequential(layer(Mask.neighborhood((3, 3)), backend=backend))
    x = torch.randn(2, 20, 20, 16)
    with torch.inference_mode():
        file = to_onnx(module, (x,), dynamic_shapes=({0: BATCH},))
    same(file, module, (x,), (torch.randn(5, 20, 20, 16),))
    traced: Any = io.BytesIO()
    names: Any = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(module, (x,), traced, dynamo=False, **names)
    same(traced.getvalue(), module, (x,), (torch.randn(5, 20, 20, 16),))


@pytest.mark.deep
@pytest.mark.parametrize("dense_pairs", [0, 1 << 18])
def test_onnx_of_every_kind_of_mask(dense_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard_form, "DENSE_PAIRS", dense_pairs)
    length = torch.export.Dim("length", min=2, max=64)
    for axis in (
        *(Axis(2, 1, border="wrap"), Axis(3, 1, stride=2, dilation=3), Axis(causal=True)),
        *(Axis(2, causal=True, prefix=3), Axis(1, 1, border="shift", stride=2), Axis(0, 4)),
    ):
        module = layer(Mask(axis))
        x = torch.randn(2, 12, 16)  # 4 * length
        file = to_onnx(module, (x,), dynamic_shapes=({0: BATCH, 1: 4 * length},))
        same(file, module, (torch.randn(1, 8, 16),), (torch.randn(3, 40, 16),))
        file = to_onnx(module, (torch.randn(2, 13, 16),), dynamic_shapes=({0: BATCH},))
        same(file, module, (torch.randn(3, 13, 16),))


def test_traces_are_saved_loaded_and_frozen() -> None:
    x = torch.randn(2, 6, 6, 16)
    for backend in ("auto", "reference"):
        module, file = layer(Mask.neighborhood((3, 3)), backend=backend), io.BytesIO()
        torch.jit.save(torch.jit.trace(module, x), file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for traced in (loaded, torch.jit.freeze(loaded.eval())):
            torch.testing.assert_close(traced(x[:1]), module(x[:1]), rtol=2e-6, atol=2e-6)


def test_fvcore_and_tensorboard_read_a_layer(tmp_path: Path) -> None:
    module, x = layer(Mask.neighborhood((3, 3)), kv_heads=1), torch.randn(2, 6, 6, 16)
    counter = pytest.importorskip("fvcore.nn").FlopCountAnalysis(module, x)
    counter.set_op_handle(**fvcore_handles()).unsupported_ops_warnings(False)
    pairs = int(module.mask.dense((6, 6)).sum())
    assert counter.by_operator()["forward"] == 2 * 2 * pairs * (8 + 8)
    assert "nbattn::forward" not in counter.unsupported_ops()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        board = pytest.importorskip("torch.utils.tensorboard")
    with board.SummaryWriter(tmp_path) as writer:
        writer.add_graph(module, x)
    assert b"nbattn::forward" in b"".join(file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.deep
def test_aotinductor_compiles_and_loads_a_layer(tmp_path: Path) -> None:
    module, x = layer(Mask.neighborhood((3, 3))), torch.randn(2, 6, 6, 16)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: BATCH},))
    path = str(tmp_path / "layer.pt2")
    inductor: Any = importlib.import_module("torch._inductor")
    inductor.aoti_compile_and_package(program, package_path=path)
    loaded = inductor.aoti_load_package(path)
    for run in (torch.no_grad, torch.inference_mode):
        with run():
            for batch in (x, x[:1]):
                torch.testing.assert_close(loaded(batch), module(batch), rtol=2e-6, atol=2e-6)
