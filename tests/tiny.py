"""A tiny model, its config and hand-made micro batches for tests."""

from __future__ import annotations

from typing import Any

import torch

from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.tile_sharing import assign_tiles

SEQUENCE = 64
"""Tokens of a micro batch."""
VOCABULARY = 128


def tiny_config(**sections: dict[str, Any]) -> Config:
    """Two layers each in tower and language model, hidden 32, tiles of 28 pixels with one token, fp32.

    `sections` are merged over the defaults: tiny_config(layout={"tensor_parallel": 2}).
    """
    values: dict[str, Any] = {
        "seed": 7,
        "model": {
            "vision": {
                "num_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 2,
                "ffn_hidden_size": 64,
                "image_size": 28,
            },
            "projector": {"hidden_size": 32},
            "language": {
                "num_layers": 2,
                "hidden_size": 32,
                "ffn_hidden_size": 64,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 1024,
            },
            "init_method_std": 0.08,
        },
        "data": {"sequence_length": SEQUENCE},
        "training": {"precision": "fp32", "global_batch_size": 4, "train_iterations": 20},
        "optimizer": {"lr": 1e-2, "warmup_fraction": 0.1, "weight_decay": 0.01},
    }
    for section, fields in sections.items():
        values[section] = _merge(values.get(section, {}), fields)
    return Config.model_validate(values)


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


def sequence(number: int, config: Config, tiles: int | None = None) -> dict[str, torch.Tensor]:
    """Sequence `number` of an endless stream: ids, labels, document lengths and tiles, from the number alone.

    Every third one has no tile, unless `tiles` says how many there are.
    """
    generator = torch.Generator().manual_seed(1000 + number)
    length = config.data.sequence_length
    ids = torch.randint(0, VOCABULARY, (length,), generator=generator)
    first = int(torch.randint(length // 4, length // 2, (1,), generator=generator))
    padding = int(torch.randint(0, 6, (1,), generator=generator))
    lengths = torch.tensor([first, length - first - padding, padding][: 3 if padding else 2])
    labels = ids.roll(-1)
    labels[torch.rand(length, generator=generator) < 0.5] = IGNORED_LABEL
    labels[lengths.cumsum(0) - 1] = IGNORED_LABEL
    labels[length - padding :] = IGNORED_LABEL
    count = tiles if tiles is not None else number % 3 * 2
    size = config.model.vision.image_size
    return {
        "ids": ids,
        "labels": labels,
        "lengths": lengths,
        "tile_starts": 2 + 3 * torch.arange(count),
        "tiles": torch.randn(count, 3, size, size, generator=generator),
        "padding": torch.tensor(padding),
    }


def micro_batch(numbers: list[int], config: Config, groups: Any, tiles: int | None = None) -> LocalBatch:
    """The sequences `numbers` as this rank's micro batch."""
    parts = [sequence(number, config, tiles) for number in numbers]
    lengths = torch.cat([part["lengths"] for part in parts])
    starts = torch.cat([part["tile_starts"] + index * config.data.sequence_length for index, part in enumerate(parts)])
    owners = assign_tiles(len(starts), groups.vision_size)
    tiles_of_all = torch.cat([part["tiles"] for part in parts])
    mine = owners == groups.vision_rank
    return LocalBatch(
        input_ids=torch.cat([part["ids"] for part in parts])[None],
        labels=torch.cat([part["labels"] for part in parts])[None],
        position_ids=torch.cat([torch.arange(int(n)) for n in lengths])[None],
        cu_seqlens=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32),
        max_seqlen=int(lengths.max()),
        tile_starts=starts,
        tile_owners=owners,
        tiles=tiles_of_all[mine] if groups.is_first_stage else tiles_of_all[:0],
        document_sources=[source for part in parts for source in ("words", "pictures", "")[: len(part["lengths"])]],
        padding_tokens=sum(int(part["padding"]) for part in parts),
    )


def batches(config: Config, groups: Any, start: int = 0, tiles: int | None = None):
    """This replica's micro batches from sequence `start` on, as the loader hands them out."""
    size = config.training.micro_batch_size
    number = start + groups.dp_rank * size
    while True:
        yield micro_batch(list(range(number, number + size)), config, groups, tiles)
        number += size * groups.dp_size


def text_batch(tokens: int, documents: int = 1) -> LocalBatch:
    """`tokens` tokens in equal documents, without tiles; loss on the last token but one of each."""
    length = tokens // documents
    ids = torch.arange(tokens)[None] % VOCABULARY
    labels = torch.full((1, tokens), IGNORED_LABEL)
    labels[0, length - 2 :: length] = 3
    return LocalBatch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(length).repeat(documents)[None],
        cu_seqlens=torch.arange(0, tokens + 1, length, dtype=torch.int32),
        max_seqlen=length,
        tile_starts=torch.zeros(0, dtype=torch.int64),
        tile_owners=torch.zeros(0, dtype=torch.int64),
        tiles=torch.zeros(0, 3, 28, 28),
        document_sources=["words"] * documents,
        padding_tokens=0,
    )
