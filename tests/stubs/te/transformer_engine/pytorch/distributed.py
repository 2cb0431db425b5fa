"""transformer_engine/pytorch/distributed.py"""

from __future__ import annotations

from typing import Any


class CudaRNGStatesTracker:
    def __init__(self) -> None:
        raise NotImplementedError("the platforms use megatron-core's own tracker")


def activation_recompute_forward(activation_recompute: bool = False, recompute_phase: bool = False) -> Any:
    raise NotImplementedError("of FP8 and recomputation together")


def checkpoint(function: Any, *args: Any, use_reentrant: bool = True, **kwargs: Any) -> Any:
    raise NotImplementedError("of FP8 and recomputation together")


def get_all_rng_states() -> dict:
    raise NotImplementedError("of CUDA graphs")
