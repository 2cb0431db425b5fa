"""Gather complete Hugging Face tensors from the ranks' parameters, one tensor at a time.

First the ranks exchange which pieces of which tensors they hold (names and positions, no data). Then, tensor by tensor,
the pieces are sent to rank 0 point to point; a piece that several ranks hold is sent by one of them.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.tensor_map import HFTensor, Mapper, ParameterMap, TensorBlock
from longvita.config.schema import ModelConfig
from longvita.model.build import global_names
from longvita.parallel.groups import ParallelGroups
from longvita.processes import from_all_ranks


def named_parameters(models: Iterable[torch.nn.Module]) -> dict[str, torch.nn.Parameter]:
    """Parameters of a rank's chunks by name, with the layer numbers of the whole model."""
    return {name: parameter for model in models for name, parameter in global_names(model)}


@dataclass(frozen=True)
class _TensorPiece:
    """A block of a rank's parameter, the axis of the block, and the rank that sends it."""

    rank: int
    parameter: str
    axis: int
    block: TensorBlock


class Gatherer:
    """Complete tensors of one format from the chunks of all ranks.

    `value` maps a parameter to the tensor that is gathered: its weight (the default), or its gradient. The constructor
    and `tensor` are collectives over the world; only rank 0 receives tensors.
    """

    def __init__(
        self,
        models: Iterable[torch.nn.Module],
        mapper: Mapper,
        groups: ParallelGroups,
        value: Callable[[torch.nn.Parameter], Tensor] | None = None,
    ) -> None:
        self.rank = dist.get_rank()
        self.value = value or (lambda parameter: parameter.data)
        self.parameters = named_parameters(models)
        pieces: list[_TensorPiece] = []
        for name, parameter in self.parameters.items():
            item = mapper.map(name)
            check_shape(item, parameter)
            if groups.dp_rank == 0 and groups.cp_rank == 0:
                pieces += [_TensorPiece(self.rank, name, item.axis, block) for block in item.blocks]
        self.plan = _one_sender_each(itertools.chain.from_iterable(from_all_ranks(pieces)))

    def tensor(self, wanted: HFTensor) -> Tensor | None:
        """A complete tensor on the host of rank 0, None on the other ranks."""
        pieces = self.plan.get(wanted.name, [])
        _check_coverage(wanted, pieces)
        complete = torch.zeros(wanted.shape, dtype=self._any_value().dtype) if self.rank == 0 else None
        by_rank = operator.attrgetter("rank")
        for rank, group in itertools.groupby(sorted(pieces, key=by_rank), by_rank):
            own = list(group)
            data = self._send_to_first(wanted, rank, own)
            if complete is None or data is None:
                continue
            axis, blocks = own[0].axis, [piece.block for piece in own]
            for part, block in zip(data.split([block.length for block in blocks], dim=axis), blocks, strict=True):
                complete.narrow(axis, block.start, block.length).copy_(part)
        return complete

    def _send_to_first(self, tensor: HFTensor, rank: int, pieces: list[_TensorPiece]) -> Tensor | None:
        """The pieces of one rank, concatenated along their axis, on rank 0; None elsewhere."""
        if self.rank not in (0, rank):
            return None
        axis = pieces[0].axis
        if self.rank == rank:
            values = [self.value(self.parameters[piece.parameter]) for piece in pieces]
            parts = [x.narrow(axis, p.block.offset, p.block.length) for x, p in zip(values, pieces, strict=True)]
            data = torch.cat(parts, dim=axis).contiguous()
            if rank == 0:
                return data.cpu()
            dist.send(data, dst=0)
            return None
        shape = list(tensor.shape)
        shape[axis] = sum(piece.block.length for piece in pieces)
        like = self._any_value()
        data = torch.empty(shape, dtype=like.dtype, device=like.device)
        dist.recv(data, src=rank)
        return data.cpu()

    def _any_value(self) -> Tensor:
        return self.value(next(iter(self.parameters.values())))


def check_shape(item: ParameterMap, parameter: Tensor) -> None:
    """Raise CheckpointError unless the parameter has the shape of its map."""
    if tuple(parameter.shape) != item.shape:
        names = ", ".join(f"{x.name} {x.shape}" for x in item.tensors.values())
        raise CheckpointError(
            f"{item.parameter} is {tuple(parameter.shape)} and the format expects {item.shape} ({names})"
        )


def _one_sender_each(pieces: Iterable[_TensorPiece]) -> dict[str, list[_TensorPiece]]:
    """For each tensor its pieces, each from the first rank that has it, in the order of their start."""
    chosen: dict[tuple[str, int, int], _TensorPiece] = {}
    for piece in pieces:
        chosen.setdefault((piece.block.tensor, piece.block.start, piece.block.length), piece)
    plan: dict[str, list[_TensorPiece]] = {}
    for (tensor, _, _), piece in sorted(chosen.items()):
        plan.setdefault(tensor, []).append(piece)
    return plan


def _check_coverage(tensor: HFTensor, pieces: list[_TensorPiece]) -> None:
    end = 0
    for piece in pieces:
        start = piece.block.start
        if start != end:
            raise CheckpointError(f"{tensor.name} {tensor.shape}: no rank holds {end} to {start}, or two do")
        end += piece.block.length
    size = tensor.shape[pieces[0].axis] if pieces else 0
    if end != size and not tensor.padded:
        raise CheckpointError(f"{tensor.name} {tensor.shape}: the ranks hold {end} of {size}")
    if not pieces and not tensor.padded:
        raise CheckpointError(f"{tensor.name}: no rank holds it")


def model_settings(models: Sequence[torch.nn.Module]) -> ModelConfig:
    """The ModelConfig that these chunks were built with."""
    model: Any = models[0]
    return model.settings.model
