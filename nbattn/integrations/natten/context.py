"""NATTEN's switches, of both generations: what tunes its kernels is remembered and changes nothing
here; what asks for a kernel or for determinism is refused, with what does that.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch

from nbattn.errors import InputError


class MemoryUsagePreference(Enum):
    """How much memory NATTEN's backward may take: no effect here."""

    Default = 0
    Strict = 1
    Unrestricted = 2


# A setter, what reads it, and what it is before anyone sets it.
_SWITCHES = (
    ("use_fused_na", "is_fused_na_enabled", False),
    ("use_kv_parallelism_in_fused_na", "is_kv_parallelism_in_fused_na_enabled", True),
    ("use_gemm_na", "is_gemm_na_enabled", True),
    ("use_tiled_na", "is_tiled_na_enabled", True),
    ("use_tf32_in_gemm_na", "is_tf32_in_gemm_na_enabled", False),
    ("allow_flex_compile", "is_flex_compile_allowed", False),
    ("allow_flex_compile_backprop", "is_flex_compile_backprop_allowed", False),
)
# What use_autotuner() may be told, and what reads it.
_TUNED = {
    "forward_pass": "is_autotuner_enabled_for_forward",
    "backward_pass": "is_autotuner_enabled_for_backward",
    "thorough_mode_forward": "is_autotuner_thorough_for_forward",
    "thorough_mode_backward": "is_autotuner_thorough_for_backward",
}
# A name that sets a switch to a value, and answers with it.
_ONE_WAY = {
    "enable_tf32": ("use_tf32_in_gemm_na", True),
    "disable_tf32": ("use_tf32_in_gemm_na", False),
    "enable_gemm_na": ("use_gemm_na", True),
    "disable_gemm_na": ("use_gemm_na", False),
    "enable_tiled_na": ("use_tiled_na", True),
    "disable_tiled_na": ("use_tiled_na", False),
    "disable_flex_compile": ("allow_flex_compile", False),
    "disable_flex_compile_backprop": ("allow_flex_compile_backprop", False),
}
# What NATTEN was built with: its functions are all there, tensor cores of its own are not.
_ABILITIES = {
    **dict.fromkeys(("has_half", "has_bfloat", "has_fna", "has_fused_na"), True),
    **dict.fromkeys(("has_gemm", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm"), False),
}
_ALIASES = {"use_fna": "use_fused_na", "is_fna_enabled": "is_fused_na_enabled"}


def switches() -> dict[str, Any]:
    """All of them by name, as they stand before anyone has set one.

    >>> made = switches()
    >>> made["use_fused_na"](True)
    >>> made["is_fna_enabled"]()
    True
    """
    state: dict[str, Any] = {"memory": MemoryUsagePreference.Default}
    made: dict[str, Any] = {"MemoryUsagePreference": MemoryUsagePreference}
    for name, reader, before in _SWITCHES:
        state[name] = before
        made |= {name: _setter(name, state), reader: _reader(name, state)}
    made |= {name: _one_way(*to, state) for name, to in _ONE_WAY.items()}
    made |= {name: lambda *_, found=found: found for name, found in _ABILITIES.items()}
    made |= _fused(state)
    made |= {name: made[other] for name, other in _ALIASES.items()}
    found = made | _autotuner() | _memory(state) | _determinism()
    return found | {"has_cuda": torch.cuda.is_available}


def _setter(name: str, state: dict[str, Any]) -> Callable[[bool], None]:
    def use(mode: bool = True) -> None:
        state[name] = mode

    return use


def _reader(name: str, state: dict[str, Any]) -> Callable[[], Any]:
    def read() -> Any:
        return state[name]

    return read


def _fused(state: dict[str, Any]) -> dict[str, Any]:
    def use_fused_na(
        mode: bool = True,
        kv_parallel: bool = True,
        use_flex_attention: bool = False,
        force_flex_attention: bool = False,
    ) -> None:
        if force_flex_attention:
            raise InputError(
                "force_flex_attention asks for a kernel, which no other replaces.",
                'nbattn.attention(..., backend="flex").',
            )
        state["use_fused_na"], state["flex"] = mode, mode and use_flex_attention

    state["flex"] = False
    return {
        "use_fused_na": use_fused_na,
        "use_flex_attention": lambda: use_fused_na(use_flex_attention=True),
        "force_flex_attention": lambda: use_fused_na(force_flex_attention=True),
        "should_use_flex_attention": _reader("flex", state),
        "should_force_flex_attention": lambda: False,
    }


def _autotuner() -> dict[str, Any]:
    state = dict.fromkeys(_TUNED, False)

    def use_autotuner(*values: Any, **named: Any) -> None:
        told = dict(zip(_TUNED, values, strict=False)) | named
        state.update({n: told[n] for n in _TUNED if told.get(n) is not None})

    def disable_autotuner() -> None:
        state.update(dict.fromkeys(_TUNED, False))

    return {
        "use_autotuner": use_autotuner,
        "disable_autotuner": disable_autotuner,
        "is_autotuner_enabled": lambda: state["forward_pass"] or state["backward_pass"],
        **{reader: _reader(name, state) for name, reader in _TUNED.items()},
    }


def _one_way(name: str, value: bool, state: dict[str, Any]) -> Callable[[], bool]:
    def change() -> bool:
        state[name] = value
        return value

    return change


def _memory(state: dict[str, Any]) -> dict[str, Any]:
    def choose(pref: str = "default") -> None:
        known = {kind.name.lower(): kind for kind in MemoryUsagePreference}
        if pref not in known:
            names = " or ".join(map(repr, known))
            raise InputError(f"pref={pref!r} is not known.", f"{names}.")
        state["memory"] = known[pref]

    made: dict[str, Any] = {
        f"is_memory_usage_{kind.name.lower()}": lambda kind=kind: state["memory"] == kind
        for kind in MemoryUsagePreference
    }
    reader = _reader("memory", state)
    return made | {"set_memory_usage_preference": choose, "get_memory_usage_preference": reader}


def _determinism() -> dict[str, Any]:
    def use(mode: bool = True) -> None:
        if mode:
            raise InputError(
                "NATTEN's own switch for determinism means its kernels.",
                "torch.use_deterministic_algorithms(True), which nbattn keeps.",
            )

    return {
        "use_deterministic_algorithms": use,
        "are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled,
    }
