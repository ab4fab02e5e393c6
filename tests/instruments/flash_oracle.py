"""An independent model of Flash's host code, kernels and bands, pair by pair.

It follows the order of the C++ statements with a dictionary of parameters and asks of each element
whether the kernel's mask keeps it. Nothing is imported from the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def band(rows: int, keys: int, left: int | None, right: int | None) -> np.ndarray:
    """bool [rows, keys] of a top-left band, pair by pair."""
    found = np.zeros((rows, keys), dtype=bool)
    for i in range(rows):
        for j in range(keys):
            after = left is None or i - j <= left
            before = right is None or j - i <= right
            found[i, j] = after and before
    return found


def flash2_host(
    rows: int, keys: int, left: int = -1, right: int = -1, causal: bool = False,
    entry: str = "dense", max_rows: int | None = None, max_keys: int | None = None, *,
    slopes: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """The parameters of flash_api.cpp of Flash 2; `max_keys` is the capacity for the kv-cache
    entry.
    """
    host: dict[str, Any] = {"left": left, "right": right, "causal": causal}
    seqlen_k = keys if entry == "dense" or max_keys is None else max_keys
    seqlen_q = rows if entry != "varlen" or max_rows is None else max_rows
    if entry == "varlen":
        if seqlen_q == 1 and not slopes:
            host["causal"] = False
        if host["causal"]:
            host["right"] = 0
    if host["left"] >= seqlen_k:
        host["left"] = -1
    if host["right"] >= seqlen_k:
        host["right"] = -1
    if entry != "varlen":
        if seqlen_q == 1 and not slopes:
            host["causal"] = False
        if host["causal"]:
            host["right"] = 0
    host["causal"] = host["left"] < 0 and host["right"] == 0
    if host["left"] < 0 and host["right"] >= 0:
        host["left"] = seqlen_k
    if host["left"] >= 0 and host["right"] < 0:
        host["right"] = seqlen_k
    host["local"] = (host["left"] >= 0 or host["right"] >= 0) and not host["causal"]
    return host


def flash2(rows: int, keys: int, *window: Any, **more: Any) -> np.ndarray:
    """mask.h of Flash 2, with the arguments of its host code."""
    host = flash2_host(rows, keys, *window, **more)
    found = np.zeros((rows, keys), dtype=bool)
    for i in range(rows):
        for j in range(keys):
            visible = True
            if host["causal"]:
                visible = j < min(keys, i + 1 + keys - rows)
            elif host["local"]:
                visible = j < min(keys, i + 1 + keys - rows + host["right"])
                visible = visible and j >= max(0, i + keys - rows - host["left"])
            found[i, j] = visible
    return found


def flash2_added(rows: int, keys: int, *window: Any, **more: Any) -> np.ndarray:
    """What mask.h of Flash 2 multiplies with a slope and adds to each score."""
    causal = flash2_host(rows, keys, *window, **more, slopes=True)["causal"]
    found = np.zeros((rows, keys))
    for i in range(rows):
        for j in range(keys):
            found[i, j] = j if causal else -abs(i + keys - rows - j)
    return found


def sequences(
    rows: int, keys: int, sizes: list[tuple[int, int]], left: int, right: int, causal: bool,
    max_rows: int | None, max_keys: int | None,
) -> np.ndarray:  # fmt: skip
    """mha_varlen_fwd of Flash 2 on sequences that follow one another."""
    assert (sum(a for a, _ in sizes), sum(b for _, b in sizes)) == (rows, keys)
    found = np.zeros((rows, keys), dtype=bool)
    row = key = 0
    for many, of in sizes:
        block = flash2(many, of, left, right, causal, "varlen", max_rows, max_keys)
        found[row : row + many, key : key + of] = block
        row, key = row + many, key + of
    return found


def flash2_cache(
    rows: int, keys: int, left: int, right: int, causal: bool, capacity: int
) -> np.ndarray:
    """mha_fwd_kvcache of Flash 2."""
    return flash2(rows, keys, left, right, causal, "kvcache", max_keys=capacity)


def flash3(
    rows: int, keys: int, left: int = -1, right: int = -1, causal: bool = False,
    capacity: int | None = None,
) -> np.ndarray:  # fmt: skip
    """hopper/flash_api.cpp and mask.h; a cache has a capacity, of which `keys` are used."""
    seqlen_k = keys if capacity is None else capacity
    if left >= seqlen_k - 1:
        left = -1
    if right >= rows - 1:
        right = -1
    if rows == 1 and left == -1 and right == -1:
        causal = False
    if causal:
        right = 0
    causal = left < 0 and right == 0
    local = (left >= 0 or right >= 0) and not causal
    left, right = (seqlen_k - 1 if left < 0 else left), (rows - 1 if right < 0 else right)
    found = np.zeros((rows, keys), dtype=bool)
    for i in range(rows):
        diagonal = i + keys - rows
        for j in range(keys):
            found[i, j] = not (causal or local)
            if causal:
                found[i, j] = j <= diagonal
            if local:
                found[i, j] = diagonal - left <= j <= diagonal + right
    return found


def flash4(
    rows: int, keys: int, left: int | None = None, right: int | None = None, causal: bool = False
) -> np.ndarray:
    """flash_attn/cute/interface.py and mask.py."""
    if causal:
        right = 0
    if left is not None and right is not None and left + right < 0:
        left, right = None, 0 if causal else None
    found = np.ones((rows, keys), dtype=bool)
    for i in range(rows):
        for j in range(keys):
            place = j - (i + keys - rows)
            if left is not None and place < -left:
                found[i, j] = False
            if right is not None and place > right:
                found[i, j] = False
    return found


def query_blocks(
    rows: int, keys: int, left: int | None, right: int | None, tile: tuple[int, int]
) -> list[list[int]]:
    """Per block of keys the blocks of queries that the backward's loop visits, for a bottom-right
    window after the host's overrides: its bounds, one by one.
    """
    found: list[list[int]] = []
    for block in range(-(-keys // tile[1])):
        first_key, end_key = block * tile[1], (block + 1) * tile[1]
        start, stop = 0, -(-rows // tile[0])
        if right is not None:
            start = max(start, (first_key + rows - keys - right) // tile[0])
        if left is not None:
            stop = min(stop, -(-(end_key + rows - keys + left) // tile[0]))
        found.append(list(range(start, stop)))
    return found
