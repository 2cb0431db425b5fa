"""The process groups of a run, in one object that is passed as an argument."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection

from longvita.config.schema import LayoutConfig


@dataclass(frozen=True)
class ParallelGroups:
    """Process groups of this process, with its ranks and their sizes, for one layout."""

    language: ProcessGroupCollection
    """Groups for Megatron's language modules. Their context-parallel group is this process alone: modules work on the
    rows of this process, and only attention communicates with other CP ranks (longvita.attention).
    """
    vision: ProcessGroupCollection
    """Groups of this process alone, for the vision encoder, which is replicated on every TP rank."""
    tp: dist.ProcessGroup
    pp: dist.ProcessGroup
    dp: dist.ProcessGroup
    cp: dist.ProcessGroup
    cp_ulysses: dist.ProcessGroup
    """The part of the CP group in which attention exchanges rows for heads."""
    cp_ring: dist.ProcessGroup
    """One rank of each such part: the ring in which keys and values travel."""
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
        """Rank among the processes of a replica's stage (TP x CP), which divide its tiles."""
        return self.tp_cp.rank()

    @property
    def vision_size(self) -> int:
        """Number of processes of a replica's stage (TP x CP), which divide its tiles."""
        return self.tp_cp.size()

    @property
    def is_first_stage(self) -> bool:
        """Whether this process holds the first pipeline stage: vision encoder and word embeddings."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this process holds the last pipeline stage: output layer and loss."""
        return self.pp_rank == self.pp_size - 1

    def destroy(self) -> None:
        """Destroy the groups. Groups of another layout can then be built in the same processes."""
        parallel_state.destroy_model_parallel()


def build_groups(layout: LayoutConfig, backend: str, ulysses: int) -> ParallelGroups:
    """Build the groups of a layout over all processes of torch.distributed.

    backend: of torch.distributed; ulysses: CP ranks that exchange rows for heads in attention. The order of ranks is
    Megatron's: TP varies fastest, then CP, DP, PP. Raises ValueError when the number of processes is not a multiple of
    TP x PP x CP, or torch.distributed is not initialised.
    """
    replica = layout.tensor_parallel * layout.pipeline_parallel * layout.context_parallel
    world = dist.get_world_size()
    if world % replica:
        raise ValueError(
            f"{world} processes cannot hold replicas of {replica} (layout.tensor_parallel {layout.tensor_parallel} x "
            f"pipeline_parallel {layout.pipeline_parallel} x context_parallel {layout.context_parallel}); "
            f"start a multiple of {replica} processes"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_parallel,
        pipeline_model_parallel_size=layout.pipeline_parallel,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context_parallel,
        # Additional gloo groups, except where the backend is gloo itself or the groups send nothing (dry run).
        create_gloo_process_groups=backend not in ("gloo", "fake"),
    )
    collection = ProcessGroupCollection.use_mpu_process_groups()
    language, alone = copy.copy(collection), _group_of_one()
    language.cp = alone
    cp_ulysses, cp_ring = _parts_of_cp(collection.cp, ulysses)
    return ParallelGroups(
        language=language,
        vision=ProcessGroupCollection(
            tp=alone, pp=alone, cp=alone, mp=alone, tp_cp=alone, dp=alone, dp_cp=alone, embd=None, pos_embd=None
        ),
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
    """Split a CP group into runs of `ulysses` ranks; return this process's run, and its ring over the runs."""
    if ulysses == 1:
        return _group_of_one(), cp
    if ulysses == cp.size():
        return cp, _group_of_one()
    rank = dist.get_rank()
    own = _group_of_one(), _group_of_one()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, dist.get_process_group_ranks(cp))
    # Every process takes part in the creation of every group, also of groups that it is not in.
    for ranks in sorted(set(map(tuple, everyone))):
        runs = [ranks[start : start + ulysses] for start in range(0, len(ranks), ulysses)]
        made = [dist.new_group(run) for run in runs], [dist.new_group(ring) for ring in zip(*runs, strict=True)]
        if rank in ranks:
            place = ranks.index(rank)
            own = made[0][place // ulysses], made[1][place % ulysses]
    return own


def _group_of_one() -> dist.ProcessGroup:
    # The model has no experts, so Megatron's expert-parallel group is this process alone. Reusing it avoids creating a
    # group per process, each of which costs a collective call.
    return parallel_state.get_expert_model_parallel_group()
