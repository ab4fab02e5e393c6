"""Tests of schedules: which part a time step is in, and what a model then attends to."""

from __future__ import annotations

import pytest
import torch
from integrations.diffusers.models import MODELS

import nbattn
from nbattn.errors import InputError
from nbattn.integrations.diffusers import apply, restore, schedules

WINDOW = nbattn.Mask.neighborhood((3, 3))
PARTS = {(0, 300): "first", (300, 700): "second", (800, 1000): "third"}


def part(timestep: object) -> int:
    return schedules.read(PARTS)[0].part(timestep)


@pytest.mark.parametrize(
    ("timestep", "expected"),
    [
        *((0, 0), (299.5, 0), (300, 1), (699, 1), (800, 2), (1000, 2), (1000.0, 2)),
        (torch.tensor(650), 1),
        (torch.tensor([0, 299]), 0),
        (torch.tensor([[0, 900], [850, 0]]), 2),  # Wan 2.2: frames that are given have time 0
        (torch.tensor([0.0, 850]).reshape(1, 1, 2, 1, 1), 2),  # Cosmos
    ],
)
def test_a_time_step_is_in_the_range_that_has_it(timestep: object, expected: int) -> None:
    assert part(timestep) == expected


@pytest.mark.parametrize("timestep", [-1, 700, 750, 1000.5, torch.tensor([100, 500]), None])
def test_a_time_step_in_no_range_or_in_two_is_refused(timestep: object) -> None:
    with pytest.raises(InputError):
        part(timestep)


def test_no_schedule_needs_no_time_step() -> None:
    assert schedules.Schedule().part(None) == 0


def test_ranges_are_sorted_with_their_masks() -> None:
    schedule, masks = schedules.read({(700, 1000): "late", (0, 700): "early"})
    assert (schedule.ranges, masks) == (((0, 700), (700, 1000)), ["early", "late"])


@pytest.mark.parametrize(
    "wrong",
    [
        *({}, None, [(0, 1)], {5: None}, {(0, 1, 2): None}, {("a", "b"): None}, {(5, 5): None}),
        *({(7, 2): None}, {(0, 5): None, (4, 9): None}, {(0, 9): None, (0, 5): None}),
    ],
)
def test_what_is_no_schedule_is_refused(wrong: object) -> None:
    with pytest.raises(InputError):
        schedules.read(wrong)


def test_a_model_attends_to_the_mask_of_its_time_step() -> None:
    """Flux's time steps are those of its forward pass, 0 to 1."""
    small = MODELS["flux"]
    model, given = small.model(), small.call(small.sizes[0], False)

    def at(step: float) -> torch.Tensor:
        return model(**{**given, "timestep": torch.full((2,), step, dtype=torch.float64)}).sample

    own = [at(0.9), at(0.4)]
    apply(model, WINDOW)
    windowed = [at(0.9), at(0.4)]
    apply(model, schedule={(0, 0.7): WINDOW, (0.7, 1): None})
    assert torch.equal(at(0.9), own[0])
    assert torch.equal(at(0.4), windowed[1])
    apply(model, schedule={(0, 0.7): {"single": WINDOW}, (0.7, 1): {"*": WINDOW}})
    assert torch.equal(at(0.9), windowed[0])
    assert not any(torch.equal(at(0.4), other) for other in (own[1], windowed[1]))
    restore(model)
    assert torch.equal(at(0.4), own[1])


def test_a_compiled_model_has_one_graph_for_each_mask() -> None:
    torch._dynamo.reset()
    small = MODELS["wan"]
    model, given = small.model(), small.call(small.sizes[0], False)
    mask = nbattn.Mask.neighborhood((1, 3, 3))
    apply(model, schedule={(0, 300): mask, (300, 600): nbattn.Mask.full(3), (600, 1000): None})
    graphs: list[object] = []

    def counting(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=counting, fullgraph=True)
    with torch.no_grad():
        for step in (900, 800, 500, 400, 200, 100, 650, 350, 0):
            now = {**given, "timestep": torch.full((2,), step)}
            torch.testing.assert_close(compiled(**now).sample, model(**now).sample)
    assert len(graphs) == 3
