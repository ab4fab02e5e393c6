"""One row of the tables: a call that raises, what is pasted from the fix, and what follows; with
what several tables share.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fixes import sites

PIP = "pip install "
QKV = "query, key, value = q, k, v"
SDPA = (
    "torch.nn.functional.scaled_dot_product_attention(query.flatten(1, -3).transpose(1, 2), "
    "key.flatten(1, -3).transpose(1, 2), value.flatten(1, -3).transpose(1, 2), "
    "attn_mask={}, enable_gqa=True).transpose(1, 2).unflatten(1, query.shape[1:-2])"
)
ALLOWED = "torch.from_numpy(mask.dense(query.shape[1:-2], key.shape[1:-2])).to(query.device)"
EQUAL = "torch.allclose(out, {}, atol=1e-5)"


@dataclass(frozen=True)
class Row:
    """A call that raises, and the same call with the fix applied.

    Args:
        call: the user's code, which raises (a command may print the error instead).
        pasted: what the user copies from the fix; it stands in the fix and in `fixed`, verbatim.
            A `pip install` line stands in the fix alone, and names what `pyproject.toml` names.
        fixed: the user's code with the fix, which runs.
        means: an expression that is true afterwards if the user got what was wanted.
        given: code that runs before both.
    """

    call: str
    pasted: str
    fixed: str = ""
    means: str = "True"
    given: str = ""

    def raised(self) -> list[sites.Raised]:
        """Runs the call; returns the errors that it made, with the places that made them."""
        with names() as known, sites.recorded() as errors, contextlib.ExitStack() as quiet:
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
            exec(self.given, known)
            del errors[:]
            with contextlib.suppress(Exception, SystemExit):
                exec(self.call, known)
        return errors

    def run_fixed(self) -> None:
        """Runs the code with the fix, and checks what it means."""
        with names() as known:
            exec(self.given, known)
            exec(self.fixed, known)
            assert eval(self.means, known), self.means


def argument(
    wrong: str,
    right: str,
    means: str = "out.shape == q.shape",
    given: str = "",
    fixed: str = "",
) -> Row:
    """A row for arguments of attention over one axis; with the fix they can be more than it."""
    return Row(
        f"attention(q, k, v, mask, {wrong})",
        right,
        f"out = attention(q, k, v, mask, {fixed or right})",
        means,
        f"{QKV}\n{given}",
    )


def whole(wrong: str, right: str, means: str, given: str = "") -> Row:
    """A row whose fix is a whole expression."""
    return Row(wrong, right, f"out = {right}", means, f"{QKV}\n{given}")


@contextlib.contextmanager
def names() -> Iterator[dict[str, Any]]:
    """What a user's code has: the package, and tensors of one, two and three axes."""
    import torch

    import nbattn

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        known: dict[str, Any] = {name: getattr(nbattn, name) for name in nbattn.__all__}
        known |= {"torch": torch, "nbattn": nbattn, "monkeypatch": monkeypatch}
        for name, space in (("line", (12,)), ("image", (6, 8)), ("video", (4, 6, 8))):
            known[name] = torch.randn(2, *space, 4, 16)  # [B, *space, H, D]
        known["q"], known["k"], known["v"] = torch.randn(3, 2, 12, 4, 16)
        known["mask"] = nbattn.Mask.sliding_window(3)
        known["layer"] = nbattn.NeighborhoodAttention(64, 4, nbattn.Mask.neighborhood((5, 5)))
        known["x"] = torch.randn(2, 6, 8, 64)  # [B, *space, dim]
        try:
            yield known
        finally:  # groups of processes that a row has made
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            nbattn.integrations.natten.uninstall()  # what a row has put in its place
