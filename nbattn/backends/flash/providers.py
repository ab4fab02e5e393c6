"""The providers of Flash kernels as data: their limits, their devices and their tiles.

The facts come from the sources of flash-attention and PyTorch; none of them was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from nbattn.program.device import AMPERE_SHARE, DeviceInfo
from nbattn.program.limits import READS_ALL_EXTRAS, Limits, Reason
from nbattn.program.request import Needs

ALIGNMENT = 8  # head sizes are padded to a multiple of this


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One package that runs Flash kernels.

    All of them can write a call's output into rows of a given tensor, torch's built-in since torch
    2.12. The output is copied instead with an older torch, with padded heads, and for a varlen call
    on some of the rows of several samples.

    Args:
        name: its name in `backend="flash:<name>"`.
        package: the distribution that contains it; "torch" is always installed.
        limits: what it does not support.
        capabilities: the first and the last compute capability, 80 is sm_80.
        backward: capabilities (divided by 10) on which it has a backward.
        nondeterministic: capabilities (divided by 10), or head sizes, without a deterministic
            backward.
        varlen: whether it has a varlen entry, which computes every band if `max_seqlen_k` is large.
        kvcache: whether it has a kv-cache entry (the first keys of a cache, forward only).
        backward_windows, backward_slopes: whether its backward applies the forward's window
            arguments, and its slopes.
        share: its published forward rate on sm_90, divided by the best published one (D=128, full,
            16k, fp16); scales the device's peak there.
    """

    name: str
    package: str
    limits: Limits
    capabilities: tuple[int, int]
    backward: tuple[int, ...]
    nondeterministic: tuple[int, ...] = ()
    varlen: bool = False
    kvcache: bool = False
    backward_windows: bool = True
    backward_slopes: bool = True
    share: float = 1.0

    def reasons(self, needs: Needs) -> list[Reason]:
        """Every limit that a request exceeds, whatever its lengths."""
        reasons = self.limits.reasons(needs)
        if self.package != "torch" and self.package not in needs.device.providers:
            reasons.append(
                Reason("package", f"needs the package {self.package}, which is not installed")
            )
        reasons += self.wrong_gradients(needs)
        size = max(needs.head_dim, needs.value_dim)
        number = needs.device.capability
        largest = largest_head(self.name, number)
        if size > largest:
            reasons.append(Reason("head_dim", f"supports head sizes up to {largest}, not {size}"))
        if number is None:
            return reasons
        first, last = self.capabilities
        if not first <= number <= last:
            reasons.append(Reason("device", f"runs on sm_{first} to sm_{last}, not on sm_{number}"))
        if needs.training and number // 10 not in self.backward:
            reasons.append(Reason("backward", f"its backward does not run on sm_{number}"))
        nondeterministic = {number // 10, padded(size)} & {*self.nondeterministic}
        if needs.training and needs.deterministic and nondeterministic:
            text = f"has no deterministic backward on sm_{number} with head size {padded(size)}"
            reasons.append(Reason("deterministic", text))
        return reasons

    def wrong_gradients(self, needs: Needs) -> list[Reason]:
        """Why gradients would be wrong, on any device."""
        ignored = {"window": not self.backward_windows}
        ignored["alibi_slopes"] = needs.alibi_slopes and not self.backward_slopes
        return [
            Reason("backward", f"its backward ignores the {name}, so gradients would be wrong")
            for name, is_ignored in ignored.items()
            if needs.training and is_ignored
        ]

    def rate(self, device: DeviceInfo, dtype: str) -> float | None:
        """FLOP/s on sm_90: the device's peak times `share`. None on other devices: their peak."""
        return device.peak(dtype) * self.share if device.name == "sm_90" else None


_HALVES = ("float16", "bfloat16")
_WHY = (
    READS_ALL_EXTRAS,
    ("relative_bias", "its kernels add no table to scores"),
    ("alibi_slopes", "its kernels take none"),
)
# What all providers have in common. The same packages for AMD have other kernels, whose windows
# were not read.
ON_NVIDIA = Limits(name="flash", kinds=("cuda",), vendors=("nvidia",), dtypes=_HALVES, why=_WHY)
_EVERY = (8, 9, 10, 11, 12)

PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            name="fa4",
            package="flash-attn-4",
            limits=replace(ON_NVIDIA, name="fa4", key_range=False),
            capabilities=(80, 121),
            backward=(9, 10, 11, 12),
            nondeterministic=(12,),
        ),
        Provider(
            name="fa3",
            package="flash-attn-3",
            limits=replace(ON_NVIDIA, name="fa3", key_range=False, lse_gradient=False),
            capabilities=(80, 90),
            backward=(8, 9),
            nondeterministic=(256,),
            kvcache=True,
        ),
        Provider(
            name="fa2",
            package="flash-attn",
            limits=replace(ON_NVIDIA, name="fa2", alibi_slopes=True, lse_gradient=False),
            capabilities=(80, 121),
            backward=_EVERY,
            varlen=True,
            kvcache=True,
            share=AMPERE_SHARE,
        ),
        # Torch passes windows to the backward of this operator since 2.4, the first version that
        # has them; to that of its mem-efficient operator only since 2.15, so that one is not used.
        # Its backward takes no slopes and no seqused_k, so that gradients with them are wrong: the
        # latter is not passed. A key_range becomes boundaries of sequences, which it takes.
        Provider(
            name="aten",
            package="torch",
            limits=replace(
                ON_NVIDIA, name="aten", lse_gradient=False, softcap=False, alibi_slopes=True
            ),
            capabilities=(80, 121),
            backward=_EVERY,
            backward_slopes=False,
            varlen=True,
            share=AMPERE_SHARE,
        ),
    )
}


