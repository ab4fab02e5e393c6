"""Tests of halos in words."""

from __future__ import annotations

from textwrap import dedent

from nbattn import Axis, Mask
from nbattn.distributed import halo
from nbattn.distributed.traffic import short_bytes

IMAGE = """
halo        Mask(Axis(3, 3, border='shift'), Axis(3, 3, border='shift'))
            64 x 64 queries, in 4 x 2 parts: 8 ranks
rank        2: part (1, 0) of the axes, 16 x 32 queries; none receives more
receives    258 keys (264 kB) from 5 ranks, 50.4 % of its own; the mean of all ranks is 206 keys (211 kB)
sends       258 keys (264 kB) to 5 ranks
all-gather  3,584 keys (3.67 MB), 13.9 times as many
ring        as many, in 7 steps, 5 of them with keys that it attends to
memory      770 keys (788 kB) in shard and halo; 4,096 keys (4.19 MB) after an all-gather
overlap     57 % of its queries need no halo, and can be computed while it travels
needs       axis 0: keys 13:35 (its own: 16:32)
            axis 1: keys 0:35 (its own: 0:32)
from        rank 0 (0, 0): 13:16 x 0:32, 96 keys
            rank 1 (0, 1): 13:16 x 32:35, 9 keys
            rank 3 (1, 1): 16:32 x 32:35, 48 keys
            rank 4 (2, 0): 32:35 x 0:32, 96 keys
            rank 5 (2, 1): 32:35 x 32:35, 9 keys
"""  # noqa: E501  the text is as users see it


def test_the_text_of_an_image() -> None:
    found = halo(Mask.neighborhood((7, 7)), (64, 64), (4, 2))
    assert found.explain(kv_heads=4, head_dim=64) == dedent(IMAGE).strip()


def test_a_causal_document() -> None:
    """Ranks of the end compute more; a prefix comes from the first rank."""
    lines = halo(Mask(Axis(None, 0, causal=True)), 100, 4).explain(2).splitlines()
    assert "rank        2: 25 queries" in lines
    assert (
        "receives    50 keys from 2 ranks, 200 % of its own; the mean of all ranks is 38 keys"
        in lines
    )
    assert "sends       25 keys to 1 rank" in lines
    assert "balance     the rank with most pairs computes 1.74 times as many as the mean" in lines
    assert lines[-2:] == ["from        rank 0: 0:25, 25 keys", "            rank 1: 25:50, 25 keys"]
    text = halo(Mask.sliding_window(3, 0), 64, 4, key_space=None).explain(0)
    assert "receives    nothing" in text
    assert "overlap" not in text
    assert "sends       3 keys to 1 rank" in text


def test_other_keys_axes_that_are_not_cut_and_many_blocks() -> None:
    mask = Mask(Axis(9, 0, causal=True, prefix=2, align="top-left"), Axis(7, 7, border="wrap"))
    text = halo(mask, (60, 40), (6, 1), key_space=(50, 40)).explain(5)
    assert "60 x 40 queries and 50 x 40 keys, in 6 x 1 parts: 6 ranks" in text
    assert "axis 0: keys 0:2, 41:50 (its own: 45:50)" in text
    assert "axis 1: keys 0:40, not cut" in text
    assert "rank 0 (0, 0): 0:2 x 0:40, 80 keys" in text
    text = halo(Mask.full(), 64, 32).explain()
    assert text.endswith("            and 5 more ranks")
    circle = Mask(Axis(3, 3, border="wrap"), Axis(3, 3, border="wrap"))
    text = halo(circle, (8, 8), (2, 2)).explain()
    assert "rank 3 (1, 1): 4:8 x 4:8, 16 keys" in text
    circle = Mask(Axis(2, 2, border="wrap"), Axis(2, 2, border="wrap"))
    text = halo(circle, (12, 12), (2, 2)).explain(0)
    assert "rank 3 (1, 1): 6:8 x 6:8, 6:8 x 10:12 and 2 more blocks, 16 keys" in text


def test_bytes_in_three_digits() -> None:
    texts = [short_bytes(number) for number in (0, 999, 1000, 123_456, 999_600, 2.5e12)]
    assert texts == ["0 B", "999 B", "1 kB", "123 kB", "1000 kB", "2.5 TB"]


def test_one_query_is_not_many() -> None:
    assert "rank        3: 1 query; none" in halo(Mask.sliding_window(3), 10, 20).explain()


def test_queries_that_wait_are_not_said_to_overlap() -> None:
    text = halo(Mask.sliding_window(9, 0), 40, 4).explain()
    assert "overlap     10 % of its queries need no halo\n" in text
