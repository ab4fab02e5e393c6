"""Tests of chunks: those of torch, and who has which positions."""

from __future__ import annotations

import torch

from nbattn.distributed.chunks import Span, chunk_of, joined, owners


def test_chunks_are_those_of_torch() -> None:
    for length in range(18):
        for parts in range(1, 12):
            chunks = [chunk_of(length, parts, part) for part in range(parts)]
            expected = [chunk.tolist() for chunk in torch.arange(length).chunk(parts)]
            expected = [positions for positions in expected if positions]  # torch has an empty one
            assert [[*range(*chunk)] for chunk in chunks if chunk.length] == expected
            assert all(chunk == (length, length) for chunk in chunks[len(expected) :])


def test_owners_are_the_parts_with_positions_of_a_span() -> None:
    for length in range(1, 10):
        for parts in range(1, 12):
            chunks = [{*range(*chunk_of(length, parts, part))} for part in range(parts)]
            for start in range(length + 1):
                for stop in range(start, length + 1):
                    some = {*range(start, stop)}
                    found = [part for part, chunk in enumerate(chunks) if chunk & some]
                    assert [*owners(length, parts, Span(start, stop))] == found


def test_spans_are_joined() -> None:
    assert joined([]) == joined([Span(3, 3)]) == ()
    assert joined([Span(5, 7), Span(0, 2), Span(2, 4), Span(6, 9)]) == ((0, 4), (5, 9))
    assert joined([Span(0, 9), Span(2, 4)]) == ((0, 9),)


def test_a_span_in_another() -> None:
    assert Span(2, 6).of(Span(4, 9)) == (4, 6)
    assert Span(2, 6).of(Span(0, 9)) == (2, 6)
    assert Span(2, 6).of(Span(7, 9)).length == Span(7, 9).of(Span(2, 6)).length == 0
