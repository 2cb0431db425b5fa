"""Scaling recipes of FP8 (transformer_engine/common/recipe/__init__.py): names alone; the stub has no FP8."""


class Recipe: ...


class Format:
    E4M3, E5M2, HYBRID = "E4M3", "E5M2", "HYBRID"


class DelayedScaling(Recipe): ...


class Float8CurrentScaling(Recipe): ...


class Float8BlockScaling(Recipe): ...


class MXFP8BlockScaling(Recipe): ...
