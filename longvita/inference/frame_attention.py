"""How much of the attention of an answer's tokens each tile of the prompt received.

Measured in the decode step: its attention probabilities are computed again from its queries, the cached keys and the
final logsumexps, and summed over heads, layers and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from longvita.attention.kv_cache import Blocks
from longvita.parallel.groups import ParallelGroups


class FrameAttention:
    """Sums attention to the cached rows of this rank, as `KVCache.observer` during decode."""

    def __init__(self) -> None:
        self._mass = torch.zeros(0, dtype=torch.float64)
        self._queries = 0

    def observe(self, q: Tensor, past: Blocks, lse: Tensor, scale: float) -> None:
        """Add one layer's attention of a new token: q [t, heads, d], and the cached keys and values of this rank.

        lse [t, heads]: logsumexps of the scaled scores over all keys of all ranks. Rows after the first are padding for
        sequence parallel.
        """
        masses = []
        for keys, _ in past:
            queries, norms = (x[0].float().unflatten(0, (keys.shape[1], -1)) for x in (q, lse))
            scores = torch.einsum("grd,ngd->grn", queries, keys.float()) * scale
            masses.append((scores - norms[..., None]).exp_().sum(dim=(0, 1)).cpu().double())
        mass = torch.cat([self._mass[:0], *masses])
        self._mass = torch.nn.functional.pad(self._mass, (0, max(0, len(mass) - len(self._mass))))
        self._mass[: len(mass)] += mass
        self._queries += lse.shape[1]

    def shares(
        self,
        positions: Sequence[int],
        tile_starts: Sequence[int],
        tokens_per_tile: int,
        groups: ParallelGroups,
        device: torch.device,
    ) -> Tensor:
        """Return the fraction [n] of all attention that each tile received. A collective over the replica.

        positions: of the cached rows of this rank in the sequence; tile_starts [n]: of the tiles' first rows; device:
        of the collectives. The remainder to one was attention to text, including the answer.
        """
        starts = torch.tensor(list(tile_starts), dtype=torch.int64)
        total = torch.zeros(len(starts) + 1, dtype=torch.float64)
        rows = torch.tensor(list(positions), dtype=torch.int64)[: len(self._mass)]
        if len(starts):
            tile = torch.searchsorted(starts, rows, right=True) - 1
            inside = (tile >= 0) & (rows < starts[tile.clamp(min=0)] + tokens_per_tile)
            total.index_add_(0, tile[inside], self._mass[: len(rows)][inside])
        # Context-parallel ranks observe the same queries.
        total[-1] = self._queries if groups.cp_rank == 0 else 0
        everyone = total.float().to(device)
        for group in (groups.tp_cp, groups.pp):
            dist.all_reduce(everyone, group=group)
        return (everyone[:-1] / everyone[-1].clamp(min=1)).cpu()
