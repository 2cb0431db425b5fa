"""What a micro batch holds, which memory and time follow from: tokens, documents, tiles, positions with loss."""

from __future__ import annotations

from dataclasses import dataclass

from longvita.config.schema import Config
from longvita.config.sizes import frames_that_fit


@dataclass(frozen=True)
class Contents:
    """One micro batch of one replica."""

    tokens: int
    """Positions, padding included."""
    documents: int
    """Documents of equal length; attention is inside each."""
    tiles: int
    """Tiles and frames that the vision tower encodes."""
    loss_tokens: int
    """Positions whose logits are computed."""
    name: str = ""
    """What it is called in tables."""


def worst_contents(config: Config) -> list[Contents]:
    """The two that a plan has to hold for: nothing but frames, and nothing but text with loss on every token.

    Each sequence is one document, which makes attention longest. Frames take what their markers leave; a picture's
    tiles take as many tokens each, so a sequence of pictures holds no more of them.
    """
    sequences, length = config.training.micro_batch_size, config.data.sequence_length
    frames = sequences * frames_that_fit(length, config.model.tokens_per_tile)
    tokens = sequences * length
    text = tokens - frames * (config.model.tokens_per_tile + 2)
    return [
        Contents(tokens, sequences, frames, max(text, 1), "video"),
        Contents(tokens, sequences, 0, tokens, "text"),
    ]
