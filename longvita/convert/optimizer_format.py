"""Checkpoints of a run in another format of the optimizer's state.

`fully_reshardable` holds each parameter's state whole: any layout and any platform can go on from it, if its optimizer
can load it. `dp_reshardable` holds what each process of one platform held: it is the format that MindSpeed's optimizer
loads, and only that platform can read it, for the order of parameters in it is that of the platform's layers. So both
ways are gone on the platform of the `dp_reshardable` checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longvita.config.schema import Config
from longvita.parallel.groups import ParallelGroups

FORMATS = ("fully_reshardable", "dp_reshardable")


def resave(
    source: Path, target: Path, sharding_type: str, config: Config, groups: ParallelGroups, platform: Any
) -> None:
    """Writes the newest checkpoint of `source` anew into the output folder `target` of a run that goes on from it.

    Weights, optimizer, schedule and position in the data are kept; random states only at the same layout. A collective.
    Raises CheckpointError, see longvita.checkpoint.load.load_state.
    """
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
