"""Checkpoints of a run: numbered folders written in the background, found and checked when the run goes on.

Each holds, in Megatron's distributed format, what a run needs to go on at any layout: weights, optimizer, schedule,
position in the data, random states and the config.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import CheckpointingException
from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper
from torch.distributed.checkpoint import CheckpointException

from longvita import files
from longvita.checkpoint import manifest
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.snapshot import BackgroundWrite, SnapshotStrategy
from longvita.checkpoint.training_state import TrainingState
from longvita.config import dump
from longvita.config.schema import Config
from longvita.data.audit.sample_accounting import SampleAccounting
from longvita.model.long_vita import EXTRA_STATE, LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform

logger = logging.getLogger(__name__)

CONFIG = "config.json"
"""The run's config, for people and for tools that read the folder."""
FULLY_RESHARDABLE = "fully_reshardable"
"""Megatron's optimizer format that holds each parameter's state whole, for any layout."""
_PARTIAL = ".partial-"
_REPLACED = ".replaced-"

_MISFITS = (CheckpointingException, CheckpointException, KeyError)
"""What Megatron and torch raise when a tensor or a parameter group is missing or has another shape."""


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    step: int
    folder: Path
    """Where it is written; it gets its name when it is whole."""
    write: BackgroundWrite
    config: Config


