"""Conversion from one Hugging Face layout to another: tensors stream between folders one at a time, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import dtype_name, long_vita_settings, model_config_from_folder, write_json
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.hf.internvl import check_internvl, write_internvl_files
from longvita.checkpoint.hf.safetensors_folder import ShardedWriter, size_in_bytes
from longvita.checkpoint.hf.source_folder import SourceFolder
from longvita.checkpoint.hf.tensor_inventory import hf_tensors, parameter_names
from longvita.checkpoint.hf.tensor_map import Block, HFTensor, Mapper
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA
from longvita.checkpoint.hf.tokenizer_files import (
    Tokenizer,
    check_vocabulary,
    token_id,
    write_generation_config,
    write_tokenizer,
)
from longvita.config.schema import ModelConfig

_NAMES = {"long_vita": LONG_VITA, "internvl": INTERNVL}
_SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


class FolderTensors:
    """The tensors of one layout, computed from a folder in another; `tensors` is like Gatherer's."""

    def __init__(self, source: SourceFolder, target: Mapper) -> None:
        self.source, self.read = source, source.mapper()
        self.pieces: dict[str, list[tuple[str, int, Block]]] = {}
        for name in parameter_names(source.config):
            item = target.map(name)
            for block in item.blocks:
                self.pieces.setdefault(block.tensor, []).append((name, item.axis, block))
        self._held: dict[str, Tensor] = {}

    def dtype(self, tensor: HFTensor) -> torch.dtype:
        """The dtype that the tensor's values have in the source folder."""
        pieces = self.pieces.get(tensor.name)
        parameter = pieces[0][0] if pieces else "vision_projection.linear_fc1.weight"
        origin = next(iter(self.read.map(parameter).tensors))
        word = self.source.reader.dtype(origin)
        if word not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"{origin} is of type {word}; only {', '.join(_SAFETENSORS_DTYPES)} can be converted")
        return _SAFETENSORS_DTYPES[word]

    def tensors(self, wanted: Iterable[HFTensor]) -> Iterator[tuple[HFTensor, Tensor]]:
        """Each wanted tensor with its values; zero where it is padding."""
        for tensor in wanted:
            whole = torch.zeros(tensor.shape, dtype=self.dtype(tensor))
            for name, axis, block in self.pieces.get(tensor.name, []):
                part = self._parameter(name, whole.dtype).narrow(axis, block.offset, block.length)
                whole.narrow(axis, block.start, block.length).copy_(part)
            yield tensor, whole

    def _parameter(self, name: str, dtype: torch.dtype) -> Tensor:
        """Our parameter out of the source; the last one is kept, since q, k and v follow each other."""
        if name not in self._held:
            item = self.read.map(name)
            self._held = {name: torch.empty(item.shape, dtype=dtype)}
            self.source.fill(item, self._held[name])
        return self._held[name]


def convert_folder(
    source: str | Path,
    target: Path,
    layout: str,
    tokenizer: Tokenizer | None = None,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """From one Hugging Face folder (or Hub id) to another in layout "long_vita" or "internvl".

    Raises CheckpointError when the source does not hold a whole model, or the target's layout cannot hold it.
    """
    folder = local_folder(source)
    if folder.resolve() == target.resolve():
        raise CheckpointError(f"--from and --to are the same folder, {target}")
    model = model_config_from_folder(folder)
    if layout == "internvl":
        check_internvl(model)
        if tokenizer is None:
            raise CheckpointError(
                f"{folder} has no tokenizer, which the internvl layout needs; give --tokenizer FOLDER"
            )
        token_id(tokenizer, "<IMG_CONTEXT>")
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.language.vocab_size)
    held = SourceFolder(folder, model)
    names = _NAMES[layout]
    wanted = hf_tensors(model, names)
    stream = FolderTensors(held, Mapper(model, names))
    types = {tensor.name: dtype or stream.dtype(tensor) for tensor in wanted}
    announced = [(tensor.name, tensor.shape, types[tensor.name]) for tensor in wanted]
    with ShardedWriter(target, announced, size_in_bytes(max_shard_size)) as writer:
        for tensor, data in stream.tensors(wanted):
            writer.write(tensor.name, data.to(types[tensor.name]))
    write_files(model, target, layout, tokenizer, types[wanted[-1].name])


def write_files(model: ModelConfig, target: Path, layout: str, tokenizer: Tokenizer | None, dtype: torch.dtype) -> None:
    """The files of a folder beside its weights."""
    if layout == "internvl":
        write_internvl_files(model, target, tokenizer, dtype_name(dtype))
        return
    write_json(target / "config.json", long_vita_settings(model, dtype_name(dtype)))
    write_generation_config(target, tokenizer)
    if tokenizer is not None:
        write_tokenizer(tokenizer, target)
