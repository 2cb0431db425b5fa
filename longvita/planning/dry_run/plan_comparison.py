"""Figures of a plan against those that a dry run counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longvita.config.schema import Config
from longvita.planning.dry_run.rank_counts import RankDryRun
from longvita.planning.hardware import Hardware
from longvita.planning.memory import stage_memories, with_values


@dataclass(frozen=True)
class Comparison:
    """One figure of one rank: a number of parameters, or bytes."""

    rank: int
    name: str
    planned: int
    counted: int

    @property
    def error(self) -> float:
        """Planned over counted, less one."""
        return self.planned / self.counted - 1 if self.counted else float(self.planned != 0)


def compare_with_plan(
    config: Config, world_size: int, hardware: Hardware, ranks: Sequence[RankDryRun]
) -> list[Comparison]:
    """Compare ranks with the plan: parameters, bytes of state, and the peak of activations for each of the contents."""
    # A dry run computes in bf16.
    config = with_values(config, "training", fp8=None)
    found = []
    for rank in ranks:
        figures: dict[str, tuple[int, int]] = {}
        for each in rank.activations:
            planned = next(stage_memories(config, world_size, hardware, [each.contents], [rank.stage]))
            figures |= {
                "parameters": (planned.parameter_count, rank.parameters),
                "parameter_bytes": (planned.parameters, rank.parameter_bytes),
                "gradient_bytes": (planned.gradients, rank.gradient_bytes),
                "optimizer_bytes": (planned.optimizer, rank.optimizer_bytes),
                f"activations of {each.contents.name}": (planned.activations, each.total),
            }
        found += [Comparison(rank.rank, name, *pair) for name, pair in figures.items()]
    return found
