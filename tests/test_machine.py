"""Tests of measuring how busy a machine is."""

from nbattn import machine


def test_other_programs_are_counted_in_cores() -> None:
    others = machine.busy(0.05)
    assert others is None or 0 <= others <= 1024
