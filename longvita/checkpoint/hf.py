"""Reads Hugging Face weights into built chunks, and writes the published Long-VITA layout, at any TP and PP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.gather import Gatherer, check_shape, named_parameters, unwrap
from longvita.checkpoint.hf_config import long_vita_settings, read_json, write_json
from longvita.checkpoint.hf_layout import HFTensor, Mapper, ParameterMap
from longvita.checkpoint.hf_names import LONG_VITA, Names, names_of, part_of
from longvita.checkpoint.hub import local_folder
from longvita.checkpoint.inventory import PARTS, hf_tensors
from longvita.checkpoint.safetensors_io import FolderReader, ShardedWriter, size_in_bytes
from longvita.checkpoint.tokenizer_files import Tokenizer, write_generation_config, write_tokenizer
from longvita.config.schema import Config, ModelConfig
from longvita.parallel.groups import ParallelGroups

_ROWS_AT_ONCE = 8192
_NOT_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")
"""Ends of the names of buffers that some writers save; they are computed, not read."""
_LISTED = 8


class SourceFolder:
    """A Hugging Face folder checked against a model: which tensors it has, and values of our parameters out of it.

    `parts` are those that are wanted (vision, projector, language). Raises CheckpointError naming every tensor that is
    missing, unexpected or of another shape.
    """

    def __init__(self, folder: Path, config: ModelConfig, parts: Iterable[str] = PARTS) -> None:
        self.folder, self.config, self.parts = folder, config, tuple(parts)
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown or not self.parts:
            raise CheckpointError(f"parts {list(self.parts)}: choose among {', '.join(PARTS)}")
        self.reader = FolderReader(folder)
        self.names = names_of(self.reader.names(), "Hugging Face")
        for part in self.parts:
            if getattr(self.names, part) is None:
                raise CheckpointError(f"{folder} has no {part} weights in any layout that we know")
        self.tied = "language" in self.parts and self._is_tied()
        self._check_names()

    def _is_tied(self) -> bool:
        head = self.names.need_language().head
        if head in self.reader:
            return False
        config = read_json(self.folder / "config.json")
        return bool({**config, **config.get("text_config", {})}.get("tie_word_embeddings", False))

    def mapper(self, tp_rank: int = 0, tp_size: int = 1) -> Mapper:
        """The Mapper of one TP rank, which knows of the folder's vocabulary and tied embeddings."""
        rows = None
        if "language" in self.parts and self.names.need_language().embedding in self.reader:
            rows = self.reader.shape(self.names.need_language().embedding)[0]
        return Mapper(self.config, self.names, tp_rank, tp_size, vocab_rows=rows, tied=self.tied)

    def _check_names(self) -> None:
        expected = {tensor.name for tensor in hf_tensors(self.config, self.names, self.mapper(), self.parts)}
        present = {
            name
            for name in self.reader.names()
            if part_of(name, self.names) in self.parts and not name.endswith(_NOT_WEIGHTS)
        }
        if self.config.language.tie_word_embeddings and self.names.language:
            present.discard(self.names.language.head)
        if self.parts == PARTS:  # what belongs to no part at all is unexpected only when everything is read
            present |= {n for n in self.reader.names() if part_of(n, self.names) is None}
        missing, unexpected = sorted(expected - present), sorted(present - expected)
        if missing or unexpected:
            raise CheckpointError(
                f"{self.folder} does not fit the model."
                + _listed("Missing tensors", missing)
                + _listed("Unexpected tensors", unexpected)
                + " Check the model section of the config (layers, tied embeddings) against the folder's config.json."
            )

    def check_shapes(self, item: ParameterMap) -> None:
        """Raises CheckpointError when a tensor of this parameter has another shape in the folder."""
        for tensor in item.tensors.values():
            found = self.reader.shape(tensor.name)
            if found != tensor.shape:
                raise CheckpointError(
                    f"{tensor.name} is {found} in {self.folder} and the model needs {tensor.shape} "
                    f"(for {item.parameter}); check the sizes in the config's model section"
                )

    def fill(self, item: ParameterMap, target: Tensor) -> None:
        """Copies a parameter's rows or columns out of the folder into `target`, converting the dtype."""
        self.check_shapes(item)
        for block in item.blocks:
            data = self.reader.read(block.tensor, item.axis, block.start, block.length)
            target.narrow(item.axis, block.offset, block.length).copy_(data)
        if item.mean_filled:
            (tensor,) = item.tensors.values()
            target[-item.mean_filled :] = self._mean_row(tensor).to(target.dtype)
        for tensor in item.tensors.values():
            if tensor.padded:
                self._check_padding(tensor, item)

    def _mean_row(self, tensor: HFTensor) -> Tensor:
        total = torch.zeros(tensor.shape[1:], dtype=torch.float64)
        for start in range(0, tensor.shape[0], _ROWS_AT_ONCE):
            length = min(_ROWS_AT_ONCE, tensor.shape[0] - start)
            total += self.reader.read(tensor.name, 0, start, length).double().sum(0)
        return total / tensor.shape[0]

    def _check_padding(self, tensor: HFTensor, item: ParameterMap) -> None:
        covered, size = item.shape[item.axis], tensor.shape[item.axis]
        rest = self.reader.read(tensor.name, item.axis, covered, size - covered)
        if torch.count_nonzero(rest):
            raise CheckpointError(
                f"{tensor.name} {tensor.shape} has values beyond {covered} on axis {item.axis}; set "
                f"model.projector.hidden_size to {size} to keep them"
            )

    def check_biases(self) -> None:
        """Raises CheckpointError when the projector has biases that are not zero, which ours cannot hold."""
        if "projector" not in self.parts or not self.names.need_projector().padded:
            return
        for tensor in hf_tensors(self.config, self.names, self.mapper(), ("projector",)):
            if tensor.name.endswith(("linear_1.bias", "linear_2.bias")) and torch.count_nonzero(
                self.reader.read(tensor.name)
            ):
                raise CheckpointError(
                    f"{tensor.name} is not zero and Long-VITA's projector has no biases; read this folder with the "
                    "parts vision and language alone and train the projector"
                )


