"""Decode text of any length with a cache of fixed size: attention sinks and a rolling window
(StreamingLLM).

Run it: `python examples/streaming_decode.py`. It decodes token by token with a cache of the first
keys and the newest ones, and compares with one pass over the whole text. At full size:
`python examples/streaming_decode.py 8192 1024 4 1024 16`.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import nbattn

ALL = nbattn.Mask.full()


class Part:
    """Keys and values in a ring buffer of fixed length; new ones overwrite the oldest.

    Args:
        layer: the layer that computes the keys.
        batch: batch size of the text.
        length: length of the ring.
    """

    def __init__(self, layer: nbattn.NeighborhoodAttention, batch: int, length: int) -> None:
        shape = (batch, length, layer.kv_heads, layer.head_dim)
        self.key, self.value = layer.qkv.weight.new_zeros(2, *shape)
        self.length, self.seen = length, 0

    def write(self, key: Tensor, value: Tensor) -> None:
        """Store the newest of the keys and values `[B, n, Hk, D]`."""
        stored = min(key.shape[1], self.length)
        self.seen += key.shape[1]
        slots = torch.arange(self.seen - stored, self.seen) % self.length
        for ring, new in ((self.key, key), (self.value, value)):
            ring[:, slots] = new[:, new.shape[1] - stored :]

    def read(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return output and logsumexp of a query over the filled slots, in any order."""
        filled = torch.tensor([[[0, min(self.seen, self.length)]]], dtype=torch.int32)
        key_range = filled.expand(query.shape[0], 1, 2)
        return nbattn.attention(
            query, self.key, self.value, ALL, key_range=key_range, return_lse=True
        )


class Stream:
    """A layer that decodes with two caches, sinks and window, merged by their logsumexp.

    Args:
        layer: its mask is `Axis(window - 1, causal=True, align="bottom-right", prefix=sinks)`, with
            no qk_transform.
        batch: batch size of the text.
    """

    def __init__(self, layer: nbattn.NeighborhoodAttention, batch: int) -> None:
        (axis,) = layer.mask.axes
        if axis.left is None or layer.qk_transform is not None or layer.mask.decodes():
            raise ValueError(
                f"Stream needs a causal window, bottom-right, without qk_transform: {layer}"
            )
        self.layer = layer
        self.parts = Part(layer, batch, axis.prefix), Part(layer, batch, axis.left + 1)

    def start(self, prompt: Tensor) -> Tensor:
        """Return the output of the first tokens `[B, n, dim]`, in one pass."""
        self._store(prompt)
        return self.layer(prompt)

    def step(self, token: Tensor) -> Tensor:
        """Return the output `[B, 1, dim]` of the next token."""
        query = self._store(token)
        out, _ = nbattn.merge(*zip(*[part.read(query) for part in self.parts], strict=True))
        return self.layer.proj(out.flatten(-2))

    def _store(self, tokens: Tensor) -> Tensor:
        """Store each key and value in one of the two caches, and return the queries."""
        heads = self.layer.num_heads, self.layer.kv_heads, self.layer.kv_heads
        packed = self.layer.qkv(tokens).unflatten(-1, (sum(heads), self.layer.head_dim))
        query, *new = packed.split(heads, dim=-2)
        sinks, window = self.parts
        first = max(0, sinks.length - sinks.seen)
        sinks.write(*[t[:, :first] for t in new])
        window.write(*[t[:, first:] for t in new])
        return query


def main(
    length: int = 300, window: int = 64, sinks: int = 4, dim: int = 64, heads: int = 4
) -> dict[str, float]:
    """Return the largest differences from one pass, of the stream and of a window without sinks."""
    torch.manual_seed(0)
    axis = nbattn.Axis(window - 1, causal=True, prefix=sinks, align="bottom-right")
    layer = nbattn.NeighborhoodAttention(dim, heads, nbattn.Mask(axis)).eval()
    text, prompt = torch.randn(2, length, dim), length // 3
    with torch.no_grad():
        whole = layer(text)
        stream = Stream(layer, batch=2)
        outputs = [stream.start(text[:, :prompt])]
        outputs += [stream.step(text[:, n : n + 1]) for n in range(prompt, length)]
        layer.mask = nbattn.Mask.sliding_window(window - 1, align="bottom-right")
        differences = {
            "stream": (torch.cat(outputs, 1) - whole).abs().max().item(),
            "without sinks": (layer(text) - whole).abs().max().item(),
        }
    layer.mask = nbattn.Mask(axis)
    print(layer)
    print(
        f"{length} tokens, cache of {window} + {sinks} keys; outputs up to {whole.abs().max():.2f}"
    )
    print(f"largest difference from one pass: {differences['stream']:.1e}")
    print(f"largest difference without sinks: {differences['without sinks']:.1e}")
    return differences


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
