"""Write the model as a Hugging Face folder, in the published Long-VITA format or as transformers' InternVL.

Tensors are gathered from the ranks and written one by one; rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from longvita.checkpoint.hf.config_json import dtype_name, long_vita_settings, write_json
from longvita.checkpoint.hf.gather_tensors import Gatherer, model_settings
from longvita.checkpoint.hf.internvl import IMAGE_TOKEN, check_internvl, write_internvl_files
from longvita.checkpoint.hf.safetensors_folder import ShardedWriter, size_in_bytes
from longvita.checkpoint.hf.tensor_map import Mapper, hf_tensors
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA, FormatNames
from longvita.checkpoint.hf.tokenizer_files import (
    Tokenizer,
    check_vocabulary,
    token_id,
    transformers_tokenizer,
    write_generation_config,
    write_tokenizer,
)
from longvita.config.schema import Config, ModelConfig
from longvita.parallel.groups import ParallelGroups


def write_long_vita(
    models: Sequence[torch.nn.Module],
    config: Config,
    folder: str | Path,
    groups: ParallelGroups,
    tokenizer: Tokenizer | None = None,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder in the published Long-VITA format: weights, config, generation config and tokenizer.

    A collective over the world; rank 0 writes. Weights that `read_weights` read are written back bit by bit.
    """
    folder = Path(folder)
    if tokenizer is not None:
        tokenizer = transformers_tokenizer(tokenizer)
        check_vocabulary(tokenizer, config.model.language.vocab_size)
    written = _write_tensors(models, LONG_VITA, folder, groups, max_shard_size, dtype)
    if dist.get_rank() == 0:
        write_long_vita_files(config.model, folder, tokenizer, dtype_name(written))
    dist.barrier()


def write_long_vita_files(model: ModelConfig, folder: Path, tokenizer: Tokenizer | None, dtype: str) -> None:
    """Write every file of a published Long-VITA folder except the weights."""
    write_json(folder / "config.json", long_vita_settings(model, dtype))
    write_generation_config(folder, tokenizer)
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder)


def write_internvl(
    models: Sequence[torch.nn.Module],
    config: Config,
    folder: str | Path,
    groups: ParallelGroups,
    tokenizer: Tokenizer,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that AutoModelForImageTextToText and AutoProcessor of transformers load.

    A collective over the world; rank 0 writes. Raises CheckpointError for a model that InternVL cannot hold, or a
    tokenizer without the image tokens.
    """
    check_internvl(config.model)
    folder, tokenizer = Path(folder), transformers_tokenizer(tokenizer)
    token_id(tokenizer, IMAGE_TOKEN)
    check_vocabulary(tokenizer, config.model.language.vocab_size)
    written = _write_tensors(models, INTERNVL, folder, groups, max_shard_size, dtype)
    if dist.get_rank() == 0:
        write_internvl_files(config.model, folder, tokenizer, dtype_name(written))
    dist.barrier()


def _write_tensors(
    models: Sequence[torch.nn.Module],
    names: FormatNames,
    folder: Path,
    groups: ParallelGroups,
    max_shard_size: str | int,
    dtype: torch.dtype | None,
) -> torch.dtype:
    """Write all weights under the names of one format, as `dtype` or as the parameters'; the dtype written."""
    config = model_settings(models)
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
