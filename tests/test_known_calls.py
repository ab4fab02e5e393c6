"""Tests that known calls run as unknown ones do: the same values and errors, whatever argument has
changed since.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from work import frames, lines

import nbattn
from nbattn import Axis, Mask, execute, known_calls
from nbattn.planner import planner

MASK = Mask.sliding_window(3)
FLAT = torch.randn(2, 12, 4, 8)
NARROW = torch.randn(2, 12, 2, 8)
PACKAGE = str(Path(nbattn.__file__).parent)
OPTIONS = (MASK, None, "auto", (), (), False)  # of a call with defaults


def base() -> dict[str, Any]:
    """The arguments of a call that fits."""
    return {"query": FLAT, "key": FLAT, "value": FLAT, "mask": MASK}


def given(**changes: Any) -> dict[str, Any]:
    return base() | changes


def with_extras(**changes: Any) -> dict[str, Any]:
    extra_key, extra_value = torch.randn(2, 2, 3, 4, 8)
    return given(extra_key=extra_key, extra_value=extra_value, **changes)


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "the same": base,
    "an equal mask": lambda: given(mask=Mask.sliding_window(3)),
    "another mask": lambda: given(mask=Mask.sliding_window(2)),
    "a mask of two axes": lambda: given(mask=Mask(Axis(1, 1), Axis(1, 1))),
    "no mask": lambda: given(mask=None),
    "fewer samples": lambda: given(query=FLAT[:1]),
    "fewer queries": lambda: given(query=FLAT[:, :5]),
    "fewer keys": lambda: given(key=FLAT[:, :5]),
    "fewer keys and values": lambda: given(key=FLAT[:, :5], value=FLAT[:, :5]),
    "grouped heads": lambda: given(key=NARROW, value=NARROW),
    "other values": lambda: given(value=NARROW),
    "wider values": lambda: given(value=torch.randn(2, 12, 4, 16)),
    "no values": lambda: given(value=None),
    "a list": lambda: given(query=[1.0]),
    "half": lambda: given(**{name: FLAT.half() for name in ("query", "key", "value")}),
    "half keys": lambda: given(key=FLAT.half()),
    "integers": lambda: given(**{name: FLAT.int() for name in ("query", "key", "value")}),
    "meta keys": lambda: given(key=FLAT.to("meta")),
    "meta": lambda: given(**{name: FLAT.to("meta") for name in ("query", "key", "value")}),
    "strided": lambda: given(query=torch.randn(2, 4, 12, 8).transpose(1, 2)),
    "rows that overlap": lambda: given(
        query=torch.randn(2, 4, 20).unfold(-1, 8, 1)[:, :, :12].movedim(1, 2)
    ),
    "a scale": lambda: given(scale=0.5),
    "no scale": lambda: given(scale=0.0),
    "a scale that is none": lambda: given(scale="large"),
    "an infinite scale": lambda: given(scale=float("inf")),
    "a softcap": lambda: given(softcap=2),
    "a softcap of 0": lambda: given(softcap=0.0),
    "a sink": lambda: given(sink=torch.zeros(4)),
    "another sink": lambda: given(sink=torch.zeros(3)),
    "an integer sink": lambda: given(sink=torch.zeros(4, dtype=torch.int32)),
    "a range": lambda: given(key_range=torch.tensor([[[1, 9]]] * 2, dtype=torch.int32)),
    "a long range": lambda: given(key_range=torch.tensor([[[1, 9]]] * 2)),
    "extra keys": with_extras,
    "extra keys alone": lambda: given(extra_key=torch.randn(2, 3, 4, 8)),
    "an extra range": lambda: with_extras(extra_range=torch.tensor([[0, 2], [1, 3]]).int()),
    "an extra range of one sample": lambda: with_extras(extra_range=torch.tensor([[0, 2]]).int()),
    "an extra range alone": lambda: given(extra_range=torch.tensor([[0, 2]] * 2).int()),
    "a table": lambda: given(relative_bias=torch.linspace(-1, 1, 28).view(4, 7)),
    "a table of another window": lambda: given(relative_bias=torch.zeros(4, 5)),
    "a trained table": lambda: given(relative_bias=torch.zeros(4, 7, requires_grad=True)),
    "slopes": lambda: given(alibi_slopes=torch.linspace(0, 1, 4)),
    "slopes of each sample": lambda: given(alibi_slopes=torch.linspace(0, 1, 8).view(2, 4)),
    "half slopes": lambda: given(alibi_slopes=torch.zeros(4).half()),
    "trained with slopes": lambda: given(
        query=FLAT.clone().requires_grad_(), alibi_slopes=torch.linspace(0, 1, 4)
    ),
    "trained slopes": lambda: given(
        query=FLAT.clone().requires_grad_(), alibi_slopes=torch.zeros(4, requires_grad=True)
    ),
    "a backend": lambda: given(backend="tiled"),
    "an unknown backend": lambda: given(backend="magic"),
    "a backend in a list": lambda: given(backend=["tiled"]),
    "required": lambda: given(require=("tile",)),
    "required in a list": lambda: given(require=["tile"]),
    "required without a name": lambda: given(require=([],)),
    "required in an array": lambda: given(require=np.array(["fold", "x"])),
    "forbidden in an empty array": lambda: given(forbid=np.array([])),
    "forbidden without a name": lambda: given(forbid=("sdpa", None)),
    "required as a string": lambda: given(require="tile"),
    "forbidden": lambda: given(forbid=("sdpa",)),
    "with its logsumexp": lambda: given(return_lse=True),
    "with 1 for True": lambda: given(return_lse=1),
    "trained": lambda: given(query=FLAT.clone().requires_grad_()),
    "trained values": lambda: given(value=FLAT.clone().requires_grad_()),
    "a parameter": lambda: given(query=torch.nn.Parameter(FLAT)),
    "a trained sink": lambda: given(sink=torch.zeros(4, requires_grad=True)),
    "the reference": lambda: given(backend="reference"),
    "sparse": lambda: given(query=FLAT.to_sparse()),
    "sparse rows": lambda: given(key=FLAT[0, :, 0].to_sparse_csr()),
    "of another library": lambda: given(value=FLAT.to_mkldnn()),
    "nested": lambda: given(query=torch.nested.nested_tensor([FLAT[0], FLAT[1]])),
    "a nested sink": lambda: given(sink=torch.nested.nested_tensor([FLAT[0], FLAT[1]])),
    "negated views": lambda: given(value=torch.complex(FLAT, FLAT).conj().imag),
}


def outcome(arguments: dict[str, Any]) -> tuple[str, list[torch.Tensor]]:
    """What a call gives: nbattn's error or warning, or the form and the values of its results."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = nbattn.attention(**arguments)
    except (nbattn.errors.NbattnError, UserWarning) as error:
        return f"{type(error).__name__}: {error}", []
    results = list(found) if isinstance(found, tuple) else [found]
    form = [(t.shape, t.dtype, t.device.type, t.requires_grad) for t in results]
    return str(form), [t for t in results if not t.is_meta]


