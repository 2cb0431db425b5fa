"""Golden vectors: recorded inputs and outputs of a model, in a folder.

`golden.safetensors`: `input_ids` [b, s]; `labels` [b, s], unshifted, -100 ignored; `images` [n, 3, H, W];
`image_indices` [2, n, tokens per tile] (row, position); and any of `image_features` [n, tokens per tile, h], `logits`
[b, s, v], `loss` [1], `grad.NAME` with NAME of the published format. `golden.json`: `greedy_tokens` after the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import read_json
from longvita.config.schema import Config, InferenceConfig, LayoutConfig, ModelConfig, TrainingConfig
from longvita.data.batch import IGNORED_LABEL, LocalBatch
from longvita.parallel.tile_sharing import assign_tiles

if TYPE_CHECKING:
    from longvita.parallel.groups import ParallelGroups

_INPUTS = ("input_ids", "labels", "images", "image_indices")


@dataclass(frozen=True)
class Golden:
    """The inputs, packed as t = b * s tokens, and the outputs in the folder (None for absent ones)."""

    rows: int
    """b: rows of the batch, each a document."""
    input_ids: Tensor
    """[t] int64."""
    labels: Tensor
    """[t] int64, shifted: the target of each position; -100 is ignored."""
    images: Tensor
    """[n, 3, H, W] float32."""
    tile_starts: Tensor
    """[n] int64, position of the first token of each tile among the t tokens."""
    tokens_per_tile: int
    features: Tensor | None
    """[n, tokens per tile, h]."""
    logits: Tensor | None
    """[t, v]."""
    loss: float | None
    gradients: dict[str, Tensor]
    """By the tensor's name in the published format."""
    greedy_tokens: list[int] | None

    @property
    def length(self) -> int:
        """s: tokens of a row."""
        return len(self.input_ids) // self.rows

    def batch(self, groups: ParallelGroups, multiple: int = 1) -> LocalBatch:
        """The micro batch of this rank: each row a document, padded at the end to a multiple of `multiple` tokens."""
        padding = -len(self.input_ids) % multiple
        lengths = [self.length] * self.rows + ([padding] if padding else [])
        owners = assign_tiles(len(self.tile_starts), groups.vision_size)
        mine = (owners == groups.vision_rank) if groups.is_first_stage else torch.zeros_like(owners, dtype=torch.bool)
        return LocalBatch(
            input_ids=torch.nn.functional.pad(self.input_ids, (0, padding))[None],
            labels=torch.nn.functional.pad(self.labels, (0, padding), value=IGNORED_LABEL)[None],
            position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
            max_seqlen=max(lengths),
            tile_starts=self.tile_starts,
            tile_owners=owners,
            tiles=self.images[mine],
            document_sources=["golden"] * self.rows + ([""] if padding else []),
            padding_tokens=padding,
        )


def load_golden(folder: str | Path) -> Golden:
    """The golden vectors of a folder. Raises CheckpointError when the inputs are absent, damaged or do not fit."""
    path = Path(folder) / "golden.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path} is not there; --golden needs a folder with golden.safetensors and golden.json")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    absent = [name for name in _INPUTS if name not in tensors]
    if absent:
        raise CheckpointError(f"{path} lacks {', '.join(absent)}")
    notes = read_json(path.with_name("golden.json")) if path.with_name("golden.json").is_file() else {}
    ids, logits, loss = tensors["input_ids"], tensors.get("logits"), tensors.get("loss")
    return Golden(
        rows=len(ids),
        input_ids=ids.reshape(-1),
        labels=_shifted(tensors["labels"]).reshape(-1),
        images=tensors["images"].float(),
        tile_starts=_tile_starts(tensors["image_indices"], ids.shape[1], path),
        tokens_per_tile=tensors["image_indices"].shape[-1],
        features=tensors.get("image_features"),
        logits=None if logits is None else logits.reshape(-1, logits.shape[-1]),
        loss=None if loss is None else float(loss.reshape(-1)[0]),
        gradients={name.removeprefix("grad."): x for name, x in tensors.items() if name.startswith("grad.")},
        greedy_tokens=notes.get("greedy_tokens"),
    )


def _shifted(labels: Tensor) -> Tensor:
    """The target of each position is the next one's label; the last of a row has none."""
    return torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORED_LABEL)], dim=1)


def _tile_starts(indices: Tensor, length: int, path: Path) -> Tensor:
    """First position of each tile among the packed tokens; a tile's tokens must be consecutive, tiles in order."""
    positions = indices[0] * length + indices[1]
    starts = positions[:, 0]
    consecutive = starts[:, None] + torch.arange(positions.shape[1])
    if not torch.equal(positions, consecutive) or bool((starts.diff() <= 0).any()):
        raise CheckpointError(f"{path}: image_indices is not runs of consecutive positions in ascending order")
    return starts


def golden_config(model: ModelConfig, layout: LayoutConfig, golden: Golden, platform: str) -> Config:
    """The config to compare golden vectors with: fp32, and a prefill of several chunks, which tests the KV cache too.

    Raises CheckpointError for vectors of another model's sizes, or with nothing to compare.
    """
    _check_sizes(model, golden)
    answer = len(golden.greedy_tokens or [])
    micro_batches = layout.pipeline_parallel if layout.virtual_pipeline > 1 else 1
    return Config(
        name="verify",
        platform=platform,
        model=model,
        layout=layout,
        training=TrainingConfig(global_batch_size=micro_batches, train_iterations=1, precision="fp32"),
        inference=InferenceConfig(
            max_seq_len=golden.length + answer + 1,
            max_new_tokens=max(answer, 1),
            prefill_chunk_size=max(1, golden.length // 3),
        ),
    )


def _check_sizes(model: ModelConfig, golden: Golden) -> None:
    """Raise CheckpointError when the inputs or outputs cannot be this model's."""
    outcomes = (golden.features, golden.logits, golden.loss, golden.greedy_tokens, golden.gradients or None)
    if all(outcome is None for outcome in outcomes):
        raise CheckpointError("the golden folder holds inputs alone: no features, logits, loss, gradients or tokens")
    language, features, logits = model.language, golden.features, golden.logits
    pairs = {
        "pixels of a tile's side": (golden.images.shape[-1], model.vision.image_size),
        "tokens of a tile": (golden.tokens_per_tile, model.tokens_per_tile),
        "width of a feature": (None if features is None else features.shape[-1], language.hidden_size),
        "entries of the vocabulary": (None if logits is None else logits.shape[-1], language.vocab_size),
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] not in (None, pair[1])}
    wrong = [f"{name}: {there} there, {here} here" for name, (there, here) in differing.items()]
    highest = int(golden.input_ids.max())
    if highest >= language.vocab_size:
        wrong.append(f"token {highest} there, {language.vocab_size} entries of the vocabulary here")
    if wrong:
        raise CheckpointError(
            f"the golden vectors are another model's ({'; '.join(wrong)}); give this model's --golden"
        )
