"""Batches of a packed sequence's documents, so that a batched kernel computes many documents in one call.

For short documents the calls cost more than the computation. Neighbours of equal length form a batch without a copy;
other short documents of similar lengths are copied into a batch and padded at their ends. Under a causal mask no token
attends to a later one, so the padding changes no result, and its own rows are dropped.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH_CLASSES = (8, 16, 24, 32, 48, 64, 96, 128)
"""A short document shares a batch with the others of its class, up to one of these lengths. Longer ones get their own
calls."""


@dataclass(frozen=True)
class DocumentGroup:
    """Documents of a batch.

    documents, length: shape of the batch. start: first token of adjacent documents that need no padding. For others,
    `rows` [documents * length] int64 is the token at each place of the batch, and `padding` [n] int64 are the places
    that repeat a document's last token.
    """

    documents: int
    length: int
    start: int = 0
    rows: Tensor | None = None
    padding: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """The group's tokens of x [t, heads, d] as [documents, heads, length, d], without a copy if possible."""
        if self.rows is None:
            batch = x[self.start : self.start + self.documents * self.length]
        else:
            batch = x.index_select(0, self.rows)
        return batch.unflatten(0, (self.documents, self.length)).transpose(1, 2)

    def take_gradient(self, x: Tensor) -> Tensor:
        """`take` for a gradient, which is zero in the padding."""
        if self.rows is None or self.padding is None:
            return self.take(x)
        batch = x.index_select(0, self.rows).index_fill_(0, self.padding, 0)
        return batch.unflatten(0, (self.documents, self.length)).transpose(1, 2)


@dataclass(frozen=True)
class DocumentPlan:
    """All documents of a sequence in groups.

    order: [t] int64, the place of each token in the concatenated batches; None if they are in order.
    """

    groups: tuple[DocumentGroup, ...]
    order: Tensor | None

    def join(self, batches: list[Tensor]) -> Tensor:
        """The groups' batches [documents, heads, length, d] as one sequence [t, heads, d], without padding."""
        tokens = [batch.transpose(1, 2).flatten(0, 1) for batch in batches]
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        return joined if self.order is None else joined.index_select(0, self.order)


@functools.lru_cache(maxsize=8)
def plan_documents(bounds: tuple[int, ...]) -> DocumentPlan:
    """Groups of all documents. bounds: their starts, then the end of the last. Empty documents are left out."""
    runs = _equal_runs(bounds)
    classes: dict[int, list[tuple[int, int, int]]] = {}
    for run in runs:
        key = next((top for top in LENGTH_CLASSES if run[2] <= top), -run[0] - 1)
        classes.setdefault(key, []).append(run)
    groups = tuple(_group(members) for members in classes.values())
    if len(groups) == len(runs):
        return DocumentPlan(groups, order=None)
    return DocumentPlan(groups, _order(groups, bounds[-1]))


def _equal_runs(bounds: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Runs of neighbouring documents of equal length: (start, documents, length)."""
    runs: list[tuple[int, int, int]] = []
    for start, end in itertools.pairwise(bounds):
        if runs and runs[-1][2] == end - start:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, end - start)
        elif end > start:
            runs.append((start, 1, end - start))
    return runs


def _group(runs: list[tuple[int, int, int]]) -> DocumentGroup:
    if len(runs) == 1:
        return DocumentGroup(start=runs[0][0], documents=runs[0][1], length=runs[0][2])
    documents = [(start + i * length, length) for start, count, length in runs for i in range(count)]
    longest = max(length for _, length in documents)
    starts = torch.tensor([start for start, _ in documents])[:, None]
    lengths = torch.tensor([length for _, length in documents])[:, None]
    offsets = torch.arange(longest)[None]
    rows = starts + torch.minimum(offsets, lengths - 1)
    padding = (offsets >= lengths).flatten().nonzero().flatten()
    return DocumentGroup(len(documents), longest, rows=rows.flatten(), padding=padding)


def _order(groups: tuple[DocumentGroup, ...], tokens: int) -> Tensor:
    """Place of each token in the concatenated batches."""
    rows, real = [], []
    for group in groups:
        size = group.documents * group.length
        rows.append(torch.arange(group.start, group.start + size) if group.rows is None else group.rows)
        real.append(torch.ones(size, dtype=torch.bool))
        if group.padding is not None:
            real[-1][group.padding] = False
    places = torch.cat(real).nonzero().flatten()
    order = torch.empty(tokens, dtype=torch.int64)
    order[torch.cat(rows)[places]] = places
    return order
