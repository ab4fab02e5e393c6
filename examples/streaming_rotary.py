"""Decode text of any length with rotary embeddings: attention sinks, a rolling window, and two
kinds of positions.

Run it: `python examples/streaming_rotary.py`. With positions in the text the distance to the sinks
grows without limit; with positions in the cache, as in StreamingLLM, no distance exceeds the cache
size. In both cases decoding token by token with a cache of fixed size is compared with one pass
over the whole text. At full size (length, window, sinks, channels, heads):
`python examples/streaming_rotary.py 8192 1024 4 1024 16`.
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
    """Rotate tokens `[B, N, H, D]` by their positions `[N]`; scores depend on distances only.

    Angles are computed in float64: at position 10**6 float32 has an error of 0.03.
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
        dim, heads: channels of the text `[B, N, dim]`, and heads.
        window: number of newest keys that a token attends to, including itself.
        sinks: number of first keys that every token attends to.
        places: which positions define the distance to the sinks.
    """

    def __init__(self, dim: int, heads: int, window: int, sinks: int, places: Places) -> None:
        super().__init__()
        self.window, self.sinks, self.places = window, sinks, places
        mask = nbattn.Mask(nbattn.Axis(window - 1, causal=True, prefix=sinks))
        self.layer = nbattn.NeighborhoodAttention(dim, heads, mask)

    def projected(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value of a text `[B, N, dim]` as `[B, N, H, D]`."""
        query, key, value = self.layer.qkv(text).chunk(3, dim=-1)
        heads = (self.layer.num_heads, self.layer.head_dim)
        return query.unflatten(-1, heads), key.unflatten(-1, heads), value.unflatten(-1, heads)

    def before_sinks(self, places: Tensor) -> Tensor:
        """Return the query positions for attention to the sinks, from positions in the text."""
        if self.places == "in the text":
            return places
        return places.clamp(max=self.sinks + self.window - 1)  # the last position of the cache

    def forward(self, text: Tensor) -> Tensor:
        """Compute all tokens in one pass."""
        query, key, value = self.projected(text)
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
    """Values, and keys rotated by their positions in the text: the first ones and a ring of the
    newest.

    A key is rotated once. Within the window both kinds of positions give the same distances; only
    queries are rotated a second time, for the sinks.

    Args:
        model: the model that computes the keys.
        batch: batch size of the text.
    """

    def __init__(self, model: Streaming, batch: int) -> None:
        layer, size = model.layer, model.sinks + model.window
        shape = (batch, size, layer.kv_heads, layer.head_dim)
        self.model, self.seen = model, 0
        self.key, self.value = layer.qkv.weight.new_zeros(2, *shape)

    def step(self, token: Tensor) -> Tensor:
        """Return the output `[B, 1, dim]` of the next token."""
        model, sinks = self.model, self.model.sinks
        query, key, value = model.projected(token)
        place = torch.tensor([self.seen], device=token.device)
        slot = self.seen if self.seen < sinks else sinks + (self.seen - sinks) % model.window
        self.key[:, slot : slot + 1] = turn(key, place)
        self.value[:, slot : slot + 1] = value
        self.seen += 1
        parts = [
            self._attend(turn(query, model.before_sinks(place)), slice(0, sinks), self.seen),
            self._attend(turn(query, place), slice(sinks, None), self.seen - sinks),
        ]
        out, _ = nbattn.merge(*zip(*parts, strict=True))
        return model.layer.proj(out.flatten(-2))

    def _attend(self, query: Tensor, slots: slice, filled: int) -> tuple[Tensor, Tensor]:
        """Return output and logsumexp over the filled slots, in any order."""
        key, value = self.key[:, slots], self.value[:, slots]
        stop = min(max(filled, 0), key.shape[1])
        key_range = torch.tensor([[[0, stop]]] * len(query), dtype=torch.int32, device=key.device)
        full = nbattn.Mask.full()
        return nbattn.attention(query, key, value, full, key_range=key_range, return_lse=True)


def main(
    length: int = 200, window: int = 32, sinks: int = 4, dim: int = 64, heads: int = 4
) -> dict[str, float]:
    """Return the largest differences of decoding from one pass, and of both kinds of positions."""
    torch.manual_seed(0)
    models = {p: Streaming(dim, heads, window, sinks, p) for p in ("in the text", "in the cache")}
    models["in the cache"].load_state_dict(models["in the text"].state_dict())
    text = torch.randn(2, length, dim)
    differences: dict[str, float] = {}
    passes = []
    with torch.no_grad():
        for places, model in models.items():
            cache = Cache(model, batch=2)
            stream = torch.cat([cache.step(token) for token in text.split(1, dim=1)], dim=1)
            passes.append(model(text))
            differences[places] = (stream - passes[-1]).abs().max().item()
    late = (passes[0] - passes[1])[:, sinks + window :].abs()
    differences["apart"] = late.max().item() if late.numel() else 0.0
    print(model.layer)
    print(f"{length} tokens, cache of {sinks} + {window} keys; outputs up to {passes[0].max():.2f}")
    for places in models:
        print(f"positions {places}: largest difference from one pass {differences[places]:.1e}")
    print(f"both kinds differ by {differences['apart']:.1e} once the cache is full")
    return differences


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