class Checkpointer:
    """Saves the states of one run into `root`, one at a time, and keeps the newest.

    All methods are collectives over the whole world.
    """

    def __init__(self, root: Path, keep: int, platform: Platform, sharding_type: str | None = None):
        """sharding_type: format of the optimizer's state; the one that the platform trains with when None."""
        self.root, self.keep, self.platform = root, keep, platform
        self.sharding_type = sharding_type or platform.optimizer_sharding_type
        self._pending: _Pending | None = None
        self._snapshots = SnapshotStrategy()
        self._strategy: FullyParallelSaveStrategyWrapper | None = None
        if dist.get_rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            for leftover in [*root.glob(f"{_PARTIAL}*"), *root.glob(f"{_REPLACED}*")]:
                shutil.rmtree(leftover, ignore_errors=True)
        dist.barrier()

    def save(self, state: TrainingState) -> None:
        """Copy the state and write it in the background; `poll` gives it its name once every rank has written.

        Waits for the checkpoint before it, if that is still being written.
        """
        self.poll(wait=True)
        folder = self._partial_folder(state.iteration)
        first = self._strategy is None
        if self._strategy is None:
            # Data-parallel replicas share out what they hold alike; how, is settled once.
            self._strategy = FullyParallelSaveStrategyWrapper(
                self._snapshots, state.groups.dp_cp, do_cache_distribution=True
            )
        request = dist_checkpointing.save(
            _sharded_state(state, self.sharding_type),
            str(folder),
            self._strategy,
            # The sharding is the same each time; exchanging and checking it once is enough.
            validate_access_integrity=first,
            async_sharded_save=True,
            preprocess_common_before_consistancy_check=_nothing,
            content_metadata=_metadata(self.sharding_type),
        )
        if request is None or self._snapshots.writer is None:
            raise CheckpointError(f"megatron-core did not plan the checkpoint of step {state.iteration}")
        write = BackgroundWrite(request, self._snapshots.writer)
        self._pending = _Pending(state.iteration, folder, write, state.config)

    def poll(self, wait: bool = False) -> Path | None:
        """Finish the checkpoint under way if all ranks have written it, or once they have (`wait`); its folder.

        Raises CheckpointError when a rank could not write.
        """
        pending = self._pending
        if pending is None or not (wait or self._everywhere(pending.write.done)):
            return None
        self._pending = None
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, (pending.write.wait(), pending.write.writer.digests))
        errors = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(outcomes) if error]
        if errors:
            raise CheckpointError(f"the checkpoint of step {pending.step} was not written: {'; '.join(errors)}")
        for finish in pending.write.request.finalize_fns:
            finish()
        final = manifest.step_folder(self.root, pending.step)
        if dist.get_rank() == 0:
            self._name(pending, final, {name: known for _, digests in outcomes for name, known in digests.items()})
        dist.barrier()
        return final

    def _everywhere(self, done: bool) -> bool:
        flag = torch.tensor(int(done), dtype=torch.int32, device=self.platform.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        return bool(flag)

    def _partial_folder(self, step: int) -> Path:
        # A name of its own: a writer of an earlier, killed run can never touch these files.
        name = [f"{_PARTIAL}{manifest.step_folder(self.root, step).name}-{secrets.token_hex(4)}"]
        dist.broadcast_object_list(name, src=0)
        folder = self.root / name[0]
        if dist.get_rank() == 0:
            folder.mkdir()
        dist.barrier()
        return folder

    def _name(self, pending: _Pending, final: Path, digests: dict[str, manifest.Digest]) -> None:
        files.write_atomically(pending.folder / CONFIG, json.dumps(dump(pending.config), indent=1) + "\n")
        manifest.write_manifest(pending.folder, digests)
        replaced = self.root / f"{_REPLACED}{final.name}"
        if final.exists():
            final.rename(replaced)
        pending.folder.rename(final)
        files.sync_folder(self.root)
        old = manifest.folders_to_remove(manifest.step_folders(self.root), pending.step, self.keep)
        for folder in [replaced, *old]:
            shutil.rmtree(folder, ignore_errors=True)


def _nothing(common: dict) -> dict:
    """Megatron compares what ranks would store in common; a stage without trainable parameters has no step count."""
    return {}


def _metadata(sharding_type: str) -> dict[str, Any]:
    return {"distrib_optim_sharding_type": sharding_type, "chained_optim_avoid_prefix": True}


def _layout(groups: ParallelGroups) -> dict[str, int]:
    return {"tp": groups.tp_size, "pp": groups.pp_size, "cp": groups.cp_size, "dp": groups.dp_size}


def _sharded_weights(models: list[LongVITA], platform: Platform) -> dict[str, Any]:
    metadata = _metadata(platform.optimizer_sharding_type)
    return {f"chunk{index}": model.sharded_state_dict(metadata=metadata) for index, model in enumerate(models)}


def _sharded_state(state: TrainingState, sharding_type: str, loading: bool = False) -> dict[str, Any]:
    weights = _sharded_weights(state.models, state.platform)
    with _positions_without_padding(state.optimizer), _steps_as_numbers(state.optimizer):
        optimizer = state.optimizer.sharded_state_dict(weights, is_loading=loading, metadata=_metadata(sharding_type))
    sharded = {"weights": weights, "optimizer": optimizer}
    return sharded if loading else sharded | {"run": _run_facts(state)}


@contextlib.contextmanager
def _positions_without_padding(optimizer: Any) -> Iterator[None]:
    """Puts each parameter's position in its buffer where the fully reshardable format looks for it.

    megatron-core 0.16.1 gathers the optimizer's state bucket by bucket without the padding at their ends, but cuts the
    parameters out of it at positions that count that padding: from the second bucket on (shared embeddings have one of
    their own, models above 40 million parameters have several) each would be stored with its neighbour's values.
    """
    buffers = [buffer for one in optimizer.chained_optimizers for buffer in getattr(one, "buffers", [])]
    padded = [buffer.param_index_map for buffer in buffers]
    try:
        for buffer in buffers:
            sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
            shifts = [bucket.offset - sum(sizes[:index]) for index, bucket in enumerate(buffer.buckets)]
            buffer.param_index_map = {
                parameter: (start - shifts[bucket], end - shifts[bucket], bucket)
                for parameter, (start, end, bucket) in buffer.param_index_map.items()
            }
        yield
    finally:
        for buffer, positions in zip(buffers, padded, strict=True):
            buffer.param_index_map = positions


@contextlib.contextmanager
def _steps_as_numbers(optimizer: Any) -> Iterator[None]:
    """Holds each parameter group's count of steps as a number while the optimizer is stored.

    MindSpeed's Adam counts in a tensor of the device, one for each group. megatron-core 0.16.1 puts the counts in a set
    and refuses to store more than one, and tensors of one value are two there; nor could another platform read them.
    """
    groups = [group for group in optimizer.param_groups if "step" in group]
    counts = [group["step"] for group in groups]
    try:
        for group, count in zip(groups, counts, strict=True):
            group["step"] = int(count)
        yield
    finally:
        for group, count in zip(groups, counts, strict=True):
            group["step"] = count


def _run_facts(state: TrainingState) -> dict[str, Any]:
    """What is not a tensor of the model: the same on every rank, stored once."""
    random_states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(random_states, state.platform.rng_state())
    return {
        "iteration": state.iteration,
        "consumed_sequences": state.consumed_sequences,
        "account": state.sample_accounting.to_facts(),
        "scheduler": state.scheduler.state_dict(),
        "layout": _layout(state.groups),
        "platform": state.platform.name,
        "random_states": random_states,
        "config": dump(state.config),
    }


def find_newest(root: Path) -> Path | None:
    """The newest whole checkpoint in `root`, None when there is none; damaged ones are named in a warning.

    A collective: the ranks share the files out and read each once.
    """

    def warn(message: str) -> None:
        if dist.get_rank() == 0:
            logger.warning("%s", message)

    dist.barrier()
    return manifest.newest_intact(root, warn, _shared_damage)


def resume_point(root: Path) -> Path | None:
    """The checkpoint that a run with its checkpoints in `root` goes on from; None when it has none yet. A collective.

    Raises CheckpointError when all that there are are damaged: to begin anew would overwrite what is left of the run.
    """
    newest = find_newest(root)
    if newest is None and any(manifest.step_folders(root)):
        raise CheckpointError(
            f"every checkpoint in {root} is damaged (see the warnings above); bring one back, "
            "move them away to begin anew, or choose another output"
        )
    return newest


def _shared_damage(folder: Path) -> list[str]:
    """manifest.find_damage, each file read by one rank only."""
    damage: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(damage, manifest.find_damage(folder, (dist.get_rank(), dist.get_world_size())))
    return sorted({sentence for sentences in damage for sentence in sentences})


@torch.no_grad()  # fp32 main parameters are views of the weights, which are written in place
def load_state(state: TrainingState, folder: Path, foreign: bool = False) -> None:
    """Go on from a checkpoint, at any layout that its optimizer format allows; a collective.

    Rates come from the config, all else from the checkpoint. Random states are put back at the same layout of the same
    platform only. foreign: load a fully reshardable optimizer state past the platform's own way, which may not be able
    to; see longvita.convert.optimizer_format. Raises CheckpointError when the checkpoint is of another run (a field
    that the state depends on differs), or in a format that cannot be loaded here.
    """
    common = dist_checkpointing.load_common_state_dict(str(folder))
    facts = _facts(common, folder)
    _check_same_run(facts["config"], dump(state.config), folder)
    sharding_type = dist_checkpointing.load_content_metadata(preloaded_state_dict=common)["distrib_optim_sharding_type"]
    _check_format(sharding_type, facts, state, folder, foreign)
    settings = [{k: v for k, v in g.items() if k not in ("params", "step")} for g in state.optimizer.param_groups]
    try:
        loaded = dist_checkpointing.load(_sharded_state(state, sharding_type, loading=True), str(folder))
        _load_weights(state.models, loaded["weights"])
        if foreign and sharding_type == FULLY_RESHARDABLE:
            _load_optimizer(state.optimizer, loaded["optimizer"])
        else:
            state.optimizer.load_state_dict(loaded["optimizer"])
    except _MISFITS as error:
        raise CheckpointError(f"{folder} does not fit this run: {_reason(error)}") from error
    for group, kept in zip(state.optimizer.param_groups, settings, strict=True):
        group.update(kept)
        if "step" in group:
            group["step"] = state.platform.optimizer_step(int(group["step"]))
    state.scheduler.num_steps = 0
    state.scheduler.load_state_dict(facts["scheduler"])
    state.iteration, state.consumed_sequences = facts["iteration"], facts["consumed_sequences"]
    state.sample_accounting = SampleAccounting.from_facts(facts.get("account"), state.consumed_sequences)
    if (facts["layout"], _platform(facts)) == (_layout(state.groups), state.platform.name):
        state.platform.set_rng_state(facts["random_states"][dist.get_rank()])


def _load_optimizer(optimizer: Any, loaded: dict[str, Any]) -> None:
    """Puts fully reshardable state into Megatron's distributed optimizer by parameters, without its load_state_dict."""
    steps = {group["step"] for group in loaded["optimizer"]["param_groups"] if "step" in group}
    for one in optimizer.chained_optimizers:
        one.load_parameter_state_from_fully_reshardable(loaded["param_state"])
        for group in one.optimizer.param_groups:
            group["step"] = max(steps, default=0)


def load_weights(models: list[LongVITA], folder: Path, platform: Platform) -> None:
    """Fill built chunks with a checkpoint's weights alone, at any layout; a collective.

    Raises CheckpointError naming the tensor and both shapes when the models differ.
    """
    try:
        loaded = dist_checkpointing.load({"weights": _sharded_weights(models, platform)}, str(folder))
        _load_weights(models, loaded["weights"])
    except _MISFITS as error:
        raise CheckpointError(f"the weights of {folder} do not fit the model: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The error's own words; torch wraps those of several ranks into one with all their tracebacks."""
    if isinstance(error, CheckpointException):
        return "; ".join(sorted({str(failure) for failure, _ in error.failures.values()}))
    return str(error)


def _load_weights(models: list[LongVITA], loaded: dict[str, Any]) -> None:
    """Raises KeyError for a parameter or buffer that is not among what was loaded, or the other way round."""
    for index, model in enumerate(models):
        left = model.load_state_dict(loaded[f"chunk{index}"], strict=False)
        wrong = [name for name in (*left.missing_keys, *left.unexpected_keys) if not name.endswith(EXTRA_STATE)]
        if wrong:
            raise KeyError(f"weights that are on one side only: {', '.join(wrong)}")


def intact_checkpoint(folder: Path) -> Path:
    """The checkpoint that `folder` is, or the newest whole one in it or in its `checkpoints` folder; a collective.

    Raises CheckpointError when there is none, or when `folder` itself is damaged.
    """
    root = manifest.numbered_root(folder)
    if root is not None:
        newest = find_newest(root)
        if newest is None:
            raise CheckpointError(f"{root} holds no whole checkpoint")
        return newest
    damage = _shared_damage(folder)
    if damage:
        raise CheckpointError(f"checkpoint {folder} is refused: {'; '.join(damage)}")
    return folder


_SAME_FIELDS = (
    "model",
    "seed",
    "data.sequence_length",
    "data.isolate_documents",
    "data.max_num_tiles",
    "data.max_num_frames",
    "data.max_fps",
    "training.trainable",
    "training.precision",
    "optimizer.vision_lr_mult",
    "optimizer.projector_lr_mult",
    "optimizer.vision_layer_decay",
)


def fields_of_another_run(folder: Path, config: Config) -> dict[str, Any]:
    """Fields that the state in a checkpoint depends on and that a config changes, with the checkpoint's values.

    Raises CheckpointError for a checkpoint of weights alone.
    """
    saved = _facts(dist_checkpointing.load_common_state_dict(str(folder)), folder)["config"]
    return {name: _field(saved, name) for name in _differing(saved, dump(config))}


def _facts(common: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a checkpoint holds of its run beside tensors."""
    if "run" not in common:
        raise CheckpointError(
            f"{folder} holds weights alone: no run can go on from it; start from it (checkpoint.initial={folder})"
        )
    return common["run"]


def _check_same_run(saved: dict[str, Any], current: dict[str, Any], folder: Path) -> None:
    differences = [
        f"{name} is {_field(current, name)!r}, in the checkpoint {_field(saved, name)!r}"
        for name in _differing(saved, current)
    ]
    if differences:
        raise CheckpointError(
            f"{folder} is of another run: {'; '.join(differences)}. Go on with the old values, or start anew in "
            f"another folder (output=...), from these weights if wanted (checkpoint.initial={folder})"
        )


def _differing(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    names = [name for name in _SAME_FIELDS if name != "model" and _field(saved, name) != _field(current, name)]
    for part in ("vision", "projector", "language"):
        old, new = saved["model"][part], current["model"][part]
        names += [f"model.{part}.{key}" for key in new if old.get(key) != new[key]]
    return names + (["data.dataset"] if _mix(saved) != _mix(current) else [])


def _mix(config: dict[str, Any]) -> dict[str, tuple]:
    sources = config["data"]["dataset"]
    return {name: (source["ratio"], source["num"], source["data_paths"]) for name, source in sources.items()}


def _field(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values.get(key)
    return values


def _check_format(sharding_type: str, facts: dict[str, Any], state: TrainingState, folder: Path, foreign: bool) -> None:
    """Formats other than the fully reshardable one hold the optimizer's state as one platform's process held it: cut
    for the layout it was saved at, with parameters in the order of that platform's layers.
    """
    platform, fix = state.platform, f"or start from the weights (checkpoint.initial={folder})"
    if sharding_type == FULLY_RESHARDABLE:
        if sharding_type == platform.optimizer_sharding_type or foreign:
            return
        convert = f"longvita convert --from {folder} --to FOLDER --format checkpoint --optimizer"
        raise CheckpointError(
            f"platform {platform.name} cannot load the optimizer of {folder}, which is {sharding_type}: make one that "
            f"it can by `{convert} {platform.optimizer_sharding_type} --layout LAYOUT`, {fix}"
        )
    if _platform(facts) != platform.name:
        raise CheckpointError(
            f"{folder} was saved on platform {_platform(facts)} as {sharding_type}, in the order of its own layers: on "
            f"that platform `longvita convert --from {folder} --to FOLDER --format checkpoint --optimizer "
            f"{FULLY_RESHARDABLE} --layout LAYOUT` makes one for all, {fix}"
        )
    saved, current = facts["layout"], _layout(state.groups)
    fixed = [name for name in ("tp", "pp") if saved[name] != current[name]]
    if fixed:
        raise CheckpointError(
            f"{folder} was saved at {saved} as {sharding_type}, this run has {current}: that format can go on at "
            f"another dp only; keep {' and '.join(fixed)}, {fix}"
        )


def _platform(facts: dict[str, Any]) -> str:
    """Where a checkpoint was saved; those of before this was written down are of the CPU."""
    return facts.get("platform", "cpu")
