"""Assembles the documents of a micro batch into a LocalBatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from longvita.data.batch import LocalBatch
from longvita.data.chat_template import IGNORED_LABEL, EncodedSample
from longvita.data.loading.tile_memory import TilePool
from longvita.data.media.image import normalise

MAX_PADDING_DOCUMENT = 4096
"""Longest document of padding, tokens: the cost of attention is quadratic in it."""
MIXED_SOURCES = "mixed"
"""Source name of an attention context with documents of several sources."""


@dataclass(frozen=True)
class PlacedDocument:
    """A document of a micro batch and where it belongs."""

    encoded: EncodedSample
    source: str
    """Name of the data source."""
    sequence: int
    """Sequence of the micro batch that it belongs to."""
    tile_owners: np.ndarray
    """[n] int64, vision rank that encodes each of its tiles."""
    pixels: np.ndarray
    """uint8 [k, S, S, 3]: this rank's tiles of the document."""


def assemble(
    documents: Sequence[PlacedDocument],
    length: int,
    padding_id: int,
    isolate: bool,
    image_size: int,
    pool: TilePool | None = None,
) -> LocalBatch:
    """Join documents, in order, into one batch of `length` tokens, padded at the end.

    isolate: whether each document is an attention context of its own; if not, the documents of a sequence form one.
    pool: memory for the tiles, which returns to it when the batch is freed; new memory when absent. The last position
    of a document has no loss, because no token follows it. Raises ValueError if the documents are longer than `length`.
    """
    used = sum(len(document.encoded.input_ids) for document in documents)
    if used > length:
        raise ValueError(f"documents of {used} tokens do not fit a micro batch of {length}")
    input_ids = np.full(length, padding_id, np.int64)
    labels = np.full(length, IGNORED_LABEL, np.int64)
    starts = [np.zeros(0, np.int64)]
    position = 0
    for document in documents:
        encoded = document.encoded
        end = position + len(encoded.input_ids)
        input_ids[position:end] = encoded.input_ids
        labels[position : end - 1] = encoded.labels[1:]
        starts.append(encoded.tile_starts + position)
        position = end
    bounds, sources = _contexts(documents, isolate)
    if used < length:
        bounds += [*range(used + MAX_PADDING_DOCUMENT, length, MAX_PADDING_DOCUMENT), length]
        sources += [""] * (len(bounds) - 1 - len(sources))
    return LocalBatch(
        input_ids=torch.from_numpy(input_ids)[None],
        labels=torch.from_numpy(labels)[None],
        position_ids=torch.from_numpy(_positions(bounds))[None],
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        max_seqlen=int(np.diff(bounds).max()),
        tile_starts=torch.from_numpy(np.concatenate(starts)),
        tile_owners=torch.from_numpy(
            np.concatenate([np.zeros(0, np.int64), *(document.tile_owners for document in documents)])
        ),
        tiles=torch.from_numpy(_tiles(documents, image_size, pool or TilePool())),
        document_sources=sources,
        padding_tokens=length - used,
    )


def _contexts(documents: Sequence[PlacedDocument], isolate: bool) -> tuple[list[int], list[str]]:
    """Return the bounds of the attention contexts, from 0, and the source of each."""
    bounds: list[int] = [0]
    sources: list[str] = []
    previous: int | None = None
    for document in documents:
        length = len(document.encoded.input_ids)
        if isolate or document.sequence != previous:
            bounds.append(bounds[-1] + length)
            sources.append(document.source)
        else:
            bounds[-1] += length
            sources[-1] = document.source if document.source == sources[-1] else MIXED_SOURCES
        previous = document.sequence
    return bounds, sources


def _positions(bounds: Sequence[int]) -> np.ndarray:
    """Return positions [t] int64: 0, 1, 2, ... in each context."""
    lengths = np.diff(bounds)
    return np.arange(bounds[-1], dtype=np.int64) - np.repeat(np.asarray(bounds[:-1], np.int64), lengths)


def _tiles(documents: Sequence[PlacedDocument], image_size: int, pool: TilePool) -> np.ndarray:
    """Normalise this rank's tiles, float32 [n_local, 3, S, S], into one array without a second copy."""
    count = sum(len(document.pixels) for document in documents)
    tiles = pool.array((count, 3, image_size, image_size), np.float32)
    slot = 0
    for document in documents:
        end = slot + len(document.pixels)
        if end > slot:
            normalise(document.pixels, out=tiles[slot:end])
        slot = end
    return tiles
