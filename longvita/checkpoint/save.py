"""Save checkpoints: copy the state, write it in the background, then publish the folder under its final name."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.serialization import _CONTENT_METADATA_KEY as CONTENT_METADATA
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

from longvita import files
from longvita.checkpoint.background_write import CommonFiles, SnapshotStrategy
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

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint has been saved and not yet published."""
        return self._pending is not None

    def save(self, state: TrainingState) -> None:
        """Copy the state and write it in the background; `poll` publishes it once every rank has written.

        Waits for the previous checkpoint if that is still being written. Raises CheckpointError as `poll`.
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
        content = sharded_state(state, self.sharding_type) | {CONTENT_METADATA: format_metadata(self.sharding_type)}
        # The sharding is identical each time; exchanging and checking it once is enough. Megatron compares what the
        # ranks store in common; a stage without trainable parameters has no step count.
        sharded, common = save_preprocess(content, first, lambda _: {})
        request = self._strategy.async_save(sharded, folder)
        common_files = CommonFiles(folder, common, self._strategy.base_strategy) if dist.get_rank() == 0 else None
        written = _in_background(partial(self._write, started, common_files, request.async_fn))
        self._pending = _Pending(state.iteration, folder, written, request.finalize_fns, state.config, order)

    def _write(
        self, started: float, common_files: CommonFiles | None, write_part: Callable[[], dict[str, Digest]]
    ) -> dict[str, Digest]:
        """Write this rank's part of a checkpoint, and the files of all ranks where it has them; runs in a thread."""
        if common_files is not None:
            common_files.write()
        digests = write_part()
        self.seconds.append(time.monotonic() - started)
        return digests

    def poll(self, wait: bool = False, timeout: float | None = None) -> Path | None:
        """Publish the pending checkpoint if all ranks have written it, or once they have (`wait`); its folder.

        timeout: longest wait, seconds; without an end when absent. None while there is nothing to publish. Raises
        CheckpointError when a rank could not write; what there is of the checkpoint is deleted then.
        """
        pending = self._pending
        if pending is None:
            return None
        if wait:
            futures.wait([pending.written], timeout)
        if not self._on_all_ranks(pending.written.done()):
            return None
        self._pending = None
        try:
            return self._complete(pending)
        except CheckpointError:
            if dist.get_rank() == 0:
                shutil.rmtree(pending.folder, ignore_errors=True)
            raise

    def _complete(self, pending: _Pending) -> Path:
        """Finish and publish a checkpoint that every rank has written, or failed to write."""
        step, final = pending.step, step_folder(self.root, pending.step)
        outcomes = _on_each_rank(step, pending.written.result)
        for finish in pending.finalize_fns:
            _on_each_rank(step, finish)
        digests = {name: known for one in outcomes for name, known in one.items()}
        _on_each_rank(step, lambda: self._publish(pending, final, digests) if dist.get_rank() == 0 else None)
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
        _on_each_rank(step, lambda: folder.mkdir() if dist.get_rank() == 0 else None)
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


def _on_each_rank(step: int, work: Callable[[], Any]) -> list[Any]:
    """Do a part of a save on every rank; the results by rank. Raises CheckpointError on all if it fails on one."""
    own: tuple[str | None, Any]
    try:
        own = (None, work())
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks wait for this one
        own = (f"{type(error).__name__}: {error}", None)
    outcomes: list[Any] = from_all_ranks(own)
    errors = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(outcomes) if error]
    if errors:
        raise CheckpointError(f"the checkpoint of step {step} was not written: {'; '.join(errors)}")
    return [result for _, result in outcomes]


def _in_background(work: Callable[[], dict[str, Digest]]) -> Future[dict[str, Digest]]:
    """Work in a thread that ends with the process: a store that does not answer must not keep it from ending."""
    future: Future[dict[str, Digest]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error.with_traceback(None))

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


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
