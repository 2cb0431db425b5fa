"""Refuses quantised folders: their weights are codes, which read as values would be a model of noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.safetensors_folder import INDEX, SINGLE

_CONFIG_KEYS = ("quantization_config", "compression_config")
_CONFIG_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Written by GPTQ, AWQ and ModelOpt next to config.json."""
_CODES = ("I8", "U8", "I16", "U16", "I32", "U32", "F8", "F6", "F4")
"""Beginnings of dtypes that hold codes of quantised weights; I64 and BOOL are those of buffers."""

_MAX_HEADER = 100_000_000
"""Bytes; the safetensors library refuses larger ones."""


def check_not_quantised(folder: Path) -> None:
    """Raise CheckpointError for a folder of quantised weights, by its configs or by the headers of its weights.

    Files that cannot be read are left to their readers, which report them.
    """
    found = _in_config(_json(folder / "config.json"), "config.json")
    found = found or next((name for name in _CONFIG_FILES if (folder / name).is_file()), "")
    single = folder / SINGLE
    paths = sorted(folder.glob("*.safetensors"))
    if single in paths and not (folder / INDEX).is_file():
        paths = [single]
    found = found or next((text for path in paths if (text := _in_header(path))), "")
    if found:
        raise CheckpointError(
            f"{folder} is quantised ({found}), and this project computes with 16-bit and 32-bit weights; fix: give the "
            "model's folder from before its quantisation"
        )


def _in_config(config: Any, name: str) -> str:
    """Where a config or one of its sections describes a quantisation, in words; empty where none does."""
    if not isinstance(config, dict):
        return ""
    if key := next((key for key in _CONFIG_KEYS if config.get(key)), ""):
        return f"{key} in {name}"
    return next((text for value in config.values() if (text := _in_config(value, name))), "")


def _in_header(path: Path) -> str:
    """The first tensor of codes in a safetensors file, in words; empty where there is none."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size) if size <= _MAX_HEADER else b"")
    except (OSError, ValueError):
        return ""
    tensors = header.items() if isinstance(header, dict) else ()
    for name, facts in tensors:
        dtype = str(facts.get("dtype", "")) if isinstance(facts, dict) else ""
        if dtype.startswith(_CODES) and not name.endswith("position_ids"):
            return f"{name} is of type {dtype}"
    return ""


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
