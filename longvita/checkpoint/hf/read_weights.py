"""Read the weights of a Hugging Face folder into built chunks, at any TP and PP.

The folder is checked against the model before any weight is read: names, shapes, biases and tied embeddings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import read_json
from longvita.checkpoint.hf.gather_tensors import check_shape, model_settings, named_parameters
from longvita.checkpoint.hf.hub import local_folder
from longvita.checkpoint.hf.quantised import check_not_quantised
from longvita.checkpoint.hf.safetensors_folder import SafetensorsReader
from longvita.checkpoint.hf.tensor_map import PARTS, HFTensor, Mapper, ParameterMap, hf_tensors, part_of_parameter
from longvita.checkpoint.hf.tensor_names import detect_names, needed, part_of
from longvita.config.schema import ModelConfig
from longvita.parallel.groups import ParallelGroups
from longvita.processes import raise_on_all_ranks

_ROWS_AT_ONCE = 8192
_NOT_WEIGHTS = ("rotary_emb.inv_freq", "position_ids")
"""Ends of the names of buffers that some writers save; they are computed, not read."""
_MAX_LISTED = 8


def read_weights(
    models: Sequence[torch.nn.Module],
    folder: str | Path,
    groups: ParallelGroups,
    parts: Sequence[str] = PARTS,
) -> None:
    """Fill the chunks of this rank with the weights of a Hugging Face folder or Hub id.

    Formats: published Long-VITA, Qwen2.5 (language), InternViT (vision), transformers' InternVL. Only the slices that
    this rank holds are read, and only `parts`; other parameters stay as they are. A vocabulary with fewer rows than the
    model's fills the remaining rows with the mean of its own; tied embeddings fill both of an untied model.

    A collective. Raises CheckpointError on every rank when any rank finds something wrong.
    """
    place = local_folder(folder)

    @torch.no_grad()
    def read_own_slices() -> None:
        source = SourceFolder(place, model_settings(models), parts)
        mapper = source.mapper(groups.tp_rank, groups.tp_size)
        for name, parameter in named_parameters(models).items():
            if part_of_parameter(name) in source.parts:
                item = mapper.map(name)
                check_shape(item, parameter)
                source.fill(item, parameter.data)

    raise_on_all_ranks(read_own_slices, error=CheckpointError, name_ranks=True)


class SourceFolder:
    """A Hugging Face folder checked against a model: its tensors, and the values of our parameters from them.

    `parts` are those that are wanted (vision, projector, language). Raises CheckpointError naming every tensor that is
    missing, unexpected or of another shape, or a quantised one.
    """

    def __init__(self, folder: Path, config: ModelConfig, parts: Iterable[str] = PARTS) -> None:
        self.folder, self.config, self.parts = folder, config, tuple(parts)
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown or not self.parts:
            raise CheckpointError(f"parts {list(self.parts)}: choose among {', '.join(PARTS)}")
        check_not_quantised(folder)
        self.reader = SafetensorsReader(folder)
        self.names = detect_names(self.reader.names(), "Hugging Face")
        for part in self.parts:
            if getattr(self.names, part) is None:
                raise CheckpointError(f"{folder} has no {part} weights in any known format")
        self.tied = "language" in self.parts and self._is_tied()
        self._check_names()
        self._check_biases()
        self._check_output_layer()

    def mapper(self, tp_rank: int = 0, tp_size: int = 1) -> Mapper:
        """The Mapper of one TP rank, for the folder's vocabulary and tied embeddings."""
        rows = None
        if "language" in self.parts and needed(self.names.language).embedding in self.reader:
            rows = self.reader.shape(needed(self.names.language).embedding)[0]
        return Mapper(self.config, self.names, tp_rank, tp_size, vocab_rows=rows, tied=self.tied)

    def fill(self, item: ParameterMap, target: Tensor) -> None:
        """Copy a parameter's rows or columns from the folder into `target`, converting the dtype."""
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

    def check_shapes(self, item: ParameterMap) -> None:
        """Raise CheckpointError when a tensor of this parameter has another shape in the folder."""
        for tensor in item.tensors.values():
            found = self.reader.shape(tensor.name)
            if found != tensor.shape:
                raise CheckpointError(
                    f"{tensor.name} is {found} in {self.folder} and the model needs {tensor.shape} "
                    f"(for {item.parameter}); check the sizes in the config's model section"
                )

    def _is_tied(self) -> bool:
        head = needed(self.names.language).head
        if head in self.reader:
            return False
        config = read_json(self.folder / "config.json")
        return bool({**config, **config.get("text_config", {})}.get("tie_word_embeddings", False))

    def _check_names(self) -> None:
        expected = {tensor.name for tensor in hf_tensors(self.config, self.names, self.mapper(), self.parts)}
        present = {
            name
            for name in self.reader.names()
            if part_of(name, self.names) in self.parts and not name.endswith(_NOT_WEIGHTS)
        }
        if self.config.language.tie_word_embeddings and self.names.language:
            present.discard(self.names.language.head)
        if self.parts == PARTS:  # a tensor of no part at all is unexpected only when everything is read
            present |= {n for n in self.reader.names() if part_of(n, self.names) is None}
        missing, unexpected = sorted(expected - present), sorted(present - expected)
        if missing or unexpected:
            raise CheckpointError(
                f"{self.folder} does not fit the model."
                + _listed("Missing tensors", missing)
                + _listed("Unexpected tensors", unexpected)
                + " Check the model section of the config (layers, tied embeddings) against the folder's config.json."
            )

    def _check_biases(self) -> None:
        """Biases of InternVL's projector must be zero: ours has none."""
        if "projector" not in self.parts or not needed(self.names.projector).padded:
            return
        for tensor in hf_tensors(self.config, self.names, self.mapper(), ("projector",)):
            if tensor.name.endswith(("linear_1.bias", "linear_2.bias")) and torch.count_nonzero(
                self.reader.read(tensor.name)
            ):
                raise CheckpointError(
                    f"{tensor.name} is not zero and Long-VITA's projector has no biases; read this folder with the "
                    "parts vision and language alone and train the projector"
                )

    def _check_output_layer(self) -> None:
        """A tied model has no output layer of its own, so the folder's must be equal to its embedding."""
        if "language" not in self.parts or not self.config.language.tie_word_embeddings:
            return
        names = needed(self.names.language)
        if names.head not in self.reader:
            return
        for start in range(0, self.reader.shape(names.embedding)[0], _ROWS_AT_ONCE):
            rows = (0, start, _ROWS_AT_ONCE)
            if not torch.equal(self.reader.read(names.head, *rows), self.reader.read(names.embedding, *rows)):
                raise CheckpointError(
                    f"{names.head} differs from {names.embedding} in {self.folder}; set "
                    "model.language.tie_word_embeddings to false"
                )

    def _mean_row(self, tensor: HFTensor) -> Tensor:
        total = torch.zeros(tensor.shape[1:], dtype=torch.float64)
        for start in range(0, tensor.shape[0], _ROWS_AT_ONCE):
            total += self.reader.read(tensor.name, 0, start, _ROWS_AT_ONCE).double().sum(0)
        return total / tensor.shape[0]

    def _check_padding(self, tensor: HFTensor, item: ParameterMap) -> None:
        covered, size = item.shape[item.axis], tensor.shape[item.axis]
        rest = self.reader.read(tensor.name, item.axis, covered, size - covered)
        if torch.count_nonzero(rest):
            raise CheckpointError(
                f"{tensor.name} {tensor.shape} has values beyond {covered} on axis {item.axis}; set "
                f"model.projector.hidden_size to {size} to keep them"
            )


def _listed(title: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f" {title}: {', '.join(names[:_MAX_LISTED])}{more}."
