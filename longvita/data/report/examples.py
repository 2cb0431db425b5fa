"""Some samples of each source, chosen by a seed: their tokens and some of their tiles, as the model gets them.

Tiles are decoded in workers that may crash or hang, so that a broken file costs only its own pictures.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from longvita.config.schema import Config
from longvita.data.chat_template import ChatTemplate, EncodedSample
from longvita.data.document import DocumentReader, DocumentRequest
from longvita.data.errors import SampleError
from longvita.data.loading.worker_pool import WorkerPool, open_pool
from longvita.data.mix.catalog import Catalog
from longvita.data.report.spans import Span, loss_tokens, spans_of

MAX_PICTURES = 6
"""Pictures shown of a sample, and frames of its videos."""


@dataclass(frozen=True)
class Example:
    """A sample for the page."""

    request: DocumentRequest
    loss_tokens: int
    spans: list[Span]
    pictures: list[tuple[str, Image.Image]]
    """Name and pixels of thumbnails of its pictures and of some frames, as the model sees them."""
    problem: str
    """Why its tiles could not be decoded; empty if they could."""


def choose(catalog: Catalog, source: str, count: int, seed: int) -> list[int]:
    """Choose at most `count` different samples that the mix uses of a source, ascending."""
    sizes = [len(file.selected) for file in catalog.files]
    own = catalog.selected[np.repeat([file.source == source for file in catalog.files], sizes)]
    rng = np.random.default_rng([seed, zlib.crc32(source.encode())])
    return np.unique(own[rng.choice(len(own), min(count, len(own)), replace=False)]).tolist()


def read_examples(
    samples: Iterable[int], catalog: Catalog, template: ChatTemplate, config: Config, show: Callable[[int], None]
) -> list[Example]:
    """Read samples of a catalog; `show` is called with the number that are read.

    Raises RuntimeError if a data file changed since it was indexed.
    """
    reader = DocumentReader(template, catalog.settings)
    examples: list[Example] = []
    with open_pool(config, template) as pool:
        for sample in samples:
            examples.append(_read(catalog.request(sample), reader, pool, len(examples)))
            show(len(examples))
    return examples


def _read(request: DocumentRequest, reader: DocumentReader, pool: WorkerPool, task: int) -> Example:
    encoded = reader.read(request).encoded
    names = _shown_tiles(encoded, reader.template)
    pool.submit(task, [dataclasses.replace(request, wanted=tuple(names))])
    (result,) = pool.result(task)
    spans, loss = spans_of(encoded, reader.template), loss_tokens(encoded)
    if isinstance(result, SampleError):
        return Example(request, loss, spans, [], f"{result.reason}: {result.detail}")
    pictures = list(zip(names.values(), map(Image.fromarray, result.pixels), strict=True))
    return Example(request, loss, spans, pictures, "")


def _shown_tiles(encoded: EncodedSample, template: ChatTemplate) -> dict[int, str]:
    """Names of the shown tiles by their numbers, ascending: the first ones of pictures, evenly spaced frames."""
    tokens = encoded.input_ids[encoded.tile_starts]
    pictures = np.flatnonzero(tokens == template.tokenizer.id_of("<IMG_CONTEXT>"))
    frames = np.flatnonzero(tokens == template.tokenizer.id_of("<VID_CONTEXT>"))
    chosen = np.unique(np.linspace(0, len(frames) - 1, MAX_PICTURES).astype(int)).tolist() if len(frames) else []
    shown = enumerate(pictures[:MAX_PICTURES].tolist(), start=1)
    names = {tile: f"picture {number} of {len(pictures)}" for number, tile in shown}
    names |= {int(frames[number]): f"frame {number + 1} of {len(frames)}" for number in chosen}
    return dict(sorted(names.items()))
