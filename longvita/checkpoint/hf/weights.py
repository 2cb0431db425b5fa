"""Reads Hugging Face weights into built chunks, and writes the published Long-VITA layout, at any TP and PP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from longvita.checkpoint.errors import CheckpointError, SharedCheckpointError
from longvita.checkpoint.hf.config_json import dtype_name, long_vita_settings, write_json
from longvita.checkpoint.hf.gather import Gatherer, check_shape, named_parameters, unwrap
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.hf.safetensors_folder import ShardedWriter, size_in_bytes
from longvita.checkpoint.hf.source_folder import SourceFolder
from longvita.checkpoint.hf.tensor_inventory import PARTS, hf_tensors
from longvita.checkpoint.hf.tensor_map import Mapper
from longvita.checkpoint.hf.tensor_names import LONG_VITA, Names
from longvita.checkpoint.hf.tokenizer_files import (
    Tokenizer,
    check_vocabulary,
    transformers_tokenizer,
    write_generation_config,
    write_tokenizer,
)
from longvita.config.schema import Config, ModelConfig
from longvita.parallel.groups import ParallelGroups


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
    if len(set(everyone)) == 1 and found:
        raise SharedCheckpointError(found)
    errors = {text: rank for rank, text in reversed(list(enumerate(everyone))) if text}
    if errors:
        raise SharedCheckpointError("; ".join(f"rank {rank}: {text}" for text, rank in sorted(errors.items())))


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
    if tokenizer is not None:
        tokenizer = transformers_tokenizer(tokenizer)
        check_vocabulary(tokenizer, config.model.language.vocab_size)
    written = write_weights(models, LONG_VITA, folder, groups, max_shard_size, dtype)
    if dist.get_rank() == 0:
        write_json(folder / "config.json", long_vita_settings(config.model, dtype_name(written)))
        write_generation_config(folder, tokenizer)
        if tokenizer is not None:
            write_tokenizer(tokenizer, folder)
    dist.barrier()
