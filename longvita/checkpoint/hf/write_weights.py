"""Write the model as a Hugging Face folder, in the published Long-VITA format or as transformers' InternVL.

Tensors are gathered from the ranks and written one by one; rank 0 writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from longvita.checkpoint.hf import tokenizer_files
from longvita.checkpoint.hf.config_json import dtype_name, long_vita_settings, write_json
from longvita.checkpoint.hf.gather_tensors import Gatherer, model_settings
from longvita.checkpoint.hf.internvl import IMAGE_TOKEN, check_internvl, write_internvl_files
from longvita.checkpoint.hf.safetensors_folder import ShardedWriter, size_in_bytes
from longvita.checkpoint.hf.tensor_map import Mapper, hf_tensors
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA, FormatNames
from longvita.config.schema import ModelConfig
from longvita.parallel.groups import ParallelGroups


def write_weights(
    models: Sequence[torch.nn.Module],
    folder: Path,
    groups: ParallelGroups,
    names: FormatNames = LONG_VITA,
    tokenizer: tokenizer_files.Tokenizer | None = None,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder in the format of `names`: weights, config, generation config and tokenizer.

    LONG_VITA is the published format: weights that `read_weights` read are written back bit by bit. INTERNVL is loaded
    by AutoModelForImageTextToText and AutoProcessor of transformers, and needs a tokenizer. Weights are written as
    `dtype`, or as the parameters' own.

    A collective over the world; rank 0 writes. Raises CheckpointError for a model that InternVL cannot hold, or a
    tokenizer without the image tokens.
    """
    model = model_settings(models)
    if tokenizer is not None:
        tokenizer = tokenizer_files.transformers_tokenizer(tokenizer)
        tokenizer_files.check_vocabulary(tokenizer, model.language.vocab_size)
    if names is INTERNVL:
        check_internvl(model)
        tokenizer_files.token_id(tokenizer, IMAGE_TOKEN)
    gatherer = Gatherer(models, Mapper(model, names, groups.tp_rank, groups.tp_size), groups)
    wanted = hf_tensors(model, names)
    written = dtype or next(iter(gatherer.parameters.values())).dtype
    announced = [(tensor.name, tensor.shape, written) for tensor in wanted]
    first = dist.get_rank() == 0
    output = ShardedWriter(folder, announced, size_in_bytes(max_shard_size)) if first else contextlib.nullcontext()
    with output as writer:
        for tensor in wanted:
            data = gatherer.tensor(tensor)
            if writer is not None and data is not None:
                writer.write(tensor.name, data.to(written))
    dist.barrier()
    if first:
        write_files = write_internvl_files if names is INTERNVL else write_long_vita_files
        write_files(model, folder, tokenizer, dtype_name(written))
    dist.barrier()


def write_long_vita_files(
    model: ModelConfig, folder: Path, tokenizer: tokenizer_files.Tokenizer | None, dtype: str
) -> None:
    """Write every file of a published Long-VITA folder except the weights."""
    write_json(folder / "config.json", long_vita_settings(model, dtype))
    tokenizer_files.write_generation_config(folder, tokenizer)
    if tokenizer is not None:
        tokenizer_files.write_tokenizer(tokenizer, folder)
