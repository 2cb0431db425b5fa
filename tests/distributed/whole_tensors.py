"""Puts the parts that the ranks of a layout hold together again, so that layouts can be compared tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longvita.model.build import global_names
from longvita.parallel.groups import ParallelGroups


def local_parts(
    models: list[torch.nn.Module], groups: ParallelGroups, value: Callable[[torch.nn.Parameter], Tensor | None]
) -> dict[str, Any]:
    """What this rank holds: its place in the layout, and per global parameter name the value and how it is split."""
    parts = {}
    for model in models:
        for name, parameter in global_names(model):
            held = value(parameter)
            if held is None:
                continue
            split = parameter.partition_dim if getattr(parameter, "tensor_model_parallel", False) else None
            parts[name] = (held.detach().float().clone(), split)
    return {"place": (groups.dp_cp.rank(), groups.pp_rank, groups.tp_rank), "parts": parts}


def whole_tensors(ranks: list[dict[str, Any]], replica: int = 0) -> dict[str, Tensor]:
    """The whole tensors of one of the replicas (over DP and CP) from the local_parts of all ranks.

    A tensor that every TP rank holds whole must be bitwise the same on each of them.
    """
    held: dict[str, list[tuple[int, Tensor, int | None]]] = {}
    for rank in ranks:
        dp_rank, _, tp_rank = rank["place"]
        if dp_rank == replica:
            for name, (value, split) in rank["parts"].items():
                held.setdefault(name, []).append((tp_rank, value, split))
    return {name: _join(name, sorted(parts, key=lambda part: part[0])) for name, parts in held.items()}


def _join(name: str, parts: list[tuple[int, Tensor, int | None]]) -> Tensor:
    split = parts[0][2]
    values = [value for _, value, _ in parts]
    if split is None:
        for value in values[1:]:
            assert torch.equal(value, values[0]), f"the replicas of {name} differ over TP"
        return values[0]
    if name.endswith("mlp.linear_fc1.weight") and name.startswith("language_model"):
        halves = [value.chunk(2, dim=split) for value in values]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves], dim=split)
    return torch.cat(values, dim=split)
