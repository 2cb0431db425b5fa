"""Save checkpoints: copy the state, write it in the background, then publish the folder under its final name."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

from longvita import files
from longvita.checkpoint.background_write import SnapshotStrategy
from longvita.checkpoint.contents import format_metadata, sharded_state, sharded_weights
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.manifest import Digest, write_manifest
from longvita.checkpoint.parameter_order import PARAMETER_ORDER, order_of_stages, order_record
from longvita.checkpoint.step_folders import CONFIG, folders_to_remove, step_folder, step_folders
from longvita.checkpoint.training_state import TrainingState
from longvita.config import dump
from longvita.config.schema import Config
from longvita.model.long_vita import LongVITA
from longvita.platforms.base import Platform
from longvita.processes import from_all_ranks

_PARTIAL = ".partial-"
_REPLACED = ".replaced-"


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    step: int
    folder: Path
    """Its temporary folder."""
    written: Future[dict[str, Digest]]
    """Ends once this rank has written its part, with the checksum of its file."""
    finalize_fns: list[Callable[[], None]]
    """Megatron's part after that, on all ranks together."""
    config: Config
    order: dict[str, Any]
    """Content of parameter_order.json."""


class Checkpointer:
    """Saves the states of one run into `root`, one at a time, and keeps the newest `keep`.

    All methods are collectives over the whole world.
    """

    def __init__(self, root: Path, keep: int, platform: Platform, sharding_type: str | None = None):
        """sharding_type: format of the optimizer's state; None for the platform's own."""
        self.root, self.keep, self.platform = root, keep, platform
        self.sharding_type = sharding_type or platform.optimizer_sharding_type
        self.seconds: deque[float] = deque(maxlen=1)
        """Seconds from the begin of the newest save until this rank had written its part; empty before the first."""
        self._pending: _Pending | None = None
        self._strategy: FullyParallelSaveStrategyWrapper | None = None
        if dist.get_rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            for leftover in [*root.glob(f"{_PARTIAL}*"), *root.glob(f"{_REPLACED}*")]:
                shutil.rmtree(leftover, ignore_errors=True)
        dist.barrier()

    def save(self, state: TrainingState) -> None:
        """Copy the state and write it in the background; `poll` publishes it once every rank has written.

        Waits for the previous checkpoint if that is still being written.
        """
        self.poll(wait=True)
        started = time.monotonic()
        folder = self._new_partial_folder(state.iteration)
        order = order_of_stages(state)
        first = self._strategy is None
        if self._strategy is None:
            # Data-parallel replicas divide their identical tensors among them; the division is computed once.
            self._strategy = FullyParallelSaveStrategyWrapper(
                SnapshotStrategy(), state.groups.dp_cp, do_cache_distribution=True
            )
        request = dist_checkpointing.save(
            sharded_state(state, self.sharding_type),
            str(folder),
            self._strategy,
            # The sharding is identical each time; exchanging and checking it once is enough.
            validate_access_integrity=first,
            async_sharded_save=True,
            # Megatron compares what the ranks store in common; a stage without trainable parameters has no step count.
            preprocess_common_before_consistancy_check=lambda common: {},
            content_metadata=format_metadata(self.sharding_type),
        )
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        written = executor.submit(request.async_fn)
        executor.shutdown(wait=False)
        written.add_done_callback(lambda _: self.seconds.append(time.monotonic() - started))
        self._pending = _Pending(state.iteration, folder, written, request.finalize_fns, state.config, order)

    def poll(self, wait: bool = False) -> Path | None:
        """Publish the pending checkpoint if all ranks have written it, or once they have (`wait`); its folder.

        None while there is nothing to publish. Raises CheckpointError when a rank could not write.
        """
        pending = self._pending
        if pending is None or not (wait or self._on_all_ranks(pending.written.done())):
            return None
        self._pending = None
        failure = pending.written.exception()
        own = (None, pending.written.result()) if failure is None else (f"{type(failure).__name__}: {failure}", {})
        outcomes: list[Any] = from_all_ranks(own)
        errors = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(outcomes) if error]
        if errors:
            raise CheckpointError(f"the checkpoint of step {pending.step} was not written: {'; '.join(errors)}")
        for finish in pending.finalize_fns:
            finish()
        final = step_folder(self.root, pending.step)
        if dist.get_rank() == 0:
            self._publish(pending, final, {name: known for _, digests in outcomes for name, known in digests.items()})
        dist.barrier()
        return final

    def _on_all_ranks(self, done: bool) -> bool:
        flag = torch.tensor(int(done), dtype=torch.int32, device=self.platform.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    def _new_partial_folder(self, step: int) -> Path:
        # A random name: a writer of an earlier, killed run can never write to these files.
        name = [f"{_PARTIAL}{step_folder(self.root, step).name}-{secrets.token_hex(4)}"]
        dist.broadcast_object_list(name, src=0)
        folder = self.root / name[0]
        if dist.get_rank() == 0:
            folder.mkdir()
        dist.barrier()
        return folder

    def _publish(self, pending: _Pending, final: Path, digests: dict[str, Digest]) -> None:
        """Complete the folder, rename it, and delete checkpoints that are no longer kept."""
        _write_json_files(pending.folder, pending.config, pending.order, digests)
        replaced = self.root / f"{_REPLACED}{final.name}"
        if final.exists():
            final.rename(replaced)
        pending.folder.rename(final)
        files.sync_folder(self.root)
        for folder in [replaced, *folders_to_remove(step_folders(self.root), pending.step, self.keep)]:
            shutil.rmtree(folder, ignore_errors=True)


def save_weights(models: Sequence[LongVITA], config: Config, folder: Path, platform: Platform) -> None:
    """Save weights alone as a training checkpoint, which `checkpoint.initial` loads at any layout. A collective.

    The folder must be new or empty.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    metadata = format_metadata(platform.optimizer_sharding_type)
    weights = {"weights": sharded_weights(models, platform)}
    dist_checkpointing.save(weights, str(partial), SnapshotStrategy(), content_metadata=metadata)
    if dist.get_rank() == 0:
        _write_json_files(partial, config, order_record(platform), {})
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    dist.barrier()


def _write_json_files(folder: Path, config: Config, order: dict[str, Any], digests: dict[str, Digest]) -> None:
    """Write config, order of parameters and, last, the manifest."""
    for name, content in ((CONFIG, dump(config)), (PARAMETER_ORDER, order)):
        files.write_atomically(folder / name, json.dumps(content, indent=1) + "\n")
    write_manifest(folder, digests)
