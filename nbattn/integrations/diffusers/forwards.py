"""What runs in this thread: the forward pass of a model, and the attention layer within it.

A forward pass says its grid once, before its first layer; every layer then reads it here. Models
may run in several threads at once, and checkpoints run layers again during the backward pass.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import sym_node

from nbattn.errors import InputError
from nbattn.integrations.diffusers.families import RESTORE, Family
from nbattn.integrations.diffusers.schedules import Schedule
from nbattn.integrations.diffusers.sequences import Tokens
from nbattn.integrations.diffusers.tables import Layer

_BEFORE_THE_GRAPH: Any = torch.compiler.disable(
    reason="nbattn reads the grid before a graph begins: torch.compile(model, fullgraph=True), or "
    "model.compile_repeated_blocks(fullgraph=True), or model.compile() without fullgraph"
)


@dataclass(frozen=True)
class Pass:
    """One forward pass of a model.

    Args:
        tokens: what stands in its sequence.
        part: which part of the schedule its time step is in.
    """

    tokens: Tokens
    part: int


class _Running(threading.local):
    forward: Pass | None = None
    layer: Layer | None = None


RUNNING = _Running()


@contextmanager
def running(forward: Pass | None) -> Generator[None]:
    """Runs layers as those of this forward pass."""
    before, RUNNING.forward = RUNNING.forward, forward
    try:
        yield
    finally:
        RUNNING.forward = before


class Reader:
    """A hook that reads each forward pass before it begins."""

    def __init__(
        self, model: nn.Module, family: Family, layers: Mapping[str, Layer], schedule: Schedule
    ) -> None:
        """Stores what forward passes of this model are read with.

        Args:
            model: a diffusion transformer.
            family: what nbattn knows of its class.
            layers: its attention layers that run on nbattn, by the name of the module.
            schedule: which time steps have which masks.
        """
        self.family, self.schedule = family, schedule
        self.names = [*inspect.signature(type(model).forward).parameters][1:]
        self.modules = [(model.get_submodule(name), layer) for name, layer in layers.items()]

    @_BEFORE_THE_GRAPH
    def __call__(self, model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Reads a forward pass from its arguments."""
        for module, layer in self.modules:
            if getattr(module.processor, "layer", None) != layer:
                raise InputError(
                    f"the attention of {layer.name} was replaced after apply() by "
                    f"{type(module.processor).__name__}: it has not the windows of that call.",
                    "nbattn.integrations.diffusers.apply(model, mask), once more.",
                )
            hooks = getattr(vars(module).get("_diffusers_hook"), "hooks", {})
            if any(getattr(hook, "skip_attention_scores", False) for hook in hooks.values()):
                raise InputError(
                    f"a hook skips the scores of {layer.name}, as perturbed attention guidance "
                    "does: it does not reach nbattn's attention.",
                    RESTORE,
                )
        given = {**dict(zip(self.names, arguments, strict=False)), **named}
        tokens = self.family.read(model, given)
        tokens = replace(
            tokens, grid=tuple(map(_changing, tokens.grid)), text=_changing(tokens.text)
        )
        RUNNING.forward = Pass(tokens, self.schedule.part(given.get("timestep")))
        own = getattr(model, "_gradient_checkpointing_func", None)
        if own is not None and not isinstance(own, Checkpoints):  # set when they are enabled
            model._gradient_checkpointing_func = Checkpoints(own)


class Checkpoints:
    """A model's function for checkpoints: what they run again is of the same forward pass."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self.own = own

    def __call__(self, block: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a block, now and once more during the backward pass."""
        forward = RUNNING.forward  # of this thread; the backward pass may have another

        def run(*inputs: Any) -> Any:
            with running(forward):
                return block(*inputs)

        return self.own(run, *arguments)


@_BEFORE_THE_GRAPH
def finish(model: Any, arguments: object, output: object) -> None:
    """A hook behind a forward pass: layers that run now are of no forward pass."""
    RUNNING.forward = None


def hook(model: nn.Module, reader: Reader) -> None:
    """Reads every forward pass of a model before it begins."""
    model.register_forward_pre_hook(reader, with_kwargs=True)
    model.register_forward_hook(finish, always_call=True)


def unhook(model: Any) -> None:
    """Reverses `hook`."""
    for hooks in (vars(model)["_forward_pre_hooks"], vars(model)["_forward_hooks"]):
        for number, known in [*hooks.items()]:
            if isinstance(known, Reader) or known is finish:
                del hooks[number]
                for flags in ("_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"):
                    vars(model)[flags].pop(number, None)
    checkpoints = getattr(model, "_gradient_checkpointing_func", None)
    if isinstance(checkpoints, Checkpoints):
        model._gradient_checkpointing_func = checkpoints.own


def _changing(number: int) -> int:
    """Makes a number dynamic for compilers (torch 2.9 or newer); older ones compile once more for
    another value.
    """
    return getattr(sym_node, "DynamicInt", int)(number) if number else number
