"""Find the checkpoint to resume from: the newest whose files are intact. All functions are collectives."""

from __future__ import annotations

import logging
from pathlib import Path

import torch.distributed as dist

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.manifest import find_damage
from longvita.checkpoint.step_folders import numbered_root, step_folders
from longvita.processes import from_all_ranks

logger = logging.getLogger(__name__)


def newest_intact(root: Path) -> Path | None:
    """The newest intact checkpoint in `root`, None when there is none; rank 0 warns of each damaged one."""
    dist.barrier()
    names: list[str] = from_all_ranks([folder.name for folder in step_folders(root)])[0]
    for folder in (root / name for name in names):  # A shared folder's listing may differ between nodes for a while.
        damage = _damage_found_by_all(folder)
        if not damage:
            return folder
        if dist.get_rank() == 0:
            logger.warning("checkpoint %s is refused: %s", folder.name, "; ".join(damage))
    return None


def resume_point(root: Path) -> Path | None:
    """The checkpoint that a run with its checkpoints in `root` resumes from; None when it has none yet.

    Raises CheckpointError when all existing ones are damaged: to start again would overwrite what is left of the run.
    """
    newest = newest_intact(root)
    if newest is None and any(step_folders(root)):
        raise CheckpointError(
            f"every checkpoint in {root} is damaged (see the warnings above); restore one, "
            "move them away to start from scratch, or choose another output"
        )
    return newest


def intact_checkpoint(folder: Path) -> Path:
    """The checkpoint that `folder` is, or the newest intact one in it or in its `checkpoints` folder.

    Raises CheckpointError when there is none, or when `folder` itself is damaged.
    """
    root = numbered_root(folder)
    if root is not None:
        newest = newest_intact(root)
        if newest is None:
            raise CheckpointError(f"{root} holds no intact checkpoint")
        return newest
    damage = _damage_found_by_all(folder)
    if damage:
        raise CheckpointError(f"checkpoint {folder} is refused: {'; '.join(damage)}")
    return folder


def _damage_found_by_all(folder: Path) -> list[str]:
    """Damage of a folder; each file is read by one rank only."""
    damage = from_all_ranks(find_damage(folder, dist.get_rank(), dist.get_world_size()))
    return sorted({sentence for sentences in damage for sentence in sentences})
