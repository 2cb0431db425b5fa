"""Counted figures beside planned ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longvita.planning.dry_run.rank_counts import RankDryRun

Figures = Mapping[int, Mapping[str, int]]
"""For each rank, figures by name; see `counted_figures` for the names."""


@dataclass(frozen=True)
class Comparison:
    """One figure of one rank."""

    rank: int
    name: str
    planned: int
    counted: int

    @property
    def error(self) -> float:
        """Planned over counted, less one."""
        return self.planned / self.counted - 1 if self.counted else float(self.planned != 0)


def counted_figures(ranks: Sequence[RankDryRun]) -> dict[int, dict[str, int]]:
    """What was counted on each rank, by name: numbers and bytes as in RankDryRun, and the activations of each load.

    "activations of LOAD" is the highest moment, micro batches that wait included; "saved for LOAD" what autograd keeps
    of one micro batch.
    """
    figures = {}
    for rank in ranks:
        own = {
            name: getattr(rank, name)
            for name in ("parameters", "trained", "parameter_bytes", "gradient_bytes", "optimizer_bytes")
        }
        for each in rank.activations:
            own[f"activations of {each.load.name}"] = each.total
            own[f"saved for {each.load.name}"] = each.saved
        figures[rank.rank] = own
    return figures


def compare(planned: Figures, counted: Figures) -> list[Comparison]:
    """The figures that both have, rank by rank in the order of `counted`."""
    return [
        Comparison(rank, name, planned[rank][name], value)
        for rank, figures in counted.items()
        for name, value in figures.items()
        if name in planned.get(rank, {})
    ]
