"""Published models: the sizes of their attention as data, and plans of them."""

from __future__ import annotations

from nbattn.published.models import MODELS, Layers, Model
from nbattn.published.planning import LayerPlan, ModelPlan, plan

__all__ = ["MODELS", "LayerPlan", "Layers", "Model", "ModelPlan", "plan"]