@pytest.mark.parametrize(
    "known",
    [
        *("the same", "a softcap", "extra keys", "with its logsumexp", "trained"),
        "trained with slopes",
    ],
)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning", "ignore:.*nested tensors:UserWarning")
def test_a_call_after_a_known_one_is_as_if_alone(known: str, name: str) -> None:
    arguments = CALLS[name]()
    planner.KNOWN_CALLS.clear()
    form, alone = outcome(arguments)
    planner.KNOWN_CALLS.clear()
    for _ in range(2):
        nbattn.attention(**CALLS[known]())
    for _ in range(2):
        again, values = outcome(arguments)
        assert again == form
        for one, other in zip(values, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_kernels_never_get_a_negated_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps the sign of such a view in a bit, which the memory does not show."""
    negated = torch.complex(FLAT, FLAT).conj().imag
    read: list[Any] = []
    forward = execute.forward

    def watched(plan: Any, inputs: Any, **named: Any) -> Any:
        read.extend(inputs.tensors[:3])
        return forward(plan, inputs, **named)

    monkeypatch.setattr(execute, "forward", watched)
    plan = nbattn.plan(MASK, FLAT.shape, dtype="float32", device="cpu")
    for _ in range(3):
        torch.testing.assert_close(
            nbattn.attention(FLAT, negated, FLAT, MASK), nbattn.attention(FLAT, -FLAT, FLAT, MASK)
        )
    torch.testing.assert_close(
        plan.run(FLAT, negated, FLAT), nbattn.attention(FLAT, -FLAT, FLAT, MASK)
    )
    for at in range(3):
        tensors = [negated if n == at else FLAT for n in range(3)]
        assert known_calls.key((*tensors, *[None] * 4), *OPTIONS) is None
    assert negated.is_neg()
    assert len(read) >= 12
    assert not any(tensor.is_neg() for tensor in read)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own tangents
def test_calls_under_transforms_autocast_and_switches_are_never_known() -> None:
    nbattn.attention(**base())
    run = partial(nbattn.attention, mask=MASK)
    many = torch.stack([FLAT, FLAT])
    torch.testing.assert_close(torch.func.vmap(run)(many, many, many)[0], run(FLAT, FLAT, FLAT))
    with torch.autocast("cpu", torch.bfloat16):
        assert run(FLAT, FLAT, FLAT).dtype == torch.bfloat16
    with torch.no_grad():
        assert not run(FLAT, FLAT, FLAT.clone().requires_grad_()).requires_grad
    sink = torch.zeros(4, requires_grad=True)
    with torch.no_grad():
        run(FLAT, FLAT, FLAT, sink=sink)
    assert run(FLAT, FLAT, FLAT, sink=sink).requires_grad
    tangent = torch.autograd.forward_ad
    with tangent.dual_level(), pytest.raises(nbattn.BackendError, match="forward-mode"):
        run(tangent.make_dual(FLAT, FLAT), FLAT, FLAT)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        torch.use_deterministic_algorithms(True)
        key = known_calls.key((FLAT, FLAT, FLAT, *[None] * 4), *OPTIONS)
    finally:
        torch.use_deterministic_algorithms(before)
    assert known_calls.look_up(key) is None


def test_results_of_known_calls_may_be_modified() -> None:
    """Results are no views: autograd refuses writes into views that were made without it."""
    leaf = torch.ones((), requires_grad=True)
    for _ in range(3):
        free = nbattn.attention(**base())
        free.add_(leaf)
        assert free.requires_grad


def test_a_known_call_runs_few_lines_of_python() -> None:
    """Of 500 that checks and look-ups took every time."""
    nbattn.attention(**base())
    assert lines(partial(nbattn.attention, **base())) <= 280
    tokens = torch.randn(1, 16, 4, 32)
    call = partial(nbattn.attention, tokens, tokens, tokens, MASK)
    call()
    entered = frames(call)
    assert len(entered) <= 40
    assert len({file for file in entered if file.startswith(PACKAGE)}) <= 6


def test_number_of_known_calls_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_calls, "CACHE_SIZE", 3)
    planner.KNOWN_CALLS.clear()
    for length in range(2, 12):
        part = FLAT[:, :length]
        nbattn.attention(part, part, part, MASK)
        assert len(planner.KNOWN_CALLS) <= 3
    planner.forget()
    assert not planner.KNOWN_CALLS
