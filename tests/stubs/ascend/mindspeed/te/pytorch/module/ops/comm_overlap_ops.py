"""MindSpeed's tensor-parallel size and group: stored in a class at their first use, and never cleared."""

from __future__ import annotations

from typing import Any


class CommOverlapConfig:
    """The cache. A process that builds other groups later still gets the first ones."""

    tp_size: int | None = None
    tp_group: Any = None

    @classmethod
    def get_tp_size(cls) -> int:
        """Size of the tensor-parallel group at the first call."""
        if cls.tp_size is None:
            from megatron.core.parallel_state import get_tensor_model_parallel_world_size

            cls.tp_size = get_tensor_model_parallel_world_size()
        return cls.tp_size

    @classmethod
    def get_tp_group(cls) -> Any:
        """The tensor-parallel group at the first call."""
        if cls.tp_group is None:
            from megatron.core.parallel_state import get_tensor_model_parallel_group

            cls.tp_group = get_tensor_model_parallel_group()
        return cls.tp_group


COMM_OVERLAP_CONFIG = CommOverlapConfig()
