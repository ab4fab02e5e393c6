"""Fewer examples of a property in quick runs, where a hundred find what two hundred do."""

from __future__ import annotations

from hypothesis import settings


def quick(examples: int) -> settings:
    """So many examples in quick runs; deep ones keep all of theirs."""
    profile = settings()
    return settings(profile, max_examples=examples) if profile.derandomize else profile
