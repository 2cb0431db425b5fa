"""Refusal of arguments that the stub does not compute, so that no test ignores them."""

from __future__ import annotations

from typing import Any


def only(where: str, **values: Any) -> None:
    """Raises NotImplementedError unless each value is falsy: `only("Linear", ub_overlap_ag=ub_overlap_ag)`."""
    asked = {name: value for name, value in values.items() if value not in (None, False, 0, 0.0, ())}
    if asked:
        raise NotImplementedError(f"the stub of transformer_engine's {where} does not compute {asked}")
