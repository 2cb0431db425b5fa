"""Save a run's checkpoint again with the optimizer's state in another format.

`fully_reshardable` stores each parameter's complete state: any layout and any platform can resume from it, if its
optimizer can load it. `dp_reshardable` stores the shards of each process of one platform: MindSpeed's optimizer loads
this format, and only the platform that saved it can read it, since its parameters are in the order of that platform's
layers. Both conversions therefore run on the platform of the `dp_reshardable` checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from longvita.config.schema import Config

if TYPE_CHECKING:
    from longvita.parallel.groups import ParallelGroups
    from longvita.platforms.base import Platform

FORMATS = ("fully_reshardable", "dp_reshardable")


def resave(
    source: Path, target: Path, sharding_type: str, config: Config, groups: ParallelGroups, platform: Platform
) -> None:
    """Save the newest checkpoint of `source` again, into the output folder `target` of a run that will resume from it.

    Weights, optimizer, schedule and position in the data are kept; random states only at the same layout. A collective.
    Raises CheckpointError as longvita.checkpoint.load.load_state does.
    """
    # Not at the top: a platform must be activated before megatron-core is imported.
    from longvita.checkpoint.load import load_state
    from longvita.checkpoint.resume import intact_checkpoint
    from longvita.checkpoint.save import Checkpointer
    from longvita.checkpoint.step_folders import checkpoint_root
    from longvita.model.build import build_model
    from longvita.training.state import build_state

    folder = intact_checkpoint(source)
    state = build_state(config, groups, platform, build_model(config, groups, platform, fresh=False))
    load_state(state, folder, foreign=True)
    checkpointer = Checkpointer(checkpoint_root(target), keep=1, platform=platform, sharding_type=sharding_type)
    checkpointer.save(state)
    checkpointer.poll(wait=True)
