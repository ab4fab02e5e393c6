"""Tests of views: which positions they contain."""

from hypothesis import given
from hypothesis import strategies as st

from nbattn.program.program import AxisView

# Views


@given(
    st.integers(0, 9), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9)
)
def test_positions_of_a_view(start: int, length: int, step: int, groups: int, apart: int) -> None:
    view = AxisView(start, length, step=step, groups=groups, group_step=apart)
    wanted = [[start + apart * g + step * t for t in range(length)] for g in range(groups)]
    assert view.positions().tolist() == wanted