def _listed(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f" {title}: {', '.join(names[:_LISTED])}{more}."


def read_weights(
    models: Sequence[torch.nn.Module],
    folder: str | Path,
    groups: ParallelGroups,
    parts: Sequence[str] = PARTS,
) -> None:
    """Fills the chunks of this rank with the weights of a Hugging Face folder or Hub id.

    Layouts: published Long-VITA, Qwen2.5 (language), InternViT (vision), transformers' InternVL. Only the slices that
    this rank holds are read. `parts` are read, other parameters are left as they are. A folder whose vocabulary has
    fewer rows than the model gives the further rows the mean of its own; tied embeddings fill both of an untied model.
    Collective. Raises CheckpointError on every rank when any rank finds something wrong.
    """
    found = ""
    place = local_folder(folder)
    try:
        source = SourceFolder(place, settings_of(models), parts)
        source.check_biases()
        mapper = source.mapper(groups.tp_rank, groups.tp_size)
        with torch.no_grad():
            for name, parameter in named_parameters(models).items():
                item = mapper.map(name) if _part_of_parameter(name) in source.parts else None
                if item is not None:
                    check_shape(item, parameter)
                    source.fill(item, parameter.data)
    except CheckpointError as error:
        found = str(error)
    _raise_together(found)


def settings_of(models: Sequence[torch.nn.Module]) -> ModelConfig:
    """The ModelConfig that these chunks were built with."""
    settings = unwrap(models[0]).settings
    if not isinstance(settings, Config):
        raise TypeError(f"{type(models[0]).__name__} carries no Config in `settings`; build it with build_model")
    return settings.model


def _part_of_parameter(name: str) -> str:
    return {"vision_model": "vision", "vision_projection": "projector"}.get(name.split(".")[0], "language")


def _raise_together(found: str) -> None:
    """One rank's error ends all: the others would wait for it in the next collective call."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        if found:
            raise CheckpointError(found)
        return
    everyone: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    errors = {text: rank for rank, text in reversed(list(enumerate(everyone))) if text}
    if errors:
        raise CheckpointError("; ".join(f"rank {rank}: {text}" for text, rank in sorted(errors.items())))


def write_weights(
    models: Sequence[torch.nn.Module],
    names: Names,
    folder: Path,
    groups: ParallelGroups,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> torch.dtype:
    """Writes the weights of the whole model in one layout; rank 0 writes. Returns the dtype written.

    Tensors travel and are written one by one; `dtype` converts them, else they keep the parameters'. Collective.
    """
    config = settings_of(models)
    gatherer = Gatherer(models, Mapper(config, names, groups.tp_rank, groups.tp_size), groups)
    wanted = hf_tensors(config, names)
    kept = dtype or next(iter(gatherer.parameters.values())).dtype
    if dist.get_rank() != 0:
        for _ in gatherer.tensors(wanted):
            pass
    else:
        with ShardedWriter(folder, [(t.name, t.shape, kept) for t in wanted], size_in_bytes(max_shard_size)) as writer:
            for tensor, data in gatherer.tensors(wanted):
                if data is not None:
                    writer.write(tensor.name, data.to(kept))
    dist.barrier()
    return kept


def write_long_vita(
    models: Sequence[torch.nn.Module],
    config: Config,
    folder: str | Path,
    groups: ParallelGroups,
    tokenizer: Tokenizer | None = None,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a folder in the published Long-VITA layout: weights, config, generation config and tokenizer.

    Collective over the world; rank 0 writes. What `read_weights` read comes back bit by bit.
    """
    folder = Path(folder)
    written = write_weights(models, LONG_VITA, folder, groups, max_shard_size, dtype)
    if dist.get_rank() == 0:
        write_json(folder / "config.json", long_vita_settings(config.model, dtype_name(written)))
        write_generation_config(folder, tokenizer)
        if tokenizer is not None:
            write_tokenizer(tokenizer, folder)
    dist.barrier()


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's word for a dtype in a config.json, such as bfloat16."""
    return str(dtype).removeprefix("torch.")
