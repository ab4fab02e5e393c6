"""Tests of masks written on the command line: accepted forms and refused text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import masks

from nbattn import Axis, Mask, NbattnError
from nbattn.cli.mask_text import parse_lengths, parse_mask


@settings(max_examples=60)
@given(masks())
def test_repr_of_a_mask_can_be_parsed(cases, drawn: tuple[Mask, object, object]) -> None:
    mask, _, _ = drawn
    assert parse_mask(repr(mask)) == mask
    assert parse_mask(", ".join(map(repr, mask.axes))) == mask
    cases("mask text, round trip", 1)


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        (" Axis() ", Mask(Axis())),
        ("Axis(8, 0),", Mask(Axis(8, 0))),
        ("(Axis(1), Axis(2, right=-0))", Mask(Axis(1), Axis(2, 0))),
        ("nbattn.Mask.sliding_window(511)", Mask.sliding_window(511)),
        ("Mask.neighborhood((7, 5), is_causal=(True, False))",
         Mask.neighborhood((7, 5), is_causal=(True, False))),
        ("causal(-3)", Mask.causal(-3)),
        ("from_flash((512, None))", Mask.from_flash((512, None))),
        ("from_transformers(512, causal=False)", Mask.from_transformers(512, causal=False)),
        ("nbattn.Mask(nbattn.Axis(1, 1))", Mask(Axis(1, 1))),
    ],
)  # fmt: skip
def test_ways_to_write_a_mask(text: str, mask: Mask) -> None:
    assert parse_mask(text) == mask


PIECES = ["Axis", "Mask", "causal", "(", ")", ",", "1", "-", "=", "left", "**", "*", "'", "[",
          "\0", "\ud800", "(" * 300, "9" * 99, "lambda:", ".", "{", "é", " ", "f'{1}'"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=40))
def test_the_parser_raises_only_nbattn_errors(cases, text: str) -> None:
    for parse in (parse_mask, lambda text: parse_lengths("--query", text)):
        try:
            parse(text)
        except NbattnError:
            cases("mask text, refused", 1)
    cases("mask text, fuzz", 1)


def test_deep_nesting_is_no_crash() -> None:
    parentheses = "Axis(" + "(" * 990 + ")" * 990 + ")"
    minus = "-" * 1900 + "1"
    for text in ("Mask(" * 190 + ")" * 190, minus, f"Axis({minus})", parentheses):
        with pytest.raises(NbattnError):
            parse_mask(text)
