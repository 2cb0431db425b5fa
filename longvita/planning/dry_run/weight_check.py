"""Check the weights that a run would start from, by names and shapes, and its output folder; no weight is read."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from longvita.checkpoint import manifest
from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.read_weights import SourceFolder
from longvita.checkpoint.hf.tensor_map import PARTS, parameter_names
from longvita.checkpoint.step_folders import checkpoint_root, is_checkpoint, numbered_root, step_folders
from longvita.config.errors import ABSENT, Problem
from longvita.config.schema import Config
from longvita.planning.dry_run.problems import joined, raised_problems
from longvita.training.launch_check import check

Shape = tuple[int, ...]
MAX_NAMED = 4
"""Wrong tensors or files that a problem names."""
_SOURCES = {"initial": PARTS, "initial_language": ("language",), "initial_vision": ("vision",)}
"""Fields of config.checkpoint, and the parts that are read from a Hugging Face folder that they name."""


def find_problems(config: Config, shapes: Mapping[str, Shape]) -> tuple[list[Problem], list[str]]:
    """Find problems of the output folder and of the starting weights; return them and notes on what was not checked.

    shapes: global shape of each weight of the model by its name in a training checkpoint; empty where they are unknown.
    """
    problems, notes = raised_problems(check, config), []
    root = checkpoint_root(Path(config.output))
    if step_folders(root):
        notes.append(f"the run resumes from the checkpoints in {root}; its starting weights are not read")
        found = training_checkpoint_problems(root, "output", config.output, shapes)
        return [*problems, *found, *([] if found else _another_run(root, config))], notes
    for name, parts in _SOURCES.items():
        field, value = f"checkpoint.{name}", getattr(config.checkpoint, name)
        if value is None:
            continue
        if not Path(value).is_dir():
            if not any(problem.field == field for problem in problems):
                notes.append(f"{field}: {value} is not a folder here, so it is a Hub id; it was not checked")
        elif name == "initial" and is_checkpoint(Path(value)):
            problems += training_checkpoint_problems(Path(value), field, value, shapes)
        else:
            problems += hugging_face_problems(config, Path(value), field, value, parts)
    return problems, notes


def _another_run(root: Path, config: Config) -> Iterator[Problem]:
    """Yield the fields that a resumed run may not change and that differ from those of its newest checkpoint."""
    from longvita.checkpoint.same_run import fields_of_another_run

    newest = step_folders(root)[0]
    values = config.model_dump(mode="python")
    try:
        fields = fields_of_another_run(newest, config)
    except CheckpointError as error:
        yield Problem(str(error), "output", config.output)
        return
    for field, saved in fields.items():
        shown: Any = functools.reduce(lambda section, step: section[step], field.split("."), values)
        message = f"is {saved!r} in the checkpoint"
        if isinstance(saved, dict):  # a mix, which is too long for one line
            message, shown = "differs from that of the checkpoint", ABSENT
        fix = f"keep the old value, or choose another output (checkpoint.initial={newest} starts from these weights)"
        yield Problem(f"{message} {newest}, from which the run would resume", field, shown, fix=fix)


def hugging_face_problems(
    config: Config, folder: Path, field: str, value: str, parts: Sequence[str] = PARTS
) -> list[Problem]:
    """Check a folder of safetensors by its index and the headers of its files: names, shapes, TP."""
    wrong: list[str] = []
    try:
        source = SourceFolder(folder, config.model, parts)
        mapper = source.mapper(0, config.layout.tensor_parallel)
        for parameter in parameter_names(config.model, parts):
            try:
                source.check_shapes(mapper.map(parameter))
            except CheckpointError as error:
                wrong.append(str(error))
    except CheckpointError as error:
        wrong.append(str(error))
    return [Problem(joined(wrong, MAX_NAMED), field, value)] if wrong else []


def training_checkpoint_problems(folder: Path, field: str, value: str, shapes: Mapping[str, Shape]) -> list[Problem]:
    """Check the newest training checkpoint in `folder`: truncated or missing files, names, shapes."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    root = numbered_root(folder)
    newest = step_folders(root)[0] if root is not None else folder
    try:
        wrong = _damaged_files(newest)
        stored = FileSystemReader(str(newest)).read_metadata().state_dict_metadata
    except CheckpointError as error:
        return [Problem(str(error), field, value)]
    except (OSError, ValueError, EOFError) as error:
        return [Problem(f"the list of tensors of {newest} cannot be read ({error!r})", field, value)]
    tensors = {name: tuple(entry.size) for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    for name, shape in shapes.items():
        if name not in tensors:
            wrong.append(f"{newest} has no {name}")
        elif tensors[name] != shape:
            wrong.append(f"{name} is {tensors[name]} in {newest} and the model needs {shape}")
    return [Problem(joined(wrong, MAX_NAMED), field, value)] if wrong else []


def _damaged_files(folder: Path) -> list[str]:
    """List the files whose size differs from the manifest. Checksums are checked at launch, which reads the files."""
    wrong = []
    for name, (size, _) in sorted(manifest.read_manifest(folder).items()):
        path = folder / name
        if not path.is_file():
            wrong.append(f"{path} does not exist")
        elif path.stat().st_size != size:
            wrong.append(f"{path} has {path.stat().st_size} bytes instead of {size}")
    return wrong
