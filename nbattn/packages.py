"""What to install for each optional part of nbattn: the one place that writes `pip install` lines.

The lines name packages, not extras of nbattn, so that they also work for a wheel, a checkout and an
installation from a git URL. `pyproject.toml` declares the same packages as extras.
"""

from __future__ import annotations

EXTRAS: dict[str, tuple[str, ...]] = {
    "yaml": ("pyyaml",),
    "viz": ("matplotlib",),
    "demo": ("matplotlib", "scikit-image", "scikit-learn"),
    "native": ("ziglang>=0.13",),
    "cuda12": (
        "cupy-cuda12x>=14.2,<15",
        "nvidia-cuda-nvrtc-cu12>=12.6,<13",
        "nvidia-cuda-runtime-cu12>=12.6,<13",
    ),
    "cuda13": (
        "cupy-cuda13x>=14.2,<15",
        "nvidia-cuda-nvrtc>=13.0,<14",
        "nvidia-cuda-runtime>=13.0,<14",
    ),
    "triton": ("triton>=3.6",),
    "flash": ("flash-attn-4>=4.0.0b36,<4.1",),
    "natten": ("natten==0.21.7",),
    "transformers": ("transformers>=5.24,<6",),
    "diffusers": ("diffusers>=0.42,<1",),
}

# PyPI's Triton does not compile for Intel's GPUs; torch's packages for these bring another one.
_TRITON_OF_INTEL = "pip install -U torch --index-url https://download.pytorch.org/whl/xpu"


def install_line(extra: str) -> str:
    """Returns the command that installs an optional part, for any shell.

    >>> install_line("yaml")
    'pip install pyyaml'
    >>> install_line("native")
    'pip install "ziglang>=0.13"'
    """
    return f"pip install {' '.join(map(_quoted, EXTRAS[extra]))}"


def install_triton(kind: str = "cuda") -> str:
    """Returns the command that installs Triton for GPUs of a device type.

    >>> install_triton()
    'pip install "triton>=3.6"'
    """
    return _TRITON_OF_INTEL if kind == "xpu" else install_line("triton")


def install_package(name: str) -> str:
    """Returns the command that installs the package of an extra, in the versions that fit.

    >>> install_package("natten")
    'pip install "natten==0.21.7"'
    """
    named = (text for texts in EXTRAS.values() for text in texts if _name(text) == name)
    return f"pip install {_quoted(next(named, name))}"


def _name(requirement: str) -> str:
    return requirement.partition(">")[0].partition("=")[0]


def _quoted(requirement: str) -> str:
    """Quotes a requirement with a version range, which a shell would take for a redirection."""
    return requirement if requirement == _name(requirement) else f'"{requirement}"'
