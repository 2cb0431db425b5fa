"""Batched pipeline communication between two stages of which each is both the previous and the next one."""

from __future__ import annotations

from typing import Any

from megatron.core.pipeline_parallel.p2p_communication import _batched_p2p_ops

from megatron_patches.patch import Patch


def batched_p2p_ops(
    *,
    tensor_send_prev: Any,
    tensor_recv_prev: Any,
    tensor_send_next: Any,
    tensor_recv_next: Any,
    group: Any,
    prev_pipeline_rank: int,
    next_pipeline_rank: int,
) -> list:
    """Call the original. Raises RuntimeError if previous and next stage are the same rank, which it mixes up."""
    with_prev = tensor_send_prev is not None or tensor_recv_prev is not None
    with_next = tensor_send_next is not None or tensor_recv_next is not None
    if prev_pipeline_rank == next_pipeline_rank and with_prev and with_next:
        raise RuntimeError(
            "batch_p2p_comm=True with an interleaved pipeline of two stages swaps the tensors from the previous and "
            "the next stage; fix: build the TransformerConfig with overlap_p2p_comm=True, batch_p2p_comm=False "
            "(Platform.transformer_config_overrides does)"
        )
    return _batched_p2p_ops(
        tensor_send_prev=tensor_send_prev,
        tensor_recv_prev=tensor_recv_prev,
        tensor_send_next=tensor_send_next,
        tensor_recv_next=tensor_recv_next,
        group=group,
        prev_pipeline_rank=prev_pipeline_rank,
        next_pipeline_rank=next_pipeline_rank,
    )


PATCHES = [
    Patch(
        target="megatron.core.pipeline_parallel.p2p_communication:_batched_p2p_ops",
        replacement=batched_p2p_ops,
        why="an interleaved pipeline of two stages silently swaps the previous and the next stage's tensors",
        remove_when="batched messages between two ranks have tags",
        signature=(
            "def _batched_p2p_ops(*, tensor_send_prev, tensor_recv_prev, tensor_send_next, tensor_recv_next, group, "
            "prev_pipeline_rank, next_pipeline_rank)"
        ),
    )
]
