"""Asynchronous checkpoints of CPU tensors."""

from __future__ import annotations

from typing import Any

import torch

from megatron_patches.patch import Patch


def preload_tensors(write_buckets: list, non_blocking: bool = True) -> list:
    """The buckets with a copy of every tensor: (file name, key, (bytes, [(item, tensor), ...])).

    The original moves tensors to the CPU, which leaves those that are there already shared with the model.
    """
    return [
        (file_name, key, (bytes_data, [(item, _copy(tensor)) for item, tensor in tensor_data]))
        for file_name, key, (bytes_data, tensor_data) in write_buckets
    ]


def _copy(tensor: torch.Tensor) -> Any:
    return tensor.detach().clone()


PATCHES = [
    Patch(
        target="megatron.core.dist_checkpointing.strategies.filesystem_async:FileSystemWriterAsync.preload_tensors",
        replacement=staticmethod(preload_tensors),
        why="CPU tensors are not copied, so the file may hold values of a later step",
        versions="megatron-core==0.16.1",
        remove_when="preload_tensors copies CPU tensors",
        signature="staticmethod def preload_tensors(write_buckets, non_blocking=True)",
    )
]
