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


_FUSED, _PARALLEL = "is_fused_na_enabled", "is_kv_parallelism_in_fused_na_enabled"
# A setter, its getter, and the initial value.
_SWITCHES = (
    ("use_fused_na", _FUSED, False),
    ("use_kv_parallelism_in_fused_na", _PARALLEL, True),
    ("use_gemm_na", "is_gemm_na_enabled", True),
    ("use_tiled_na", "is_tiled_na_enabled", True),
    ("use_tf32_in_gemm_na", "is_tf32_in_gemm_na_enabled", False),
    ("allow_flex_compile", "is_flex_compile_allowed", False),
    ("allow_flex_compile_backprop", "is_flex_compile_backprop_allowed", False),
)
# What AutotunerContext has, with its getter, if it has one, and its initial value.
_TUNED = (
    ("enabled_for_forward", "is_autotuner_enabled_for_forward", False),
    ("enabled_for_backward", "is_autotuner_enabled_for_backward", False),
    ("thorough_mode_forward", "is_autotuner_thorough_for_forward", False),
    ("thorough_mode_backward", "is_autotuner_thorough_for_backward", False),
    ("warmup_steps_forward", None, None),
    ("warmup_steps_backward", None, None),
    ("steps_forward", None, None),
    ("steps_backward", None, None),
)
# Functions that set a switch to a value, and return that value.
_ONE_WAY = {
    "enable_tf32": ("is_tf32_in_gemm_na_enabled", True),
    "disable_tf32": ("is_tf32_in_gemm_na_enabled", False),
    "enable_gemm_na": ("is_gemm_na_enabled", True),
    "disable_gemm_na": ("is_gemm_na_enabled", False),
    "enable_tiled_na": ("is_tiled_na_enabled", True),
    "disable_tiled_na": ("is_tiled_na_enabled", False),
    "disable_flex_compile": ("is_flex_compile_allowed", False),
    "disable_flex_compile_backprop": ("is_flex_compile_backprop_allowed", False),
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


def switches(generation: str) -> dict[str, Any]:
    """Returns all switches by name, with their initial values.

    >>> functions = switches("0.17")
    >>> functions["use_fused_na"](True)
    >>> functions["is_fna_enabled"]()
    True
    """
    initial = {getter: value for _, getter, value in _SWITCHES}
    if generation == "0.17":  # there use_fused_na() turns it on
        initial[_PARALLEL] = False
    state = _context(
        "NattenContext", initial | {"memory": MemoryUsagePreference.Default, "flex": False}
    )
    tuned = _context("AutotunerContext", {name: value for name, _, value in _TUNED})
    functions: dict[str, Any] = {"MemoryUsagePreference": MemoryUsagePreference}
    for name, getter, _ in _SWITCHES:
        functions |= {name: _setter(getter, state), getter: _getter(getter, state)}
    functions |= {name: _one_way(*setting, state) for name, setting in _ONE_WAY.items()}
    functions |= {name: lambda *_, value=value: value for name, value in _ABILITIES.items()}
    functions |= _fused(state)
    functions |= {name: functions[current] for name, current in _ALIASES.items()}
    everything = functions | _autotuner(tuned) | _memory(state) | _determinism()
    contexts = {"NattenContext": state, "AutotunerContext": tuned}
    return everything | contexts | {"has_cuda": torch.cuda.is_available}


def _context(name: str, initial: dict[str, Any]) -> Any:
    """Makes the class that has the switches as attributes, and resets them."""

    def reset() -> None:
        for key, value in initial.items():
            setattr(made, key, value)

    made = type(name, (), {**initial, "reset": staticmethod(reset)})
    return made


def _setter(name: str, state: Any) -> Callable[[bool], None]:
    def use(mode: bool = True) -> None:
        setattr(state, name, mode)

    return use


def _getter(name: str, state: Any) -> Callable[[], Any]:
    def get() -> Any:
        return getattr(state, name)

    return get


def _fused(state: Any) -> dict[str, Any]:
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
        setattr(state, _FUSED, mode)
        setattr(state, _PARALLEL, mode and kv_parallel)
        state.flex = mode and use_flex_attention

    return {
        "use_fused_na": use_fused_na,
        "use_flex_attention": lambda: use_fused_na(use_flex_attention=True),
        "force_flex_attention": lambda: use_fused_na(force_flex_attention=True),
        "should_use_flex_attention": _getter("flex", state),
        "should_force_flex_attention": lambda: False,
    }


def _autotuner(state: Any) -> dict[str, Any]:
    def use_autotuner(
        forward_pass: bool | None = None,
        backward_pass: bool | None = None,
        thorough_mode_forward: bool | None = None,
        thorough_mode_backward: bool | None = None,
        warmup_steps_forward: int | None = None,
        warmup_steps_backward: int | None = None,
        steps_forward: int | None = None,
        steps_backward: int | None = None,
    ) -> None:
        values = (
            *(forward_pass, backward_pass, thorough_mode_forward, thorough_mode_backward),
            *(warmup_steps_forward, warmup_steps_backward, steps_forward, steps_backward),
        )
        for (name, *_), value in zip(_TUNED, values, strict=True):
            if value is not None:
                setattr(state, name, value)

    return {
        "use_autotuner": use_autotuner,
        "disable_autotuner": lambda: use_autotuner(False, False, False, False),
        "is_autotuner_enabled": lambda: state.enabled_for_forward or state.enabled_for_backward,
        **{getter: _getter(name, state) for name, getter, _ in _TUNED if getter},
    }


def _one_way(name: str, value: bool, state: Any) -> Callable[[], bool]:
    def change() -> bool:
        setattr(state, name, value)
        return value

    return change


def _memory(state: Any) -> dict[str, Any]:
    def choose(pref: str = "default") -> None:
        kinds = {kind.name.lower(): kind for kind in MemoryUsagePreference}
        if pref not in kinds:
            names = ", ".join(map(repr, kinds))
            raise InputError(
                f"pref={pref!r} is not known: {names}.",
                'natten.set_memory_usage_preference("default").',
            )
        state.memory = kinds[pref]

    functions: dict[str, Any] = {
        f"is_memory_usage_{kind.name.lower()}": lambda kind=kind: state.memory == kind
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
