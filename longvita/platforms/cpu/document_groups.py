"""Documents of a packed sequence, put together so that a batched kernel takes many in one call.

Short documents cost more in calls than in work. Neighbours of one length are a batch as they lie in memory; other
short ones of about the same length are copied into a batch and filled up at their ends. Under a causal mask no token
sees a later one, so filling changes nothing before it, and its own rows are dropped.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTH_CLASSES = (8, 16, 24, 32, 48, 64, 96, 128)
"""Short documents share a batch with those up to the same of these lengths; longer ones have calls of their own."""


@dataclass(frozen=True)
class DocumentGroup:
    """Some documents as a batch.

    documents, length: shape of the batch. start: first token, where they lie side by side and need no filling;
    otherwise `rows` [documents * length] int64 says which token stands at each place of the batch, and `filled` [n]
    int64 which places repeat a document's last token.
    """

    documents: int
    length: int
    start: int = 0
    rows: Tensor | None = None
    filled: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """The group's tokens of x [t, heads, d] as [documents, heads, length, d], a view where possible."""
        if self.rows is None:
            batch = x[self.start : self.start + self.documents * self.length]
        else:
            batch = x.index_select(0, self.rows)
        return batch.unflatten(0, (self.documents, self.length)).transpose(1, 2)

    def take_gradient(self, x: Tensor) -> Tensor:
        """The same for a gradient, which is zero where the batch is filled."""
        if self.rows is None or self.filled is None:
            return self.take(x)
        batch = x.index_select(0, self.rows).index_fill_(0, self.filled, 0)
        return batch.unflatten(0, (self.documents, self.length)).transpose(1, 2)


@dataclass(frozen=True)
class DocumentPlan:
    """All documents of a sequence in groups.

    order: [t] int64, where each token stands when the groups' batches are joined; None if in place already.
    """

    groups: tuple[DocumentGroup, ...]
    order: Tensor | None

    def join(self, batches: list[Tensor]) -> Tensor:
        """The groups' batches [documents, heads, length, d] as one sequence [t, heads, d], filling left out."""
        tokens = [batch.transpose(1, 2).flatten(0, 1) for batch in batches]
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens)
        return joined if self.order is None else joined.index_select(0, self.order)


@functools.lru_cache(maxsize=8)
def plan_documents(bounds: tuple[int, ...]) -> DocumentPlan:
    """Groups that cover all documents; bounds are their starts, then the end of the last. Empty ones are left out."""
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
    """Neighbouring documents of one length: (start, documents, length)."""
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
    filled = (offsets >= lengths).flatten().nonzero().flatten()
    return DocumentGroup(len(documents), longest, rows=rows.flatten(), filled=filled)


def _order(groups: tuple[DocumentGroup, ...], tokens: int) -> Tensor:
    """Place of each token among the joined batches."""
    rows, real = [], []
    for group in groups:
        size = group.documents * group.length
        rows.append(torch.arange(group.start, group.start + size) if group.rows is None else group.rows)
        real.append(torch.ones(size, dtype=torch.bool))
        if group.filled is not None:
            real[-1][group.filled] = False
    places = torch.cat(real).nonzero().flatten()
    order = torch.empty(tokens, dtype=torch.int64)
    order[torch.cat(rows)[places]] = places
    return order
