"""The short form of a layout in command line options: tp=2,pp=2,sp=true."""

from __future__ import annotations

from typing import Any

from longvita.config.schema import LayoutConfig
from longvita.errors import UserError

_KEYS = {
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "cp": "context_parallel",
    "vp": "virtual_pipeline",
    "sp": "sequence_parallel",
}
UNEVEN_STAGES = ("num_layers_in_first_pipeline_stage", "num_layers_in_last_pipeline_stage")
"""Fields that decide which layers a stage has and that the short form lacks."""


class LayoutError(UserError, ValueError):
    """A layout that cannot be parsed, or that does not fit the model or the processes."""


def parse_layout(text: str) -> LayoutConfig:
    """Parse "tp=2,pp=2,sp=true" (keys tp, pp, cp, vp, sp). Raises LayoutError for any other form."""
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = item.partition("=")
        key, value = key.strip().lower(), value.strip().lower()
        wrong = value not in ("true", "false") if key == "sp" else not (value.isdigit() and int(value) > 0)
        if key not in _KEYS or wrong:
            raise LayoutError(
                f"--layout: {item!r} is not valid; fix: write it like tp=2,pp=2,sp=true (keys {', '.join(_KEYS)})"
            )
        values[_KEYS[key]] = value == "true" if key == "sp" else int(value)
    return LayoutConfig(**values)


def layout_text(layout: LayoutConfig) -> str:
    """Format a layout in the short form that `parse_layout` reads."""
    sizes = {key: getattr(layout, field) for key, field in _KEYS.items() if key != "sp"}
    parts = [f"{key}={size}" for key, size in sizes.items() if size > 1 or key == "tp"]
    return ",".join(parts + (["sp=true"] if layout.sequence_parallel else []))
