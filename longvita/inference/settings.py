"""Settings of the inference engine: all that a process of a model needs to know before it reads a weight."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from longvita.config.schema import Config


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """A model, its config with layout and platform, and its tokenizer."""

    model: str
    """Folder or Hub id of the weights."""
    config: Config
    tokenizer: str
    """Folder of the tokenizer."""
    precision: Literal["auto", "bf16", "fp32"]

    def payload(self) -> dict[str, Any]:
        """As plain data, for longvita.processes.launch."""
        return vars(self) | {"config": self.config.model_dump()}

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> EngineSettings:
        """The settings that `payload` was made from."""
        return cls(**(payload | {"config": Config.model_validate(payload["config"])}))
