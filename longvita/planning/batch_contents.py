"""Contents of a micro batch that memory and time follow from: tokens, documents, tiles, positions with loss."""

from __future__ import annotations

from dataclasses import dataclass

from longvita.config.schema import TILE_MARKERS, Config
from longvita.config.sizes import frames_that_fit


@dataclass(frozen=True)
class BatchContents:
    """One micro batch of one replica."""

    tokens: int
    """Positions, padding included; a multiple of `documents`."""
    documents: int
    """Documents of equal length; attention stays inside each."""
    tiles: int
    """Tiles and frames that the vision encoder encodes, each between two markers."""
    loss_tokens: int
    """Positions with loss, whose logits are computed: the last ones."""
    name: str = ""
    """Label in tables."""


def worst_contents(config: Config) -> list[BatchContents]:
    """List the two contents that a run must have memory for: only frames ("video"), only text with loss ("text").

    Each sequence is one document, which makes attention most expensive. The tiles of a picture take as many tokens each
    as frames do, so a sequence of pictures holds no more tiles.
    """
    sequences, length = config.training.micro_batch_size, config.data.sequence_length
    frames = sequences * frames_that_fit(length, config.model.tokens_per_tile)
    tokens = sequences * length
    text = tokens - frames * (config.model.tokens_per_tile + TILE_MARKERS)
    return [
        BatchContents(tokens, sequences, frames, max(text, 1), "video"),
        BatchContents(tokens, sequences, 0, tokens, "text"),
    ]
