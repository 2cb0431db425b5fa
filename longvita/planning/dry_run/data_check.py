"""Check data files and tokenizer: they exist, are readable, and have the format that the config names."""

from __future__ import annotations

import contextlib
import functools
import itertools
import tarfile
from collections.abc import Callable, Iterator, Sequence

from longvita.config.errors import Problem, ValueOrigin
from longvita.config.schema import Config, DatasetConfig
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import media_settings, probe_sample
from longvita.data.errors import DataError, SampleError, one_line
from longvita.data.formats import make_format
from longvita.data.formats.base import Format, Part
from longvita.data.formats.json_array import array_start
from longvita.data.formats.paths import data_file, format_of
from longvita.data.formats.record import FormatOptions
from longvita.data.mix.catalog import make_template
from longvita.data.mix.missing_files import files_of_mix
from longvita.data.sample import Sample
from longvita.data.storage import remote
from longvita.data.tokenizer import TokenizerError
from longvita.planning.dry_run.problems import joined

MAX_SAMPLES = 8
"""Samples that are read at the beginning of each file."""
MAX_NAMED = 3
"""Files that a problem names."""


def find_problems(config: Config) -> list[Problem]:
    """Find problems of the data files of the mix and of the held-out sources, and of the tokenizer.

    Missing files and folders are left to longvita.data.mix.missing_files.find_training_problems.
    """
    template, problems = _template(config)
    lengths: list[int] = []
    add_lengths = functools.partial(_add_lengths, config, template, lengths)
    for name, dataset in config.data.dataset.items():
        problems += _source_problems(config, "dataset", name, dataset, add_lengths)
    for name, dataset in config.data.validation.items():
        problems += _source_problems(config, "validation", name, dataset, None)
    if config.data.dataset and all(dataset.ratio == 0 for dataset in config.data.dataset.values()):
        problems.append(Problem("has no source with a ratio above 0: there is nothing to train on", "data.dataset"))
    limit = config.data.sequence_length
    if lengths and min(lengths) > limit:
        message = f"none of the first samples of the mix fits, the shortest takes {min(lengths):,} tokens"
        problems.append(Problem(message, "data.sequence_length", limit, fix="longer sequences"))
    return problems


def _template(config: Config) -> tuple[ChatTemplate | None, list[Problem]]:
    """Return the run's chat template, or the problems of the tokenizer; neither where its folder does not exist."""
    if not remote.is_folder(config.data.tokenizer or ""):
        return None, []
    try:
        return make_template(config), []
    except TokenizerError as error:
        return None, [Problem(str(error), "data.tokenizer", config.data.tokenizer)]
    except DataError as error:
        vocabulary = "model.language.vocab_size", config.model.language.vocab_size, ValueOrigin()
        return None, [Problem(str(error), "data.tokenizer", config.data.tokenizer, related=(vocabulary,))]


def _add_lengths(
    config: Config, template: ChatTemplate | None, lengths: list[int], samples: Sequence[Sample], media_root: str
) -> None:
    """Add the lengths of samples in tokens, with one frame of each video, until one fits a sequence; samples whose
    media cannot be opened are skipped.
    """
    settings = media_settings(config)
    for sample in samples:
        if template is None or (lengths and min(lengths) <= config.data.sequence_length):
            return
        with contextlib.suppress(SampleError):
            facts = probe_sample(sample, media_root, settings.max_fps)
            frames = facts.frame_counts(settings, 1)
            lengths.append(len(template.encode(sample.turns, facts.grids(settings), frames).input_ids))


def _source_problems(
    config: Config,
    mix: str,
    name: str,
    dataset: DatasetConfig,
    use_samples: Callable[[Sequence[Sample], str], None] | None,
) -> Iterator[Problem]:
    """Yield one problem for all unusable files of a source, and one if none of its media can be opened."""
    field = f'data.{mix}."{name}"' if "." in name else f"data.{mix}.{name}"
    try:
        files = [data_file(config.data, path) for _, _, path in files_of_mix(config, {name: dataset})]
    except DataError:
        return  # a pattern without files, which find_training_problems reports
    media_root, root = dataset.media_root, f"{field}.media_root"
    if media_root is None:
        media_root, root = config.data.media_root, "data.media_root"
    wrong: list[str] = []
    unopened: list[str] = []
    opened = 0
    for path in filter(remote.exists, files):
        try:
            samples = first_samples(path, dataset)
        except (DataError, SampleError, OSError, tarfile.TarError, ValueError) as error:
            wrong.append(f"{path}: {error if isinstance(error, (DataError, SampleError)) else one_line(error)}")
            continue
        found = _media_errors(samples, media_root, config.data.max_fps)
        unopened += found[:1]
        opened += not found
        if use_samples is not None:
            use_samples(samples, media_root)
    if wrong:
        yield Problem(f"cannot be used: {joined(wrong, MAX_NAMED)}", f"{field}.data_paths")
    if unopened and not opened:
        message = f"no picture or video of source {name} can be opened: {joined(unopened, MAX_NAMED)}"
        yield Problem(message, root, media_root)


def first_samples(path: str, dataset: DatasetConfig) -> list[Sample]:
    """Return the usable ones of a file's first samples. Raises DataError, SampleError or OSError if there are none."""
    options = FormatOptions.of(dataset)
    format = make_format(format_of(path, dataset.format), options)
    if problem := format.problem(path):
        raise DataError(problem)
    found = [sample for _, sample in itertools.islice(format.samples(path, _first_part(path, format)), MAX_SAMPLES)]
    usable = [sample for sample in found if isinstance(sample, Sample)]
    errors = [sample for sample in found if isinstance(sample, SampleError)]
    if not usable:
        reason = f"its first {len(errors)} samples have errors, {errors[0]}" if errors else "it holds no sample"
        raise DataError(reason)
    return usable


def _first_part(path: str, format: Format) -> Part:
    """Return a part that begins with the first sample. Dividing it like the index would need a pass over the file."""
    if format.name == "json":
        return Part(array_start(path), remote.size(path))
    if format.name in ("jsonl", "webdataset"):
        return Part(0, remote.size(path))
    parts = format.parts(path, 1)
    return parts[0] if parts else Part(0, 0)


def _media_errors(samples: Sequence[Sample], media_root: str, max_fps: float) -> list[str]:
    """List why the media of samples cannot be opened; empty once those of one sample can be, or if none has media."""
    reasons: list[str] = []
    for sample in samples:
        if not sample.images and not sample.videos:
            continue
        try:
            probe_sample(sample, media_root, max_fps)
            return []
        except SampleError as error:
            reasons.append(error.detail)
    return reasons
