"""A tiny model and a mixed global batch for tests of layouts: pictures, a video, text alone, packed documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from longvita.config.schema import Config
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.tile_sharing import assign_tiles

SEQUENCE_LENGTH = 64
MARKS = 2

# Per sequence, its documents: (tokens, tiles). Several pictures; one with pictures between two of text; a video; only
# text. They make up the mixed batch. The last, with one tile, is for tests of ranks that have none.
SEQUENCES: list[list[tuple[int, int]]] = [
    [(40, 3), (17, 1)],
    [(13, 0), (30, 2), (9, 0)],
    [(60, 8)],
    [(21, 0), (33, 0)],
    [(50, 1)],
]
MIXED = (0, 1, 2, 3)
TEXT_ALONE, ONE_TILE = 3, 4


def tiny_config(**sections: dict[str, Any]) -> Config:
    """A Long-VITA of about 30,000 parameters in fp32, with the given sections changed."""
    values: dict[str, Any] = {
        "platform": "cpu",
        "seed": 7,
        "model": {
            "init_method_std": 0.1,
            "vision": {
                "num_layers": 2,
                "hidden_size": 16,
                "num_attention_heads": 2,
                "ffn_hidden_size": 32,
                "patch_size": 7,
                "image_size": 28,
                "layer_scale_init": 0.5,
            },
            "projector": {"hidden_size": 24},
            "language": {
                "num_layers": 4,
                "hidden_size": 32,
                "ffn_hidden_size": 48,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "vocab_size": 96,
                "max_position_embeddings": 4096,
            },
        },
        "data": {"sequence_length": SEQUENCE_LENGTH, "max_num_frames": 8},
        "training": {
            "precision": "fp32",
            "global_batch_size": len(MIXED),
            "train_iterations": 10,
            "loss_chunk_size": 16,
            "vision_chunk_size": 3,
        },
        "optimizer": {"lr": 1e-2, "warmup_fraction": 0.0, "clip_grad": 0.5},
    }
    for name, section in sections.items():
        values[name] = _merged(values.get(name), section)
    return Config.model_validate(values)


def _merged(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {key: _merged(old.get(key), new[key]) if key in new else old[key] for key in {**old, **new}}


def make_batch(sequences: list[int], config: Config, groups: Any, seed: int = 0) -> LocalBatch:
    """The micro batch that joins the given sequences, as the loader would hand it to this rank."""
    rows_per_tile, size = config.model.tokens_per_tile, config.model.vision.image_size
    ids: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    bounds, starts, pictures, sources = [0], [], [], []
    for sequence in sequences:
        generator = torch.Generator().manual_seed(1000 * seed + sequence)
        room = SEQUENCE_LENGTH
        for length, tiles in SEQUENCES[sequence]:
            offset = bounds[-1]
            tokens = torch.randint(1, 90, (length,), generator=generator)
            target = torch.cat([tokens[1:], torch.tensor([IGNORED_LABEL])])
            for tile in range(tiles):
                start = 1 + tile * (rows_per_tile + MARKS)
                starts.append(offset + start)
                target[start - 1 : start + rows_per_tile] = IGNORED_LABEL
                pictures.append(torch.randn(3, size, size, generator=generator))
            target[: length // 4] = IGNORED_LABEL
            ids.append(tokens)
            labels.append(target)
            bounds.append(offset + length)
            sources.append("pictures" if tiles else "text")
            room -= length
        ids.append(torch.zeros(room, dtype=torch.int64))
        labels.append(torch.full((room,), IGNORED_LABEL))
        bounds.append(bounds[-1] + room)
        sources.append("")
    owners = assign_tiles(len(starts), groups.vision_size)
    own = [p for p, owner in zip(pictures, owners.tolist(), strict=True) if owner == groups.vision_rank]
    here = groups.is_first_stage and len(own) > 0
    bounds_tensor = torch.tensor(bounds, dtype=torch.int32)
    lengths = bounds_tensor.diff()
    return LocalBatch(
        input_ids=torch.cat(ids)[None],
        labels=torch.cat(labels)[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths.tolist()])[None],
        cu_seqlens=bounds_tensor,
        max_seqlen=int(lengths.max()),
        tile_starts=torch.tensor(starts, dtype=torch.int64),
        tile_owners=owners,
        tiles=torch.stack(own) if here else torch.zeros(0, 3, size, size),
        document_sources=sources,
        padding_tokens=sum(n for n, s in zip(lengths.tolist(), sources, strict=True) if s == ""),
    )


def micro_batches(config: Config, groups: Any, seed: int = 0, sequences: Sequence[int] = MIXED) -> list[LocalBatch]:
    """This rank's micro batches of one global batch: the batch's k-th sequence goes to replica k % DP."""
    size = config.training.micro_batch_size
    mine = list(sequences[groups.dp_rank :: groups.dp_size])
    return [make_batch(mine[i : i + size], config, groups, seed) for i in range(0, len(mine), size)]
