"""NATTEN's functions and modules, of its current and its older generation, run by nbattn.

    from nbattn.integrations import natten
    natten.install()                      # from now on, `import natten` gives nbattn
    natten.install(generation="0.17")     # with the argument orders up to 0.17

Or import single names from here: `from nbattn.integrations.natten import na2d, natten2dqkrpb`.
"""

from __future__ import annotations

from nbattn.integrations.natten.dinat import repair_dinat, restore_dinat
from nbattn.integrations.natten.fused import (
    attention,
    merge_attentions,
    na1d,
    na2d,
    na3d,
    neighborhood_attention_generic,
)
from nbattn.integrations.natten.install import install, is_installed, uninstall
from nbattn.integrations.natten.legacy import (
    na1d_av,
    na1d_qk,
    na1d_qk_with_bias,
    na2d_av,
    na2d_qk,
    na2d_qk_with_bias,
    na3d_av,
    na3d_qk,
    na3d_qk_with_bias,
    natten1dav,
    natten1dqk,
    natten1dqkrpb,
    natten2dav,
    natten2dqk,
    natten2dqkrpb,
    natten3dav,
    natten3dqk,
    natten3dqkrpb,
)
from nbattn.integrations.natten.modules import (
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)

__all__ = [
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "attention",
    "install",
    "is_installed",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na1d_qk_with_bias",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na2d_qk_with_bias",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "na3d_qk_with_bias",
    "natten1dav",
    "natten1dqk",
    "natten1dqkrpb",
    "natten2dav",
    "natten2dqk",
    "natten2dqkrpb",
    "natten3dav",
    "natten3dqk",
    "natten3dqkrpb",
    "neighborhood_attention_generic",
    "repair_dinat",
    "restore_dinat",
    "uninstall",
]
