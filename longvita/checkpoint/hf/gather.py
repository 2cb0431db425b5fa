"""Puts whole Hugging Face tensors together from what the ranks hold, one tensor at a time.

Every rank tells the first one once which pieces of which tensors it has (names and positions, no data). Then, tensor by
tensor, the pieces travel to rank 0 point to point; a piece that several ranks hold is sent by one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.tensor_map import HFTensor, Mapper, ParameterMap
from longvita.model.initialisation import global_names
from longvita.parallel.groups import ParallelGroups


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside wrappers such as DDP."""
    while isinstance(inner := getattr(model, "module", None), torch.nn.Module):
        model = inner
    return model


def named_parameters(models: Iterable[torch.nn.Module]) -> dict[str, torch.nn.Parameter]:
    """Parameters of a rank's chunks by name, with the layer numbers of the whole model."""
    return {name: parameter for model in models for name, parameter in global_names(unwrap(model))}


@dataclass(frozen=True)
class _Piece:
    """A run of rows or columns of a tensor, and who sends it."""

    rank: int
    parameter: str
    axis: int
    start: int
    offset: int
    length: int


class Gatherer:
    """Whole tensors of one layout from the chunks of all ranks.

    `value` says what is gathered for a parameter: its weight, its gradient. Building one, and iterating over it, are
    collective: every rank of the world takes part, and rank 0 alone receives tensors.
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
        self.maps = {name: mapper.map(name) for name in self.parameters}
        for name, parameter in self.parameters.items():
            check_shape(self.maps[name], parameter)
        holds = groups.dp_rank == 0 and groups.cp_rank == 0
        plans: list[dict[str, list[_Piece]]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(plans, self._own_pieces() if holds else {})
        self.plan = _one_sender_each(plans)

    def _own_pieces(self) -> dict[str, list[_Piece]]:
        pieces: dict[str, list[_Piece]] = {}
        for name, item in self.maps.items():
            for block in item.blocks:
                piece = _Piece(self.rank, name, item.axis, block.start, block.offset, block.length)
                pieces.setdefault(block.tensor, []).append(piece)
        return pieces

    def tensors(self, wanted: Iterable[HFTensor]) -> Iterator[tuple[HFTensor, Tensor | None]]:
        """Each wanted tensor on the host of rank 0, None on the other ranks."""
        for tensor in wanted:
            yield tensor, self._tensor(tensor)

    def _tensor(self, tensor: HFTensor) -> Tensor | None:
        pieces = self.plan.get(tensor.name, [])
        _check_coverage(tensor, pieces)
        by_rank: dict[int, list[_Piece]] = {}
        for piece in pieces:
            by_rank.setdefault(piece.rank, []).append(piece)
        whole: Tensor | None = None
        for rank, own in sorted(by_rank.items()):
            data = self._carry(tensor, rank, own)
            if data is None:
                continue
            if whole is None:
                whole = torch.zeros(tensor.shape, dtype=data.dtype)
            for part, piece in zip(data.split([p.length for p in own], dim=own[0].axis), own, strict=True):
                whole.narrow(piece.axis, piece.start, piece.length).copy_(part)
        if whole is None and self.rank == 0:
            whole = torch.zeros(tensor.shape, dtype=self._dtype())
        return whole

    def _carry(self, tensor: HFTensor, rank: int, pieces: list[_Piece]) -> Tensor | None:
        """The pieces of one rank, side by side along their axis, on rank 0; None elsewhere."""
        if self.rank not in (0, rank):
            return None
        axis = pieces[0].axis
        if self.rank == rank:
            parts = [self.value(self.parameters[p.parameter]).narrow(p.axis, p.offset, p.length) for p in pieces]
            data = torch.cat(parts, dim=axis).contiguous()
            if rank == 0:
                return data.cpu()
            dist.send(data, dst=0)
            return None
        shape = list(tensor.shape)
        shape[axis] = sum(piece.length for piece in pieces)
        like = self.value(next(iter(self.parameters.values())))
        data = torch.empty(shape, dtype=like.dtype, device=like.device)
        dist.recv(data, src=rank)
        return data.cpu()

    def _dtype(self) -> torch.dtype:
        return self.value(next(iter(self.parameters.values()))).dtype


def check_shape(item: ParameterMap, parameter: Tensor) -> None:
    """Raises CheckpointError unless the parameter has the shape that its map says."""
    if tuple(parameter.shape) != item.shape:
        names = ", ".join(f"{x.name} {x.shape}" for x in item.tensors.values())
        raise CheckpointError(
            f"{item.parameter} is {tuple(parameter.shape)} and the layout expects {item.shape} ({names})"
        )


def _one_sender_each(plans: list[dict[str, list[_Piece]]]) -> dict[str, list[_Piece]]:
    """For each tensor its pieces, each from the lowest rank that has it, in the order of their start."""
    chosen: dict[str, dict[tuple[int, int], _Piece]] = {}
    for plan in plans:
        for name, pieces in plan.items():
            for piece in pieces:
                chosen.setdefault(name, {}).setdefault((piece.start, piece.length), piece)
    return {name: sorted(pieces.values(), key=lambda p: p.start) for name, pieces in chosen.items()}


def _check_coverage(tensor: HFTensor, pieces: list[_Piece]) -> None:
    end = 0
    for piece in pieces:
        if piece.start != end:
            raise CheckpointError(f"{tensor.name} {tensor.shape}: no rank holds {end} to {piece.start}, or two do")
        end += piece.length
    size = tensor.shape[pieces[0].axis] if pieces else 0
    if end != size and not tensor.padded:
        raise CheckpointError(f"{tensor.name} {tensor.shape}: the ranks hold {end} of {size}")
    if not pieces and not tensor.padded:
        raise CheckpointError(f"{tensor.name}: no rank holds it")
