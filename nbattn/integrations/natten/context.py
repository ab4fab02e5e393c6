"""NATTEN's switches, of both generations. Those that tune its kernels are stored and have no
effect; those that ask for a kernel or for determinism raise an error with nbattn's way to get it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch

from nbattn.errors import InputError


class MemoryUsagePreference(Enum):
    """How much memory NATTEN's backward may use; it has no effect in nbattn."""

    Default = 0
    Strict = 1
    Unrestricted = 2


# A setter, its getter, and the initial value.
_SWITCHES = (
    ("use_fused_na", "is_fused_na_enabled", False),
    ("use_kv_parallelism_in_fused_na", "is_kv_parallelism_in_fused_na_enabled", True),
    ("use_gemm_na", "is_gemm_na_enabled", True),
    ("use_tiled_na", "is_tiled_na_enabled", True),
    ("use_tf32_in_gemm_na", "is_tf32_in_gemm_na_enabled", False),
    ("allow_flex_compile", "is_flex_compile_allowed", False),
    ("allow_flex_compile_backprop", "is_flex_compile_backprop_allowed", False),
)
# The arguments of use_autotuner(), and their getters.
_TUNED = {
    "forward_pass": "is_autotuner_enabled_for_forward",
    "backward_pass": "is_autotuner_enabled_for_backward",
    "thorough_mode_forward": "is_autotuner_thorough_for_forward",
    "thorough_mode_backward": "is_autotuner_thorough_for_backward",
}
# Functions that set a switch to a value, and return that value.
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
# What NATTEN was built with: all its functions exist, its own tensor-core kernels do not.
_ABILITIES = {
    **dict.fromkeys(("has_half", "has_bfloat", "has_fna", "has_fused_na"), True),
    **dict.fromkeys(("has_gemm", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm"), False),
}
# The switches of 0.15, which are the only ones there.
OLDEST = (
    *("enable_tf32", "disable_tf32", "enable_gemm_na", "disable_gemm_na"),
    *("enable_tiled_na", "disable_tiled_na", "has_cuda", "has_half", "has_bfloat"),
    *("has_gemm", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm"),
)
_ALIASES = {"use_fna": "use_fused_na", "is_fna_enabled": "is_fused_na_enabled"}


def switches() -> dict[str, Any]:
    """Returns all switches by name, with their initial values.

    >>> functions = switches()
    >>> functions["use_fused_na"](True)
    >>> functions["is_fna_enabled"]()
    True
    """
    state: dict[str, Any] = {"memory": MemoryUsagePreference.Default}
    functions: dict[str, Any] = {"MemoryUsagePreference": MemoryUsagePreference}
    for name, getter, initial in _SWITCHES:
        state[name] = initial
        functions |= {name: _setter(name, state), getter: _getter(name, state)}
    functions |= {name: _one_way(*setting, state) for name, setting in _ONE_WAY.items()}
    functions |= {name: lambda *_, value=value: value for name, value in _ABILITIES.items()}
    functions |= _fused(state)
    functions |= {name: functions[current] for name, current in _ALIASES.items()}
    tuned = dict.fromkeys(_TUNED, False)
    everything = functions | _autotuner(tuned) | _memory(state) | _determinism()
    contexts = {"NattenContext": _context(state), "AutotunerContext": _context(tuned)}
    return everything | contexts | {"has_cuda": torch.cuda.is_available}


def _context(state: dict[str, Any]) -> type:
    """The class that resets switches to their initial values."""
    initial = dict(state)
    return type("Context", (), {"reset": staticmethod(lambda: state.update(initial))})


def _setter(name: str, state: dict[str, Any]) -> Callable[[bool], None]:
    def use(mode: bool = True) -> None:
        state[name] = mode

    return use


def _getter(name: str, state: dict[str, Any]) -> Callable[[], Any]:
    def get() -> Any:
        return state[name]

    return get


def _fused(state: dict[str, Any]) -> dict[str, Any]:
    def use_fused_na(
        mode: bool = True,
        kv_parallel: bool = True,
        use_flex_attention: bool = False,
        force_flex_attention: bool = False,
    ) -> None:
        if force_flex_attention:
            raise InputError(
                "force_flex_attention names a kernel, and nbattn replaces no named kernel.",
                'natten.use_fused_na(), or nbattn.attention(..., backend="flex").',
            )
        state["use_fused_na"], state["flex"] = mode, mode and use_flex_attention

    state["flex"] = False
    return {
        "use_fused_na": use_fused_na,
        "use_flex_attention": lambda: use_fused_na(use_flex_attention=True),
        "force_flex_attention": lambda: use_fused_na(force_flex_attention=True),
        "should_use_flex_attention": _getter("flex", state),
        "should_force_flex_attention": lambda: False,
    }


def _autotuner(state: dict[str, Any]) -> dict[str, Any]:
    def use_autotuner(*values: Any, **named: Any) -> None:
        arguments = dict(zip(_TUNED, values, strict=False)) | named
        state.update({n: arguments[n] for n in _TUNED if arguments.get(n) is not None})

    def disable_autotuner() -> None:
        state.update(dict.fromkeys(_TUNED, False))

    return {
        "use_autotuner": use_autotuner,
        "disable_autotuner": disable_autotuner,
        "is_autotuner_enabled": lambda: state["forward_pass"] or state["backward_pass"],
        **{getter: _getter(name, state) for name, getter in _TUNED.items()},
    }


def _one_way(name: str, value: bool, state: dict[str, Any]) -> Callable[[], bool]:
    def change() -> bool:
        state[name] = value
        return value

    return change


def _memory(state: dict[str, Any]) -> dict[str, Any]:
    def choose(pref: str = "default") -> None:
        kinds = {kind.name.lower(): kind for kind in MemoryUsagePreference}
        if pref not in kinds:
            names = ", ".join(map(repr, kinds))
            raise InputError(
                f"pref={pref!r} is not known: {names}.",
                'natten.set_memory_usage_preference("default").',
            )
        state["memory"] = kinds[pref]

    functions: dict[str, Any] = {
        f"is_memory_usage_{kind.name.lower()}": lambda kind=kind: state["memory"] == kind
        for kind in MemoryUsagePreference
    }
    getter = _getter("memory", state)
    return functions | {
        "set_memory_usage_preference": choose,
        "get_memory_usage_preference": getter,
    }


def _determinism() -> dict[str, Any]:
    def use(mode: bool = True) -> None:
        if mode:
            raise InputError(
                "NATTEN's own switch for determinism is about its kernels.",
                "torch.use_deterministic_algorithms(True), which nbattn follows.",
            )

    return {
        "use_deterministic_algorithms": use,
        "are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled,
    }
