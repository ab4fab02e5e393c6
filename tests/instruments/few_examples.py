"""Fewer examples in quick runs, for properties whose examples take long."""

from __future__ import annotations

from hypothesis import settings


def quick(examples: int) -> settings:
    """So many examples in quick runs; deep ones keep all of theirs."""
    profile = settings()
    return settings(profile, max_examples=examples) if profile.derandomize else profile
