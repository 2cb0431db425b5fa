"""transformer_engine/pytorch/module/grouped_linear.py: of mixtures of experts, subclassed and never built."""

from .base import TransformerEngineBaseModule


class GroupedLinear(TransformerEngineBaseModule): ...
