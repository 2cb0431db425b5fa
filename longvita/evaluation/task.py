"""The interface of an evaluation task: items that the model answers one by one, and scores of the answers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from longvita.config.schema import Config
from longvita.inference.prompt import Prompt

if TYPE_CHECKING:
    from longvita.inference.engine import Engine
    from longvita.inference.prompt_encoder import PromptEncoder

AnswerRecord = dict[str, Any]
"""What is kept of one answer, as JSON; "error" in place of an answer where the media cannot be used."""


@dataclass(frozen=True)
class EvaluationItem:
    """One prompt to answer."""

    key: str
    """Unique within the task."""
    digest: str
    """Of what is asked and of the right answer: an answer to an item with another digest does not count."""
    group: str
    """Items of a group show the same media. One replica answers them one after the other, so media are read once."""
    cost: float
    """Approximate time that the media of the group take, in any unit."""


@dataclass(frozen=True)
class ItemPrompt:
    """An encoded item."""

    prompt: Prompt
    facts: AnswerRecord
    """What the record holds about the item in addition to the answer."""


class EvaluationTask(Protocol):
    """A benchmark. Every process builds it from the same arguments."""

    name: str

    def identity(self, config: Config) -> Mapping[str, Any]:
        """Return what answers depend on in addition to the model, as JSON; answers of two identities are not mixed."""

    def check(self, encoder: PromptEncoder) -> None:
        """Raise UserError where the settings leave no room for the items, before weights are read."""

    def longest(self, encoder: PromptEncoder) -> int | None:
        """Return the tokens of the longest item with its answer; None where items are fitted to the limit."""
        return None

    def items(self) -> Sequence[EvaluationItem]:
        """List all items in the order of the report."""

    def prepare(self, item: EvaluationItem) -> None:
        """Unpack the item's files if they are packed. One process calls it before the others read them.

        Raises UserError where that fails.
        """
        return

    def encode(self, engine: Engine, item: EvaluationItem) -> ItemPrompt:
        """Encode the item, on each process by itself. Raises UserError where its media cannot be used."""

    def ask(self, engine: Engine, item: EvaluationItem, asked: ItemPrompt) -> AnswerRecord:
        """Generate the answer, on all processes of a replica together, and judge it.

        Raises the same UserError on all of them.
        """

    def score(self, records: Mapping[str, AnswerRecord]) -> dict[str, Any]:
        """Compute the scores from one record for each item, by key. "overall" and "failed" are among the scores."""

    def illustrate(self, records: Mapping[str, AnswerRecord], folder: Path) -> None:
        """Write images or pages about the answers into the folder."""


def digest_of(*parts: object) -> str:
    """Return a digest of the parts of an item: bytes, and values with a fixed representation."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def accuracy(records: Collection[AnswerRecord]) -> dict[str, Any]:
    """Count right and asked items, and divide them."""
    right = sum(bool(record.get("right")) for record in records)
    return {"right": right, "asked": len(records), "accuracy": right / max(len(records), 1)}
