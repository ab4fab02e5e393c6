"""Endless text with rotary embeddings: attention sinks, a rolling window, and two ways to count.

Run it: `python examples/streaming_rotary.py`. Sinks can keep their places in the text, so that the
distance to them grows for ever; or, as StreamingLLM has it, tokens are counted within the cache,
so that no distance exceeds its size. Either way decoding token by token from a cache of fixed size
is compared with one pass over the whole text. At full size (length, window, sinks, channels,
heads): `python examples/streaming_rotary.py 8192 1024 4 1024 16`.
"""

from __future__ import annotations

import sys
from typing import Literal

import torch
from torch import Tensor, nn

import nbattn

BASE = 10_000.0
Places = Literal["in the text", "in the cache"]


def turn(tokens: Tensor, places: Tensor) -> Tensor:
    """Tokens `[B, N, H, D]` turned by their places `[N]`; scores depend on distances alone.

    Angles are computed in float64: at place 10**6 those of float32 are off by 0.03.
    """
    count = tokens.shape[-1] // 2
    speeds = BASE ** -(torch.arange(count, device=tokens.device, dtype=torch.float64) / count)
    angles = places.double()[:, None, None] * speeds  # [N, 1, D / 2]
    cos, sin = angles.cos().to(tokens.dtype), angles.sin().to(tokens.dtype)
    a, b = tokens.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Streaming(nn.Module):
    """Attention over the first keys and the newest ones, in one pass or token by token.

    Args:
        dim, heads: of the text `[B, N, dim]`.
        window: newest keys that a token reads, itself among them.
        sinks: first keys that every token reads.
        places: where the sinks stand for a token that has left them behind.
    """

    def __init__(self, dim: int, heads: int, window: int, sinks: int, places: Places) -> None:
        super().__init__()
        self.window, self.sinks, self.places = window, sinks, places
        mask = nbattn.Mask(nbattn.Axis(window - 1, causal=True, prefix=sinks))
        self.layer = nbattn.NeighborhoodAttention(dim, heads, mask)

    def before_sinks(self, places: Tensor) -> Tensor:
        """Where queries of these places in the text stand when they look at the sinks."""
        if self.places == "in the text":
            return places
        return places.clamp(max=self.sinks + self.window - 1)  # the last place of the cache

    def forward(self, text: Tensor) -> Tensor:
        """All tokens in one pass."""
        query, key, value, _, _ = self.layer.qkv(text, None, None)
        places = torch.arange(text.shape[1], device=text.device)
        key = turn(key, places)
        if self.places == "in the text":
            out = nbattn.attention(turn(query, places), key, value, self.layer.mask)
            return self.layer.proj(out.flatten(-2))
        first, rest = slice(0, self.sinks), [[self.sinks, text.shape[1]]]
        parts = [
            nbattn.attention(
                turn(query, self.before_sinks(places)), key[:, first], value[:, first],
                nbattn.Mask.causal("top-left"), return_lse=True,
            ),
            nbattn.attention(
                turn(query, places), key, value, nbattn.Mask.sliding_window(self.window - 1),
                key_range=torch.tensor([rest] * len(text), dtype=torch.int32), return_lse=True,
            ),
        ]  # fmt: skip
        return self.layer.proj(nbattn.merge(*zip(*parts, strict=True))[0].flatten(-2))


class Cache:
    """Keys turned by their places in the text, and values: the first ones and a ring of the newest.

    A key is turned once. Within the window both ways to count give the same distances; only the
    queries turn once more for the sinks.

    Args:
        model: whose keys they are.
        batch: of the text.
    """

    def __init__(self, model: Streaming, batch: int) -> None:
        layer, size = model.layer, model.sinks + model.window
        shape = (batch, size, layer.kv_heads, layer.head_dim)
        self.model, self.seen = model, 0
        self.key, self.value = layer.qkv.weight.new_zeros(2, *shape)

    def step(self, token: Tensor) -> Tensor:
        """The output `[B, 1, dim]` of the next token."""
        model, sinks = self.model, self.model.sinks
        query, key, value, _, _ = model.layer.qkv(token, None, None)
        place = torch.tensor([self.seen], device=token.device)
        slot = self.seen if self.seen < sinks else sinks + (self.seen - sinks) % model.window
        self.key[:, slot : slot + 1] = turn(key, place)
        self.value[:, slot : slot + 1] = value
        self.seen += 1
        parts = [
            self._read(turn(query, model.before_sinks(place)), slice(0, sinks), self.seen),
            self._read(turn(query, place), slice(sinks, None), self.seen - sinks),
        ]
        out, _ = nbattn.merge(*zip(*parts, strict=True))
        return model.layer.proj(out.flatten(-2))

    def _read(self, query: Tensor, slots: slice, filled: int) -> tuple[Tensor, Tensor]:
        """Output and logsumexp over the slots that are filled; the order of keys is free."""
        key, value = self.key[:, slots], self.value[:, slots]
        stop = min(max(filled, 0), key.shape[1])
        key_range = torch.tensor([[[0, stop]]] * len(query), dtype=torch.int32, device=key.device)
        full = nbattn.Mask.full()
        return nbattn.attention(query, key, value, full, key_range=key_range, return_lse=True)


def main(
    length: int = 200, window: int = 32, sinks: int = 4, dim: int = 64, heads: int = 4
) -> dict[str, float]:
    """How far decoding is from one pass, for both ways to count, and these from each other."""
    torch.manual_seed(0)
    models = {p: Streaming(dim, heads, window, sinks, p) for p in ("in the text", "in the cache")}
    models["in the cache"].load_state_dict(models["in the text"].state_dict())
    text = torch.randn(2, length, dim)
    found: dict[str, float] = {}
    passes = []
    with torch.no_grad():
        for places, model in models.items():
            cache = Cache(model, batch=2)
            stream = torch.cat([cache.step(token) for token in text.split(1, dim=1)], dim=1)
            passes.append(model(text))
            found[places] = (stream - passes[-1]).abs().max().item()
    late = (passes[0] - passes[1])[:, sinks + window :].abs()
    found["apart"] = late.max().item() if late.numel() else 0.0
    print(model.layer)
    print(f"{length} tokens from a cache of {sinks} + {window}; outputs to {passes[0].max():.2f}")
    for places in models:
        print(f"places {places}: largest difference from one pass {found[places]:.1e}")
    print(f"the two differ by {found['apart']:.1e} once the cache is full")
    return found


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