@lru_cache(256)
def limits_of_model(name: str, needs: Needs) -> tuple[Reason, ...]:
    """The limits of a provider's model, which runs on any device and in any dtype."""
    provider = PROVIDERS[name]
    slopes, why = provider.limits.alibi_slopes, provider.limits.why
    limits = Limits(name="flash-model", alibi_slopes=slopes, why=why)
    return (*limits.reasons(needs), *provider.wrong_gradients(needs))


def largest_head(provider: str, number: int | None) -> int:
    """The largest head size of a provider on a capability."""
    return 128 if provider == "fa4" and number is not None and number // 10 != 9 else 256


def padded(size: int) -> int:
    """A head size, rounded up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


# (largest head size, (queries, keys) of a tile), by size. From the forward and backward launch
# templates of flash-attention (2: csrc/flash_attn/src, 3: hopper) and the tile functions of
# flash_attn/cute.
_Tiles = tuple[tuple[int, tuple[int, int]], ...]
_AMPERE: _Tiles = ((64, (128, 128)), (192, (128, 64)), (256, (64, 64)))
_SMALL_MEMORY: _Tiles = ((64, (128, 128)), (96, (128, 64)), (128, (128, 32)), (256, (64, 64)))
_HOPPER: _Tiles = (
    (64, (192, 128)),
    (96, (192, 128)),
    (128, (128, 128)),
    (192, (128, 96)),
    (256, (128, 64)),
)
_BACKWARD_2: _Tiles = ((64, (128, 128)), (128, (64, 128)), (256, (64, 64)))
_BACKWARD_2_SMALL: _Tiles = (
    (32, (128, 128)),
    (96, (64, 128)),
    (192, (64, 64)),
    (256, (64, 32)),
)
_BACKWARD_3: _Tiles = ((64, (128, 128)), (128, (64, 128)), (192, (64, 96)), (256, (64, 80)))
_BACKWARD_3_AMPERE: _Tiles = ((64, (128, 128)), (128, (64, 128)), (192, (64, 80)), (256, (64, 64)))
_BACKWARD_3_SMALL: _Tiles = ((96, (64, 128)), (128, (64, 96)), (192, (64, 64)), (256, (32, 64)))
_BACKWARD_4: _Tiles = (*_BACKWARD_3[:-1], (256, (64, 64)))
_BACKWARD_4_BLACKWELL: _Tiles = ((256, (128, 128)),)
_BACKWARD_4_SM120: _Tiles = ((256, (64, 64)),)


def tile(
    provider: str, device: DeviceInfo, head_dim: int, *, backward: bool = False
) -> tuple[int, int]:
    """Queries and keys of a tile of a windowed call.

    Full and causal calls of Flash 3 and 4 use slightly different tiles, which is ignored here.
    Devices with less than 144 KB of shared memory (sm_86, sm_89, sm_120) have smaller backward
    tiles; an unknown device is treated like one with more.

    >>> from nbattn.program.device import named
    >>> tile("aten", named("sm_90"), 128), tile("fa3", named("sm_90"), 64)
    ((128, 64), (192, 128))
    >>> tile("aten", named("sm_90"), 128, backward=True)
    (64, 128)
    """
    number = device.capability or 90
    sizes = _backward(provider, number) if backward else _forward(provider, number)
    return next((shape for limit, shape in sizes if head_dim <= limit), sizes[-1][1])


def _forward(provider: str, number: int) -> _Tiles:
    if provider in ("fa3", "fa4"):
        return _HOPPER
    return _SMALL_MEMORY if number in (86, 89) else _AMPERE


def _backward(provider: str, number: int) -> _Tiles:
    small = number in (86, 89) or number // 10 == 12
    if provider == "fa4":
        blackwell = _BACKWARD_4_SM120 if number // 10 == 12 else _BACKWARD_4_BLACKWELL
        return _BACKWARD_4 if number // 10 == 9 else blackwell
    if provider == "fa3":
        ampere = _BACKWARD_3_SMALL if small else _BACKWARD_3_AMPERE
        return _BACKWARD_3 if number >= 90 else ampere
    return _BACKWARD_2_SMALL if small else _BACKWARD_2
