"""Random parts of axes: what tensors hold of them, and the block of the whole axis's matrix."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from nbattn import Axis, Mask
from nbattn.geometry import BoundAxis, Held, bind

Case = tuple[Axis, int, int, Held, int, int]


def axes() -> st.SearchStrategy[Axis]:
    sides = st.integers(0, 6)
    plain = {"dilation": st.integers(1, 3), "stride": st.integers(1, 4)}
    placed = {**plain, "align": st.sampled_from(["top-left", "bottom-right", 3, -2])}
    return st.one_of(
        st.builds(Axis, st.none() | sides, st.none() | sides, **placed),
        st.builds(Axis, st.none() | sides, causal=st.just(True), **placed),
        st.builds(Axis, sides, sides, border=st.just("shift"), **placed),
        st.builds(Axis, sides, sides, border=st.just("wrap"), **plain),
        st.builds(Axis, sides, sides, prefix=st.integers(1, 5), align=st.just("top-left")),
        st.builds(Axis, sides, causal=st.just(True), prefix=st.integers(1, 5)),
    )


@st.composite
def parts(draw: st.DrawFn) -> Case:
    """An axis, how many of its queries and keys are held, and which."""
    axis = draw(axes())
    if axis.border == "wrap":
        queries = keys = axis.dilation * axis.stride * draw(st.integers(1, 6))
    else:
        queries = draw(st.integers(1, 24))
        keys = queries if axis.align is None else draw(st.integers(1, 24))
    row, row_stop = sorted(draw(st.tuples(*[st.integers(0, queries)] * 2)))
    key, key_stop = sorted(draw(st.tuples(*[st.integers(0, keys)] * 2)))
    return axis, row_stop - row, key_stop - key, Held(row, queries, key, keys), row, key


def bound(case: Case) -> tuple[BoundAxis, np.ndarray]:
    """The part of an axis, and the block of the whole axis's matrix that it should be."""
    spec, queries, keys, held, row, key = case
    (axis,) = bind(Mask(spec), queries, keys, (held,))
    whole = bind(Mask(spec), held.query_length, held.key_length)[0].dense()
    return axis, whole[row : row + queries, key : key + keys]
