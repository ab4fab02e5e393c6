"""Code that several fixes have, and what is found in the code of fixes: calls, alternatives."""

from __future__ import annotations

import re

FLAT = "query.flatten(1, -3).transpose(1, 2), key.flatten(1, -3).transpose(1, 2)"
# Attention by torch, with a matrix of bools or scores: exact, with the memory of all pairs.
DENSE = (
    "torch.nn.functional.scaled_dot_product_attention("
    f"{FLAT}, value.flatten(1, -3).transpose(1, 2), attn_mask={{}}, enable_gqa=True)"
    ".transpose(1, 2).unflatten(1, query.shape[1:-2])"
)
PAIRS = "torch.from_numpy(mask.dense(query.shape[1:-2], key.shape[1:-2])).to(query.device)"

_OR = re.compile(r"((?:,|;)? or )")  # between alternatives
_BESIDE = re.compile(r", with (?:query|key|value)\.[^;]*")
# What files and command lines have no place for: tensors, and calls of functions.
_TENSORS = re.compile(r"\b(?:query|key|value|x|context|torch|layer)\.|\b(?:attention|plan)\(")


def closing(text: str, start: int) -> int:
    """Where the call ends whose arguments start here; the end of the text if it is not closed."""
    depth = 1
    for at, letter in enumerate(text[start:], start):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return at + 1
    return len(text)


def without_tensors(text: str) -> str:
    """The alternatives of a fix that a file or a command line can have."""
    parts = _OR.split(_BESIDE.sub("", text))
    kept = [n for n in range(0, len(parts), 2) if not _TENSORS.search(parts[n])]
    return "".join(part for n in kept for part in (parts[n - 1] * (n > kept[0]), parts[n]))
