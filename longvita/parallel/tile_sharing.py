"""Tiles shared out over the ranks of a replica, and their feature rows carried to the ranks that own them.

Each tile is decoded and encoded once, by one rank of the replica's TP x CP group. Which one follows from the number of
tiles alone, so every rank knows it without asking. The rows of the features then travel to the ranks whose slice of the
sequence holds their positions; the gradients take the same way back.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from longvita.parallel.groups import ParallelGroups
from longvita.parallel.sequence_layout import SequenceLayout


def assign_tiles(num_tiles: int, ranks: int) -> Tensor:
    """The rank that encodes each tile: [num_tiles] int64, contiguous runs whose lengths differ by one at most.

    Contiguous runs let a rank decode a video in one sweep and keep most rows near the slice that needs them.
    """
    return (torch.arange(num_tiles) * ranks).div(max(num_tiles, 1), rounding_mode="floor")


def tile_rounds(owners: Tensor, chunk: int) -> Tensor:
    """The round in which each tile is encoded and its rows travel: [n] int64; `chunk` tiles of each rank a round.

    owners: [n] rank that encodes each tile, ascending.
    """
    number = torch.arange(len(owners), device=owners.device) - torch.searchsorted(owners, owners)
    return number.div(chunk, rounding_mode="floor")


@dataclass(frozen=True)
class RowPlan:
    """Which feature rows this rank sends where, where the rows that it receives belong, and how gradients go home."""

    local_rows: int
    """Rows that this rank encodes."""
    send_order: Tensor
    """[rows to send] index into the local rows, by destination."""
    send_counts: list[int]
    """Rows for each rank."""
    receive_counts: list[int]
    """Rows from each rank."""
    positions: Tensor
    """[rows received] row of this rank's hidden states that each received row belongs to."""
    return_order: Tensor
    """[gradients to send home] index into the rows received, by their source."""
    return_counts: list[int]
    """Gradients for each rank."""
    home_order: Tensor
    """[gradients that come home] index into the local rows, by where they come from."""
    home_counts: list[int]
    """Gradients from each rank."""

    def to(self, device: torch.device) -> RowPlan:
        """The same plan with its indexes on `device`."""
        indexes = ("send_order", "positions", "return_order", "home_order")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in indexes})


def plan_rows(
    tile_starts: Tensor, tile_owners: Tensor, rows_per_tile: int, layout: SequenceLayout, groups: ParallelGroups
) -> RowPlan:
    """The RowPlan of this rank for one micro batch.

    tile_starts: [n] place of each tile's first row among the tokens of `layout`; rows that fall outside it (a prefill
    chunk may cut a tile) go nowhere. tile_owners: [n] rank of the TP x CP group that encodes each tile.

    A row goes to the CP rank that holds its position: to one of its TP ranks where the layout shares rows out over them
    (sequence parallel), else to all of them. All have the same gradient then, and one of them sends it home.
    """
    size, tp_size = groups.vision_size, groups.tp_size
    shared_out = layout.tp_size > 1 or tp_size == 1
    tokens = (tile_starts[:, None] + torch.arange(rows_per_tile, device=tile_starts.device)).reshape(-1).cpu()
    sources = tile_owners.cpu().repeat_interleave(rows_per_tile)
    inside = (tokens >= 0) & (tokens < sum(layout.lengths))
    number = torch.cumsum(sources == groups.vision_rank, 0) - 1
    tokens, sources, number = tokens[inside], sources[inside], number[inside]
    cp_rank, tp_rank, row = layout.rows_of_tokens(tokens)
    first = cp_rank * tp_size + (tp_rank if shared_out else 0)
    # By source where one takes the rows in, by destination where one sends them: ranks in order, rows in order within.
    mine = sources == groups.vision_rank
    targets = [(first == rank) if shared_out else (cp_rank == rank // tp_size) for rank in range(size)]
    received = torch.argsort(torch.where(targets[groups.vision_rank], sources, size), stable=True)
    received = received[: int(targets[groups.vision_rank].sum())]
    sender = first if shared_out else first + sources % tp_size
    returned = sender[received] == groups.vision_rank
    home = torch.argsort(torch.where(mine, sender, size), stable=True)[: int(mine.sum())]
    return RowPlan(
        local_rows=int((tile_owners == groups.vision_rank).sum()) * rows_per_tile,
        send_order=torch.cat([number[mine & target] for target in targets]),
        send_counts=[int((mine & target).sum()) for target in targets],
        receive_counts=_counts(sources[received], size),
        positions=row[received],
        return_order=torch.nonzero(returned)[:, 0],
        return_counts=_counts(sources[received][returned], size),
        home_order=number[home],
        home_counts=_counts(sender[home], size),
    )


def _counts(ranks: Tensor, size: int) -> list[int]:
    return torch.bincount(ranks, minlength=size).tolist()
