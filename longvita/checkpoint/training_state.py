"""The state of a training process between steps: everything that a checkpoint saves or depends on."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from longvita.checkpoint.step_history import StepHistory
from longvita.config.schema import Config
from longvita.data.audit.sample_accounting import SampleAccounting
from longvita.model.long_vita import LongVITA
from longvita.parallel.groups import ParallelGroups
from longvita.platforms.base import Platform


@dataclass
class TrainingState:
    """Everything that a step changes, and the settings that it uses."""

    config: Config
    groups: ParallelGroups
    platform: Platform
    models: list[LongVITA]
    """The chunks of this process's pipeline stage."""
    chunks: list[DistributedDataParallel]
    """The same chunks wrapped in DDP; forward passes use these."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    micro_batches: int
    """Micro batches of this replica per step."""
    iteration: int = 0
    """Optimizer steps done."""
    consumed_sequences: int = 0
    """Packed sequences that these steps consumed, over all processes."""
    history: StepHistory = field(default_factory=StepHistory)
    """Gradient norms and bad steps so far."""
    sample_accounting: SampleAccounting = field(default_factory=SampleAccounting)
    """Sample accounting of these sequences, as of the newest checkpoint."""
