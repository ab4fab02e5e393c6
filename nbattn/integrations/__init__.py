"""Modules that make other libraries use nbattn; each is loaded when its name is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbattn import lazy

if TYPE_CHECKING:
    from nbattn.integrations import diffusers as diffusers
    from nbattn.integrations import natten as natten
    from nbattn.integrations import swin as swin
    from nbattn.integrations import transformers as transformers

__all__ = ["diffusers", "natten", "swin", "transformers"]


def __getattr__(name: str) -> Any:
    return lazy.submodule(__name__, name, {known: f"{__name__}.{known}" for known in __all__})


def __dir__() -> list[str]:
    return __all__
