"""Build a rank's micro batch from its contents: the same fields as the loader's, with arbitrary values."""

from __future__ import annotations

import torch
from typing_extensions import override

from longvita.config.schema import TILE_MARKERS, Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.groups import ParallelGroups
from longvita.parallel.tile_sharing import assign_tiles
from longvita.planning.batch_contents import BatchContents


class HostBatch(LocalBatch):
    """A micro batch that does not move: tensors that decide shapes are on the host, the others on the device."""

    @override
    def to(self, device: torch.device | str) -> LocalBatch:
        return self


def make_batch(contents: BatchContents, config: Config, groups: ParallelGroups, device: torch.device) -> LocalBatch:
    """Build a rank's micro batch, with tiles and positions on `device`."""
    tokens, documents, tiles = contents.tokens, contents.documents, contents.tiles
    length = tokens // documents
    owners = assign_tiles(tiles, groups.vision_size)
    own = int((owners == groups.vision_rank).sum()) if groups.is_first_stage else 0
    per_document = max(-(-tiles // documents), 1)
    number = torch.arange(tiles)
    row_of_tile = number % per_document * (config.model.tokens_per_tile + TILE_MARKERS) + 1
    labels = torch.full((1, tokens), IGNORED_LABEL)
    labels[0, tokens - contents.loss_tokens :] = 0
    size = config.model.vision.image_size
    return HostBatch(
        input_ids=torch.zeros((1, tokens), dtype=torch.int64),
        labels=labels,
        position_ids=torch.arange(length, device=device).repeat(documents)[None],
        cu_seqlens=torch.arange(0, tokens + 1, length, dtype=torch.int32),
        max_seqlen=length,
        tile_starts=number // per_document * length + row_of_tile,
        tile_owners=owners,
        tiles=torch.zeros((own, 3, size, size), device=device),
        document_sources=[next(iter(config.data.dataset), "dry run")] * documents,
        padding_tokens=0,
    )
