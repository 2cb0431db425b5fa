"""Convert one Hugging Face format to another: tensors stream between folders one at a time, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import dtype_name, model_config_from_folder
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.hf.internvl import IMAGE_TOKEN, check_internvl, write_internvl_files
from longvita.checkpoint.hf.read_weights import SourceFolder
from longvita.checkpoint.hf.safetensors_folder import ShardedWriter, size_in_bytes
from longvita.checkpoint.hf.tensor_map import HFTensor, Mapper, TensorBlock, hf_tensors, parameter_names
from longvita.checkpoint.hf.tensor_names import INTERNVL, LONG_VITA
from longvita.checkpoint.hf.tokenizer_files import Tokenizer, check_vocabulary, token_id
from longvita.checkpoint.hf.write_weights import write_long_vita_files

_SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def convert_folder(
    source: str | Path,
    target: Path,
    target_format: str,
    tokenizer: Tokenizer | None = None,
    max_shard_size: str | int = "5GB",
    dtype: torch.dtype | None = None,
) -> None:
    """Convert one Hugging Face folder (or Hub id) to another, in the format "long_vita" or "internvl".

    Raises CheckpointError when the source does not hold a complete model, or the target's format cannot hold it.
    """
    folder = local_folder(source)
    if folder.resolve() == target.resolve():
        raise CheckpointError(f"--from and --to are the same folder, {target}")
    model = model_config_from_folder(folder)
    if target_format == "internvl":
        check_internvl(model)
        if tokenizer is None:
            raise CheckpointError(
                f"{folder} has no tokenizer, which the internvl format needs; give --tokenizer FOLDER"
            )
        token_id(tokenizer, IMAGE_TOKEN)
    if tokenizer is not None:
        check_vocabulary(tokenizer, model.language.vocab_size)
    names = INTERNVL if target_format == "internvl" else LONG_VITA
    stream = _ConvertedTensors(SourceFolder(folder, model), Mapper(model, names))
    wanted = hf_tensors(model, names)
    dtypes = {tensor.name: dtype or stream.dtype(tensor) for tensor in wanted}
    announced = [(tensor.name, tensor.shape, dtypes[tensor.name]) for tensor in wanted]
    with ShardedWriter(target, announced, size_in_bytes(max_shard_size)) as writer:
        for tensor, data in stream.tensors(wanted):
            writer.write(tensor.name, data.to(dtypes[tensor.name]))
    write_files = write_internvl_files if target_format == "internvl" else write_long_vita_files
    write_files(model, target, tokenizer, dtype_name(dtypes[wanted[-1].name]))


class _ConvertedTensors:
    """The tensors of one format, computed from a folder in another."""

    def __init__(self, source: SourceFolder, target: Mapper) -> None:
        self.source, self.read = source, source.mapper()
        self.blocks: dict[str, list[tuple[str, int, TensorBlock]]] = {}
        """For each target tensor: our parameter, its axis, and the block of it."""
        for name in parameter_names(source.config):
            item = target.map(name)
            for block in item.blocks:
                self.blocks.setdefault(block.tensor, []).append((name, item.axis, block))
        self._cached: dict[str, Tensor] = {}

    def dtype(self, tensor: HFTensor) -> torch.dtype:
        """The dtype of the tensor's values in the source folder."""
        blocks = self.blocks.get(tensor.name)
        parameter = blocks[0][0] if blocks else "vision_projection.linear_fc1.weight"
        origin = next(iter(self.read.map(parameter).tensors))
        name = self.source.reader.dtype(origin)
        if name not in _SAFETENSORS_DTYPES:
            raise CheckpointError(f"{origin} is of type {name}; only {', '.join(_SAFETENSORS_DTYPES)} can be converted")
        return _SAFETENSORS_DTYPES[name]

    def tensors(self, wanted: Iterable[HFTensor]) -> Iterator[tuple[HFTensor, Tensor]]:
        """Each wanted tensor with its values; zero where it is padding."""
        for tensor in wanted:
            values = torch.zeros(tensor.shape, dtype=self.dtype(tensor))
            for name, axis, block in self.blocks.get(tensor.name, []):
                part = self._parameter(name, values.dtype).narrow(axis, block.offset, block.length)
                values.narrow(axis, block.start, block.length).copy_(part)
            yield tensor, values

    def _parameter(self, name: str, dtype: torch.dtype) -> Tensor:
        """One of our parameters from the source; the last one is cached, since q, k and v follow each other."""
        if name not in self._cached:
            item = self.read.map(name)
            self._cached = {name: torch.empty(item.shape, dtype=dtype)}
            self.source.fill(item, self._cached[name])
        return self._cached[name]
