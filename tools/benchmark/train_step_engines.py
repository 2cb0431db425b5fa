"""The two training steps that train_step.py compares, over the same documents and the same weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.checkpoint.training_state import TrainingState
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.groups import ParallelGroups


@dataclass
class PackedDocument:
    """A sample encoded for training."""

    input_ids: Tensor
    """[s] int64."""
    labels: Tensor
    """[s] int64, unshifted; -100 ignored."""
    tile_starts: Tensor
    """[n] int64, position of each tile's first token."""
    tiles: Tensor
    """[n, 3, H, W] float32."""
    kind: str
    """text, picture, pictures or video."""


def pack(documents: list[PackedDocument], length: int) -> list[list[PackedDocument]]:
    """Pack documents into bins of `length` tokens by first-fit decreasing."""
    bins: list[list[PackedDocument]] = []
    rooms: list[int] = []
    for document in sorted(documents, key=lambda d: -len(d.input_ids)):
        size = len(document.input_ids)
        index = next((i for i, room in enumerate(rooms) if room >= size), None)
        if index is None:
            index = len(bins)
            bins.append([])
            rooms.append(length)
        bins[index].append(document)
        rooms[index] -= size
    return bins


def our_batch(documents: list[PackedDocument], row_length: int | None) -> LocalBatch:
    """One of our micro batches: documents without padding, or each padded to `row_length` tokens."""
    ids: list[Tensor] = []
    labels: list[Tensor] = []
    starts: list[Tensor] = []
    lengths: list[int] = []
    sources: list[str] = []
    padding = 0
    for document in documents:
        starts.append(document.tile_starts + sum(lengths))
        ids.append(document.input_ids)
        labels.append(torch.cat([document.labels[1:], torch.tensor([IGNORED_LABEL])]))
        lengths.append(len(document.input_ids))
        sources.append(document.kind)
        room = (row_length or 0) - len(document.input_ids)
        if room > 0:
            ids.append(torch.zeros(room, dtype=torch.int64))
            labels.append(torch.full((room,), IGNORED_LABEL))
            lengths.append(room)
            sources.append("")
            padding += room
    tile_starts = torch.cat(starts)
    return LocalBatch(
        input_ids=torch.cat(ids)[None],
        labels=torch.cat(labels)[None],
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        cu_seqlens=torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        max_seqlen=max(lengths),
        tile_starts=tile_starts,
        tile_owners=torch.zeros_like(tile_starts),
        tiles=torch.cat([document.tiles for document in documents]),
        document_sources=sources,
        padding_tokens=padding,
    )


class TransformersStep:
    """transformers' InternVL in torch's DDP, with its fastest settings on a CPU: SDPA attention and fused AdamW."""

    def __init__(self, folder: Path, groups: ParallelGroups, state: TrainingState, image_token: int):
        from transformers import AutoModelForImageTextToText

        optimizer = state.config.optimizer
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        model.config.use_cache = False
        self.model = torch.nn.parallel.DistributedDataParallel(
            model, gradient_as_bucket_view=True, forward_sync_buffers=False
        )
        self.model.train()
        self.groups, self.image_token, self.clip = groups, image_token, optimizer.clip_grad
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer.lr,
            betas=(optimizer.adam_beta1, optimizer.adam_beta2),
            eps=optimizer.adam_eps,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    def collate(self, documents: list[PackedDocument]) -> dict[str, Tensor]:
        """A batch of rows, padded on the right to the longest."""
        pad = torch.nn.utils.rnn.pad_sequence
        ids = []
        for document in documents:
            # Its processor uses one context token for all tiles; the features overwrite the row anyway.
            row = document.input_ids.clone()
            side = document.tiles.shape[-1] // 28
            for start in document.tile_starts.tolist():
                row[start : start + side * side] = self.image_token
            ids.append(row)
        batch = {
            "input_ids": pad(ids, batch_first=True),
            "labels": pad([d.labels for d in documents], batch_first=True, padding_value=IGNORED_LABEL),
            "attention_mask": pad([torch.ones_like(d.input_ids) for d in documents], batch_first=True),
        }
        tiles = torch.cat([d.tiles for d in documents])
        return batch | ({"pixel_values": tiles} if len(tiles) else {})

    def step(self, batches: list[dict[str, Tensor]]) -> float:
        """Run an optimizer step over micro batches and return the loss of the global batch before it.

        Raises RuntimeError if the gradient norm is not finite.
        """
        tokens = torch.tensor(sum(int((b["labels"][:, 1:] != IGNORED_LABEL).sum()) for b in batches))
        dist.all_reduce(tokens, group=self.groups.dp)
        self.optimizer.zero_grad(set_to_none=False)
        total = torch.zeros(())
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            with torch.enable_grad() if last else self.model.no_sync():
                # DDP averages over ranks; the loss is the sum over the global batch divided by its loss tokens.
                loss = self.model(**batch, num_items_in_batch=tokens).loss
                (loss * self.groups.dp_size).backward()
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        if not math.isfinite(float(norm)):
            raise RuntimeError(f"transformers' gradient norm is {norm}")
        self.optimizer.step()
        dist.all_reduce(total, group=self.groups.dp)
        return float(total)


def settings() -> dict[str, Any]:
    """A Long-VITA of 24 million parameters with 112-pixel tiles of 16 tokens.

    The vision tower has a fifteenth of the parameters. With four patches per token it still takes a larger part of a
    step than the 300 million parameters in a model of 14 billion.
    """
    return {
        "platform": "cpu",
        "model": {
            "name": "long_vita_25m",
            "init_method_std": 0.02,
            "vision": {
                "num_layers": 4,
                "hidden_size": 160,
                "num_attention_heads": 4,
                "ffn_hidden_size": 640,
                "image_size": 112,
            },
            "projector": {"hidden_size": 256},
            "language": {
                "num_layers": 10,
                "hidden_size": 384,
                "ffn_hidden_size": 1024,
                "num_attention_heads": 6,
                "num_query_groups": 2,
                "vocab_size": 8192,
                "max_position_embeddings": 32768,
            },
        },
        "data": {"max_num_frames": 64},
        "training": {"precision": "fp32", "loss_chunk_size": 512, "vision_chunk_size": 64},
        "optimizer": {"lr": 1e-4, "warmup_fraction": 0.0, "weight_decay": 0.01, "decay_style": "constant"},
    }
