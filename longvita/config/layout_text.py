"""A layout in short, as commands take it: tp=2,pp=2,sp=true."""

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


class LayoutError(UserError, ValueError):
    """A layout that cannot be read, or that does not fit the model or the processes."""


def parse_layout(text: str) -> LayoutConfig:
    """A LayoutConfig from "tp=2,pp=2,sp=true" (keys tp, pp, cp, vp, sp). Raises LayoutError otherwise."""
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = item.partition("=")
        key, value = key.strip().lower(), value.strip().lower()
        wrong = value not in ("true", "false") if key == "sp" else not (value.isdigit() and int(value) > 0)
        if key not in _KEYS or wrong:
            raise LayoutError(
                f"--layout: {item!r} is not understood; write it like tp=2,pp=2,sp=true ({', '.join(_KEYS)})"
            )
        values[_KEYS[key]] = value == "true" if key == "sp" else int(value)
    return LayoutConfig(**values)


def layout_text(layout: LayoutConfig) -> str:
    """The short form of a layout, as `parse_layout` takes it."""
    sizes = {key: getattr(layout, field) for key, field in _KEYS.items() if key != "sp"}
    parts = [f"{key}={size}" for key, size in sizes.items() if size > 1 or key == "tp"]
    return ",".join(parts + (["sp=true"] if layout.sequence_parallel else []))
