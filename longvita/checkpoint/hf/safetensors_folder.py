"""Read slices from, and stream tensors into, a folder of safetensors files.

The writer is our own: the safetensors library writes a file from tensors that are all in memory, ours holds one at a
time. File format (https://huggingface.co/docs/safetensors): 8 bytes little-endian header length, a JSON header of
dtype, shape and byte range per tensor, then the bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.tensor_map import Shape

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class SafetensorsReader:
    """The tensors of a folder: one safetensors file, or several with an index. Files are opened when first needed.

    Raises CheckpointError for a folder without safetensors, an index that names absent files, a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = self._index()
        self._open: dict[str, Any] = {}

    def _index(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.is_file():
            try:
                files = dict(json.loads(index.read_text())["weight_map"])
            except (ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{index} is not a safetensors index: {error}; download the file again"
                ) from error
            absent = sorted({name for name in files.values() if not (self.folder / name).is_file()})
            if absent:
                raise CheckpointError(f"{index} names files that are missing: {', '.join(absent)}; download them")
            return files
        singles = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if SINGLE in singles:
            singles = [SINGLE]
        if len(singles) != 1:
            held = sorted(path.name for path in self.folder.glob("*.bin"))[:1]
            why = f"it has {held[0]}; save it as safetensors first" if held else f"expected {SINGLE} or {INDEX}"
            if len(singles) > 1:
                why = f"it has {len(singles)} of them and no {INDEX}"
            raise CheckpointError(f"{self.folder} is no folder of safetensors weights: {why}")
        self._open = {singles[0]: _open(self.folder / singles[0])}
        return dict.fromkeys(self._open[singles[0]].keys(), singles[0])

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self.files)

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, from its file's header."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The format's name of a tensor's dtype, such as BF16."""
        return str(self._slice(name).get_dtype())

    def read(self, name: str, axis: int = 0, start: int = 0, length: int | None = None) -> Tensor:
        """Read rows (axis 0) or columns (axis 1) of a tensor, and nothing else of it."""
        view = self._slice(name)
        end = view.get_shape()[axis] if length is None else start + length
        try:
            return view[start:end] if axis == 0 else view[:, start:end]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.folder / self.files[name]}: cannot read {name}: {error}") from error

    def _slice(self, name: str) -> Any:
        file = self.files[name]
        if file not in self._open:
            self._open[file] = _open(self.folder / file)
        try:
            return self._open[file].get_slice(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / file} lacks {name}, which the index says it has: {error}") from error


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut short ({error}); download the file again") from error


def size_in_bytes(text: str | int) -> int:
    """Parse "5GB", "200MB", "1GiB" or a plain number of bytes. Raises CheckpointError for anything else, and for 0."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(text), re.IGNORECASE)
    if match is None or match.group(2).upper() not in _UNITS or float(match.group(1)) <= 0:
        raise CheckpointError(f"max_shard_size {text!r} is no size; write it like 5GB or 200MB")
    return int(float(match.group(1)) * _UNITS[match.group(2).upper()])


class ShardedWriter:
    """Writes tensors, one by one in the announced order, into safetensors files of at most `max_shard_size` bytes.

    A larger tensor gets a file of its own. The files get their final names once all are written, so that an
    interrupted export leaves no folder that looks complete.
    """

    def __init__(self, folder: Path, tensors: Sequence[tuple[str, Shape, torch.dtype]], max_shard_size: int) -> None:
        self.folder, self.tensors = folder, {name: (shape, dtype) for name, shape, dtype in tensors}
        shards = _split(tensors, max_shard_size)
        count = len(shards)
        files = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        self.shards = dict(zip(files, shards, strict=True))
        self.file_of = {name: file for file, names in self.shards.items() for name in names}
        self._order = iter(self.file_of)
        self._file: Any = None
        self._written: dict[str, Path] = {}
        """The files that are begun, under the names they have until all are written."""

    def __enter__(self) -> ShardedWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor. Raises CheckpointError unless name, shape and dtype are the next announced."""
        expected = next(self._order, None)
        if expected is None:
            raise CheckpointError(f"cannot write {name}: all tensors that were announced are written")
        shape, dtype = self.tensors[expected]
        if (name, tuple(tensor.shape), tensor.dtype) != (expected, shape, dtype):
            raise CheckpointError(
                f"cannot write {name} {tuple(tensor.shape)} {tensor.dtype}: next is {expected} {shape} {dtype}"
            )
        file = self.file_of[expected]
        if file not in self._written:
            self._start(file)
        self._file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)

    def __exit__(self, kind: type | None, *_: object) -> None:
        self._close()
        if kind is not None:
            for path in self._written.values():
                path.unlink(missing_ok=True)
            return
        left = next(self._order, None)
        if left is not None:
            raise CheckpointError(f"{left} was announced and not written")
        for path in self.folder.glob("model*.safetensors*"):
            if path not in self._written.values():
                path.unlink()  # of an earlier export: its shards would mix with these
        for file, path in self._written.items():
            path.replace(self.folder / file)
        if len(self.shards) > 1:
            total = sum(_bytes(shape, dtype) for shape, dtype in self.tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(self.file_of.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def _start(self, file: str) -> None:
        self._close()
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in self.shards[file]:
            shape, dtype = self.tensors[name]
            end = offset + _bytes(shape, dtype)
            header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # keeps the data aligned for memory mapping
        self._written[file] = self.folder / f"{file}.writing"
        self._file = self._written[file].open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def _close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _bytes(shape: Shape, dtype: torch.dtype) -> int:
    if dtype not in _DTYPES:
        raise CheckpointError(f"cannot write tensors of {dtype}; use one of {', '.join(map(str, _DTYPES))}")
    return torch.Size(shape).numel() * dtype.itemsize


def _split(tensors: Sequence[tuple[str, Shape, torch.dtype]], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape, dtype in tensors:
        size = _bytes(shape, dtype)
        if shards[-1] and held + size > limit:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards
