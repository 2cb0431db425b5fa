"""A micro batch by what it holds: documents of equal length, tiles, positions with loss."""

from __future__ import annotations

from typing import Any

import torch

from longvita.config.schema import TILE_MARKERS, Config
from longvita.config.sizes import frames_that_fit
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.tile_sharing import assign_tiles
from longvita.planning.dry_run.rank_counts import Load


def heaviest_loads(config: Config) -> tuple[Load, Load]:
    """The two that a run must be able to hold: as many frames as fit, and text alone with loss on every position.

    Each sequence is one document, which makes attention longest.
    """
    sequences, length = config.training.micro_batch_size, config.data.sequence_length
    frames = sequences * frames_that_fit(length, config.model.tokens_per_tile)
    tokens = sequences * length
    text = tokens - frames * (config.model.tokens_per_tile + TILE_MARKERS)
    return Load("video", tokens, sequences, frames, max(text, 1)), Load("text", tokens, sequences, 0, tokens)


class HostBatch(LocalBatch):
    """A micro batch whose tensors stay where they are: what decides shapes on the host, the rest on the device."""

    def to(self, device: torch.device | str) -> LocalBatch:
        """The batch itself."""
        return self


def make_batch(load: Load, config: Config, groups: ParallelGroups, device: torch.device) -> LocalBatch:
    """A rank's micro batch of a load; tiles and positions lie on `device`. Values are as good as any."""
    length = load.tokens // load.documents
    owners = assign_tiles(load.tiles, groups.vision_size)
    own = int((owners == groups.vision_rank).sum()) if groups.is_first_stage else 0
    each = config.model.tokens_per_tile + TILE_MARKERS
    per_document = -(-load.tiles // load.documents) if load.tiles else 0
    number = torch.arange(load.tiles)
    starts = number // max(per_document, 1) * length + number % max(per_document, 1) * each + 1
    labels = torch.full((1, load.tokens), IGNORED_LABEL)
    labels[0, load.tokens - load.loss_tokens :] = 0
    size = config.model.vision.image_size
    fields: dict[str, Any] = {
        "input_ids": torch.zeros((1, load.tokens), dtype=torch.int64),
        "labels": labels,
        "position_ids": torch.arange(length, device=device).repeat(load.documents)[None],
        "cu_seqlens": torch.arange(0, load.tokens + 1, length, dtype=torch.int32),
        "max_seqlen": length,
        "tile_starts": starts,
        "tile_owners": owners,
        "tiles": torch.zeros((own, 3, size, size), device=device),
        "document_sources": [next(iter(config.data.dataset), "dry run")] * load.documents,
        "padding_tokens": 0,
    }
    return HostBatch(**fields)
