"""The process groups of a run, in one object that is handed to whoever needs them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from longvita.config.schema import Config


@dataclass(frozen=True)
class ParallelGroups:
    """Process groups, ranks and sizes of one layout, seen from this process."""

    language: ProcessGroupCollection
    """Megatron's groups for its language modules, which shall know nothing of context parallelism: each works on the
    rows that this process holds, and attention alone sees the others (longvita.attention).
    """
    vision: ProcessGroupCollection
    """Groups of size one, for the vision tower, which every TP rank holds whole."""
    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup
    cp: dist.ProcessGroup
    cp_ulysses: dist.ProcessGroup
    """The part of the CP group that trades rows for heads in attention."""
    cp_ring: dist.ProcessGroup
    """One rank of each such part, around which keys and values travel."""
    tp_cp: dist.ProcessGroup
    dp_cp: dist.ProcessGroup

    @property
    def tp_rank(self) -> int:
        """Rank in the tensor-parallel group."""
        return self.tp.rank()

    @property
    def tp_size(self) -> int:
        """Size of the tensor-parallel group."""
        return self.tp.size()

    @property
    def pp_rank(self) -> int:
        """Pipeline stage."""
        return self.pp.rank()

    @property
    def pp_size(self) -> int:
        """Number of pipeline stages."""
        return self.pp.size()

    @property
    def dp_rank(self) -> int:
        """Rank in the data-parallel group (context parallel not counted)."""
        return self.dp.rank()

    @property
    def dp_size(self) -> int:
        """Number of model replicas."""
        return self.dp.size()

    @property
    def cp_rank(self) -> int:
        """Rank in the context-parallel group."""
        return self.cp.rank()

    @property
    def cp_size(self) -> int:
        """Size of the context-parallel group."""
        return self.cp.size()

    @property
    def vision_rank(self) -> int:
        """Rank among the processes of a replica's stage that share its tiles (TP x CP)."""
        return self.tp_cp.rank()

    @property
    def vision_size(self) -> int:
        """Number of processes of a replica's stage that share its tiles (TP x CP)."""
        return self.tp_cp.size()

    @property
    def is_first_stage(self) -> bool:
        """Whether this process holds the first pipeline stage: vision tower and word embeddings."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this process holds the last pipeline stage: output layer and loss."""
        return self.pp_rank == self.pp_size - 1

    def destroy(self) -> None:
        """Ends the groups; another layout can be initialised in the same processes after it."""
        parallel_state.destroy_model_parallel()


def initialize(config: Config, platform: Any) -> ParallelGroups:
    """Builds the groups of a config's layout over the whole torch.distributed world.

    The order of ranks is Megatron's: TP varies fastest, then CP, DP, PP. Raises ValueError when the world is not a
    multiple of TP x PP x CP, RuntimeError when torch.distributed is not initialised.
    """
    if not dist.is_initialized():
        raise RuntimeError("torch.distributed is not initialised; call longvita.processes.init_distributed first")
    layout = config.layout
    replica = layout.tensor_parallel * layout.pipeline_parallel * layout.context_parallel
    world = dist.get_world_size()
    if world % replica:
        raise ValueError(
            f"{world} processes cannot hold replicas of {replica} (layout.tensor_parallel {layout.tensor_parallel} x "
            f"pipeline_parallel {layout.pipeline_parallel} x context_parallel {layout.context_parallel}); "
            f"start a multiple of {replica} processes"
        )
    platform.configure(config)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context_parallel,
        # Gloo groups beside the device's; a dry run's groups send nothing.
        create_gloo_process_groups=platform.backend not in ("gloo", "fake"),
    )
    collection = ProcessGroupCollection.use_mpu_process_groups()
    language = copy.copy(collection)
    language.cp = _group_of_one()
    cp_ulysses, cp_ring = _parts_of_cp(collection.cp, platform.ulysses_size(config))
    return ParallelGroups(
        language=language,
        vision=_groups_of_one(),
        tp=collection.tp,
        pp=collection.pp,
        dp=collection.dp,
        cp=collection.cp,
        cp_ulysses=cp_ulysses,
        cp_ring=cp_ring,
        tp_cp=collection.tp_cp,
        dp_cp=collection.dp_cp,
    )


def _parts_of_cp(cp: dist.ProcessGroup, ulysses: int) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """The runs of `ulysses` ranks that a CP group consists of, and the ring over them: those of this process."""
    if ulysses == 1:
        return _group_of_one(), cp
    if ulysses == cp.size():
        return cp, _group_of_one()
    rank = dist.get_rank()
    own = _group_of_one(), _group_of_one()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, dist.get_process_group_ranks(cp))
    # A group is made by all processes together, those that are not in it included.
    for ranks in sorted(set(map(tuple, everyone))):
        runs = [ranks[start : start + ulysses] for start in range(0, len(ranks), ulysses)]
        made = [dist.new_group(run) for run in runs], [dist.new_group(ring) for ring in zip(*runs, strict=True)]
        if rank in ranks:
            place = ranks.index(rank)
            own = made[0][place // ulysses], made[1][place % ulysses]
    return own


def _group_of_one() -> dist.ProcessGroup:
    # The model has no experts, so Megatron's expert-parallel group is this process alone: reusing it spares a new
    # group per process, which costs a collective call each in a large job.
    return parallel_state.get_expert_model_parallel_group()


def _groups_of_one() -> ProcessGroupCollection:
    alone = _group_of_one()
    return ProcessGroupCollection(
        tp=alone, pp=alone, cp=alone, mp=alone, tp_cp=alone, dp=alone, dp_cp=alone, embd=None, pos_embd=None
    )
