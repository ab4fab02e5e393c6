"""One exchange of keys and values between ranks, and of their gradients on the way back.

What other ranks need of this one's keys and values is packed into a buffer, which one all-to-all
sends. Four steps are four nodes of autograd, and what does not need the exchange runs meanwhile:

    start(key, value)        packs and sends                   backward: waits, adds all gradients
    wait(buffer, ticket)     waits                             backward: sends gradients home
    boxes(key, value, …)     own and received keys, by unit    backward: gradients by owner
    after(outputs, buffer)   outputs that need no buffer       backward: takes part all the same

Between `start` and `wait` the buffer is still being filled, and nothing else reads it. On the way
back that is true of the gradient of the ticket, which has the shape of what was sent. The
collectives are torch's functional ones, which torch.compile traces.

A key's gradient has parts from several calls, on several ranks. They are added in float32 and
rounded once: so `start` returns the rank's own keys and values for its calls, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbattn.distributed import agreement
from nbattn.distributed.tracing import constant

Slices = tuple[slice, ...]  # of the axes of the space
Sizes = tuple[list[int], list[int]]  # how many numbers go to, and come from, every rank


@dataclass(frozen=True, slots=True)
class Copy:
    """Keys that go into a unit's box: from this rank's own, or from a block that it received.

    Args:
        block: number of the block; -1 for the rank's own keys.
        source: which keys of it, per axis.
        target: where in the box.
    """

    block: int
    source: Slices
    target: Slices


@dataclass(frozen=True, slots=True)
class Box:
    """The keys of one unit: their numbers per axis, and where they come from."""

    space: tuple[int, ...]
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """What one rank sends and receives.

    Args:
        group: name of the process group.
        number: of the rank in it.
        sent: for every rank of the group, in its order, which of the own keys go there.
        received: for every rank of the group, the numbers of keys per axis of its blocks.
    """

    group: str
    number: int
    sent: tuple[tuple[Slices, ...], ...]
    received: tuple[tuple[tuple[int, ...], ...], ...]

    def sizes(self, key: Tensor, value: Tensor) -> Sizes:
        """How many numbers go to, and come from, every rank."""
        each = key.shape[0] * (key.shape[-2] * key.shape[-1] + value.shape[-2] * value.shape[-1])
        sent = [each * sum(map(_tokens, blocks)) for blocks in self.sent]
        received = [each * sum(map(_product, blocks)) for blocks in self.received]
        own = len(_DIGITS) if torch.compiler.is_compiling() else 0
        sent[self.number] = received[self.number] = own
        return sent, received


class Started(NamedTuple):
    """An exchange on its way.

    Args:
        buffer: the keys and values that arrive, for `wait`.
        ticket: for `wait`.
        inner: the rank's keys and values, for calls that need no others.
        outer: the same, for `boxes`.
    """

    buffer: Tensor
    ticket: Tensor
    inner: tuple[Tensor, Tensor]
    outer: tuple[Tensor, Tensor]


def start(key: Tensor, value: Tensor, route: Route) -> Started:
    """Sends the keys and values that others need."""
    if value is key:  # compilers take no tensor twice
        value = value.view_as(value)
    buffer, ticket, *own = _Start.apply(key, value, route)  # pyright: ignore
    return Started(buffer, ticket, (own[0], own[1]), (own[2], own[3]))


def wait(buffer: Tensor, ticket: Tensor, route: Route, sizes: Sizes) -> Tensor:
    """Waits until the buffer is filled."""
    return _Wait.apply(buffer, ticket, route, sizes)  # pyright: ignore


def boxes(
    key: Tensor, value: Tensor, received: Tensor, route: Route, wanted: Sequence[Box]
) -> list[tuple[Tensor, Tensor]]:
    """The keys and values of every unit. Keys that no query attends to are zeros."""
    found: Any = _Boxes.apply(key, value, received, route, tuple(wanted))
    return list(zip(found[::2], found[1::2], strict=True))


def tied(outputs: Sequence[Tensor], *tensors: Tensor) -> list[Tensor]:
    """The outputs, whose backward gives the tensors zeros as gradients, not None."""
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
        return list(outputs)
    return list(_Tied.apply(len(outputs), *outputs, *tensors))  # pyright: ignore


def after(outputs: Sequence[Tensor], received: Tensor) -> list[Tensor]:
    """The outputs of a rank that received nothing: both passes still take part in the exchange."""
    if not (torch.is_grad_enabled() and received.requires_grad):
        return [_after(tensor, received) for tensor in outputs]
    return list(_After.apply(received, *outputs))  # pyright: ignore


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, key: Tensor, value: Tensor, route: Route) -> tuple[Tensor, ...]:
        ctx.route, ctx.shapes = route, (key.shape, value.shape)
        sent, received = ctx.sizes = route.sizes(key, value)
        parts: list[Tensor] = []
        for number, blocks in enumerate(route.sent):
            if number == route.number and sent[number]:
                parts += [key.new_full((1,), digit) for digit in _serial()]
            parts += [
                side[(slice(None), *block)].reshape(-1) for block in blocks for side in (key, value)
            ]
        buffer = torch.cat(parts) if parts else key.new_empty(0)
        ctx.set_materialize_grads(False)
        ticket = key.new_empty(1).expand(buffer.numel())
        own = (side.view_as(side) for side in (key, value, key, value))
        return _all_to_all(buffer, received, sent, route.group), ticket, *own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: None, ticket: Tensor, *own: Tensor | None) -> Any:  # pyright: ignore
        ticket = _waited(ticket, ctx.route.group)
        grads = [_sum(own[side::2], ticket, ctx.shapes[side]) for side in range(2)]
        sent, at = ctx.sizes[0], 0
        for number, blocks in enumerate(ctx.route.sent):
            at += sent[number] if number == ctx.route.number else 0
            for block in blocks:
                for grad in grads:
                    part = grad[(slice(None), *block)]
                    part += ticket[at : at + part.numel()].view(part.shape)
                    at += part.numel()
        if at == sent[ctx.route.number]:
            grads[0] = _after(grads[0], ticket)
        return *(grad.to(ticket.dtype) for grad in grads), None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, buffer: Tensor, ticket: Tensor, route: Route, sizes: Sizes) -> Tensor:
        ctx.route, ctx.sizes = route, sizes
        waited = _waited(buffer, route.group)
        if sizes[1][route.number]:
            ctx.save_for_backward(waited)
        return waited

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:  # pyright: ignore
        sent, received = ctx.sizes
        if own := received[ctx.route.number]:
            (waited,) = ctx.saved_tensors
            at = sum(received[: ctx.route.number])
            digits = [waited[at : at + 1] * 0 + digit for digit in _serial()]
            grad = torch.cat([grad[:at], *digits, grad[at + own :]])
        return None, _all_to_all(grad.contiguous(), sent, received, ctx.route.group), None, None


class _Boxes(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        key: Tensor,
        value: Tensor,
        received: Tensor,
        route: Route,
        wanted: tuple[Box, ...],
    ) -> tuple[Tensor, ...]:
        ctx.route, ctx.wanted = route, wanted
        ctx.shapes = key.shape, value.shape, received.shape
        blocks = _blocks(received, route, key.shape, value.shape)
        found: list[Tensor] = []
        for box in wanted:
            for number, own in enumerate((key, value)):
                target = own.new_zeros((own.shape[0], *box.space, *own.shape[-2:]))
                for copy in box.copies:
                    source = own if copy.block < 0 else blocks[copy.block][number]
                    whole = slice(None)
                    target[(whole, *copy.target)] = source[(whole, *copy.source)]
                found.append(target)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        key, value, received = (_sum((), grads[0], shape) for shape in ctx.shapes)
        blocks = _blocks(received, ctx.route, key.shape, value.shape)
        for box, pair in zip(ctx.wanted, zip(grads[::2], grads[1::2], strict=True), strict=True):
            for number, (own, grad) in enumerate(zip((key, value), pair, strict=True)):
                for copy in box.copies:
                    source = own if copy.block < 0 else blocks[copy.block][number]
                    whole = slice(None)
                    source[(whole, *copy.source)] += grad[(whole, *copy.target)]
        return *(grad.to(grads[0].dtype) for grad in (key, value, received)), None, None


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.like = [(t.shape, t.dtype) for t in tensors[count:]]
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        zeros = (grads[0].new_zeros(shape, dtype=dtype) for shape, dtype in ctx.like)
        return None, *grads, *zeros


class _After(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, received: Tensor, *outputs: Tensor) -> tuple[Tensor, ...]:
        ctx.shape = received.shape
        return tuple(_after(tensor, received) for tensor in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore
        return grads[0].new_zeros(ctx.shape), *grads


# Compilers leave out an exchange without numbers, run one of constants while they trace, and make
# two that send the same into one; other ranks, which do not, would wait. So in their graphs every
# rank also sends itself a number that no other exchange has, in digits that all dtypes can hold.
_SERIALS = count()
_DIGITS = (100, 10_000, 1_000_000)


@constant
def _serial() -> list[float]:
    """The digits of a new number."""
    number = next(_SERIALS)
    return [float(number * 100 // digit % 100) for digit in _DIGITS]


@torch.library.custom_op("nbattn::after", mutates_args=())
def _copied_after(tensor: Tensor, received: Tensor) -> Tensor:
    """A copy of a tensor, for which compilers need the other one, too."""
    del received
    return tensor.clone()


@_copied_after.register_fake
def _(tensor: Tensor, received: Tensor) -> Tensor:
    del received
    return torch.empty_like(tensor)


def _after(tensor: Tensor, received: Tensor) -> Tensor:
    """A tensor that compilers compute after another one was received: they would leave out an
    exchange that brings this rank nothing, and other ranks would wait for it.
    """
    if torch.compiler.is_compiling():
        return _copied_after(tensor, received)
    return tensor.view_as(tensor)


def _all_to_all(buffer: Tensor, received: list[int], sent: list[int], group: str) -> Tensor:
    run = torch.ops._c10d_functional.all_to_all_single
    return agreement.in_words(run, buffer, received, sent, group, group=group)


def _waited(tensor: Tensor, group: str) -> Tensor:
    return agreement.in_words(torch.ops._c10d_functional.wait_tensor, tensor, group=group)


def _blocks(
    buffer: Tensor, route: Route, key: Sequence[int], value: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """The blocks of keys and values in a buffer that has arrived, as views."""
    each = key[0] * (key[-2] * key[-1] + value[-2] * value[-1])
    own = buffer.numel() - each * sum(
        _product(space) for blocks in route.received for space in blocks
    )
    found: list[tuple[Tensor, Tensor]] = []
    at = 0
    for number, blocks in enumerate(route.received):
        at += own if number == route.number else 0
        for space in blocks:
            pair: list[Tensor] = []
            for side in (key, value):
                shape = (side[0], *space, *side[-2:])
                size = _product(shape)
                pair.append(buffer[at : at + size].view(shape))
                at += size
            found.append((pair[0], pair[1]))
    return found


def _sum(parts: Sequence[Tensor | None], like: Tensor, shape: Sequence[int]) -> Tensor:
    """The sum of gradients, in float32 or wider: of none, zeros."""
    total = like.new_zeros(shape, dtype=torch.promote_types(like.dtype, torch.float32))
    for part in parts:
        if part is not None:
            total += part
    return total


def _tokens(block: Slices) -> int:
    return _product([side.stop - side.start for side in block])


def _product(numbers: Sequence[int]) -> int:
    total = 1
    for number in numbers:
        total *= number
    return total
