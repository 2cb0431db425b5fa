"""Write Megatron's distributed checkpoint in a thread, from a copy made before training continues.

The writer is our own: Megatron's asynchronous writers need either a fork of a process with communication threads, or
helper processes that outlive a killed trainer, and one of them does not copy tensors that are already in host memory.
Here every tensor is copied first, and the thread ends with its process.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies import state_dict_saver
from megatron.core.dist_checkpointing.strategies import torch as torch_format
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from torch.distributed.checkpoint.filesystem import SerializationFormat, _write_item
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from longvita.checkpoint.manifest import Digest, digest


class SnapshotWriter(FileSystemWriterAsync):
    """Copies this rank's part of a checkpoint, then writes it to one file and computes the file's checksum."""

    def __init__(self, folder: str):
        super().__init__(folder, thread_count=1)
        self.items: list[tuple[Any, Any]] = []
        self.file_name = ""
        self.results: list[WriteResult] = []
        self.failure: OSError | None = None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the plan as it is: the folder was made for all ranks, and a store that is away fails the write."""
        return plan

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        """Copy the data of every item in the plan to host memory."""
        self.file_name = f"{plan.storage_data.prefix}0.distcp"
        self.items = [(item, _copy(planner.resolve_data(item), item)) for item in plan.items]

    def write(self) -> dict[str, Digest]:
        """Write the copies; runs in a thread. The checksum of the file by its name, nothing without items."""
        items, self.items = self.items, []  # An error keeps this object alive, and must not keep the copies.
        try:
            return self._write(items) if items else {}
        finally:
            items.clear()

    def _write(self, items: list[tuple[Any, Any]]) -> dict[str, Digest]:
        path = Path(self.checkpoint_dir) / self.file_name
        with path.open("wb") as stream:
            for item, data in items:
                self.results.append(
                    _write_item(self.transforms, stream, data, item, self.file_name, SerializationFormat.TORCH_SAVE)
                )
            stream.flush()
            os.fsync(stream.fileno())
        return {self.file_name: digest(path)}

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write Megatron's table of contents; keep a failure in `failure`, since the other ranks wait for this one."""
        try:
            super().finish(metadata, results)
        except OSError as error:
            self.failure = error

    def retrieve_write_results(self) -> list[WriteResult]:
        """The position of each item in the file."""
        return self.results


def _copy(data: Any, item: Any) -> Any:
    if item.type == WriteItemType.BYTE_IO:
        return data
    return data.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


class SnapshotStrategy(torch_format.TorchDistSaveShardedStrategy):
    """Megatron's torch_dist format, written by a SnapshotWriter."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1, thread_count=1)

    def async_save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> AsyncRequest:
        """Copy and plan. A collective. The request writes (`async_fn`), then finishes on all ranks (`finalize_fns`)."""
        sharded_state_dict, _, _ = torch_format._replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        writer = SnapshotWriter(str(checkpoint_dir))
        plan, *_ = state_dict_saver.save_state_dict_async_plan(
            torch_format.mcore_to_pyt_state_dict(sharded_state_dict, False),
            writer,
            planner=torch_format.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )

        def finalize() -> None:
            state_dict_saver.save_state_dict_async_finalize(*plan)
            if writer.failure is not None:
                raise writer.failure

        return AsyncRequest(writer.write, (), [finalize])


class CommonFiles:
    """The files of a checkpoint that one rank writes for all: what is not sharded, and the format's name.

    Megatron writes them while the ranks copy their state, where a full disk on one rank leaves the others waiting.
    """

    def __init__(self, folder: Path, common: dict[str, Any], strategy: SnapshotStrategy):
        """Copy what is to be written; `common` is what Megatron's `save_preprocess` returned."""
        content = io.BytesIO()
        torch.save(common, content)
        self._folder, self._content = folder, content.getvalue()
        self._format = CheckpointingConfig(strategy.backend, strategy.version)

    def write(self) -> None:
        """Write the files; runs in a thread."""
        (self._folder / COMMON_STATE_FNAME).write_bytes(self._content)
        save_config(self._format, str(self._folder))
