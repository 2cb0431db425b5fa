"""What an evaluation is made of: items that are answered one by one, and a report on the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from longvita.config.schema import Config
from longvita.inference.prompt import Prompt

if TYPE_CHECKING:
    from longvita.inference.engine import Engine
    from longvita.inference.prompt_encoder import PromptEncoder

Record = dict[str, Any]
"""What is kept of one answer, as JSON; "error" instead of an answer where its media cannot be used."""


@dataclass(frozen=True)
class Item:
    """One thing to be asked."""

    key: str
    """Its name, like no other's of the task."""
    group: str
    """Items of a group show the same media: one replica asks them one after the other, so that these are read once."""
    cost: float
    """About how long the media of its group take, in any unit."""


@dataclass(frozen=True)
class Asked:
    """An item as the model is asked it."""

    prompt: Prompt
    facts: Record
    """What the record tells of it."""


class Task(Protocol):
    """An evaluation. Every process builds it from the same arguments."""

    name: str

    def identity(self, config: Config) -> Mapping[str, Any]:
        """What answers depend on beside the model, as JSON: answers of another identity are not mixed with these."""

    def check(self, encoder: PromptEncoder) -> None:
        """Raises UserError where the settings leave no room for what is asked, before weights are read."""

    def items(self) -> Sequence[Item]:
        """Everything that is asked, in the order of the report."""

    def prepare(self, item: Item) -> None:
        """Brings the item's files into place; called by one process before the others come to them.

        Raises UserError where that fails.
        """

    def encode(self, engine: Engine, item: Item) -> Asked:
        """What is asked, on each process by itself. Raises UserError where its media cannot be used."""

    def ask(self, engine: Engine, item: Item, asked: Asked) -> Record:
        """The answer, on all processes of a replica together. Raises UserError on all of them alike."""

    def score(self, records: Mapping[str, Record]) -> dict[str, Any]:
        """The scores; `records` by key, one for each item. "overall" and "failed" are among them."""

    def illustrate(self, records: Mapping[str, Record], folder: Path) -> None:
        """Writes what people look at into the folder."""
