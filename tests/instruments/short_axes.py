"""All short axes: samples of their product, and which pairs of values occur in them."""

from collections.abc import Iterable, Iterator
from itertools import combinations
from math import prod
from typing import Any

from oracle import is_legal

PRODUCT: dict[str, tuple[Any, ...]] = {
    "queries": tuple(range(8)),
    "keys": tuple(range(8)),
    "left": (None, 0, 1, 2, 5),
    "right": (None, 0, 1, 2, 5),
    "dilation": (1, 2, 3),
    "stride": (1, 2, 3, 4),
    "align": (None, "top-left", "bottom-right"),
    "offset": (-2, -1, 0, 1, 2),
    "border": ("clip", "shift", "wrap"),
    "causal": (False, True),
    "prefix": (0, 1, 3),
}
TOTAL = prod(len(values) for values in PRODUCT.values())

Specimen = tuple[dict[str, Any], int, int]  # the fields of an Axis, queries, keys


def specimens(first: int, step: int) -> Iterator[Specimen]:
    """Every step-th entry of PRODUCT from `first` on: the fields of an Axis, queries, keys."""
    for index in range(first, TOTAL, step):
        fields = {}
        for name, values in PRODUCT.items():
            index, place = divmod(index, len(values))
            fields[name] = values[place]
        yield fields, fields.pop("queries"), fields.pop("keys")


def value_pairs_of(sample: Iterable[Specimen]) -> set[Any]:
    """The pairs of values of two fields that a sample has in legal axes."""
    found: set[Any] = set()
    for fields, queries, keys in sample:
        if is_legal(fields, queries, keys):
            found |= _value_pairs(fields, queries, keys)
    return found


def value_pairs_of_sample(first: int, step: int) -> set[Any]:
    """The pairs of values of two fields that a sample of PRODUCT has in legal axes."""
    return value_pairs_of(specimens(first, step))


def few(first: int, step: int, each: int) -> Iterator[Specimen]:
    """Legal axes of a sample: each with a pair of values that none before it has, and of the others
    every `each`-th.
    """
    seen: set[Any] = set()
    for number, (fields, queries, keys) in enumerate(specimens(first, step)):
        if is_legal(fields, queries, keys):
            pairs = _value_pairs(fields, queries, keys)
            if number % each == 0 or not pairs <= seen:
                seen |= pairs
                yield fields, queries, keys


def _value_pairs(fields: dict[str, Any], queries: int, keys: int) -> set[Any]:
    return set(combinations([*fields.items(), ("queries", queries), ("keys", keys)], 2))
