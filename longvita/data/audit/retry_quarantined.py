"""Check quarantined samples again, after their files were fixed.

1. Each entry's line is read, and the headers of its media are opened.
2. All tiles of those that would fit a sequence are decoded, in workers that may crash or hang.
3. The parts of the indexes that hold usable ones are rebuilt, so that the next run samples them, and the quarantine
   file is written again without them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvita.config.schema import Config
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import DocumentRequest, media_settings
from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats.base import Place
from longvita.data.formats.paths import data_file
from longvita.data.index.columns import IndexBuilder
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, lines_of_parts, renew_index
from longvita.data.loading.worker_pool import WorkerPool, open_pool
from longvita.data.media.item import MAX_DECODED_TILES
from longvita.data.mix.catalog import Catalog, CatalogFile, files_of, index_job, make_template
from longvita.data.mix.measure import measure
from longvita.data.mix.progress import counting
from longvita.data.quarantine import QuarantinedSample, read_lines, write_quarantine
from longvita.data.sample import Sample, hash_media_names

FileKey = tuple[str, str]
"""Source name and path of a data file, as in quarantine files."""


@dataclass(frozen=True)
class Retried:
    """What became of the entries of a quarantine file."""

    usable: list[QuarantinedSample]
    left: list[QuarantinedSample]
    """With their errors of today."""
    unknown: Set[FileKey]
    """Keys of entries whose file is none of the config's."""


def retry_quarantined(quarantine: str | Path, config: Config) -> Retried:
    """Check the entries of a quarantine file, rebuild indexes for those that are usable, write the file without them.

    Lines that are no entries stay. Raises DataError if there is no such file, or none with an entry; TokenizerError.
    """
    if not Path(quarantine).is_file():
        raise DataError(
            f"quarantine file {quarantine} does not exist; a run, or longvita data index, writes it into the run's "
            "output folder"
        )
    entries, others = read_lines(quarantine)
    if others and not entries:
        raise DataError(f"{quarantine} is no quarantine file: it has {len(others)} lines, and none of them is an entry")
    template = make_template(config)
    with IndexProcessPool.of(config, template) as processes:
        # The data files of the mix and of the held-out sources.
        jobs = {
            (source, data_file(config.data, path)): index_job(config, dataset, path, processes)
            for sources in (config.data.dataset, config.data.validation)
            for source, dataset, path in files_of(config, sources)
        }
        usable, left = _check_all(entries, jobs, config, template)
        for key, job in jobs.items():
            lines = {entry.line for entry in usable if (entry.source, entry.path) == key}
            if lines:
                renew_index(key[1], job, lines)
    write_quarantine(quarantine, left, others)
    unknown = {(entry.source, entry.path) for entry in left} - jobs.keys()
    return Retried(usable, left, unknown)


def _check_all(
    entries: Sequence[QuarantinedSample], jobs: dict[FileKey, IndexJob], config: Config, template: ChatTemplate
) -> tuple[list[QuarantinedSample], list[QuarantinedSample]]:
    """The entries that can be used now, and those that can't with their errors of today."""
    of_file: dict[FileKey, list[QuarantinedSample]] = {}
    for entry in entries:
        of_file.setdefault((entry.source, entry.path), []).append(entry)
    usable, left = [], [entry for key, own in of_file.items() if key not in jobs for entry in own]
    with open_pool(config, template) as pool, counting("checking", len(entries)) as show:
        for key, own in of_file.items():
            for entry, error in _check_file(key, jobs[key], own, config, pool) if key in jobs else ():
                if error is None:
                    usable.append(entry)
                else:
                    left.append(dataclasses.replace(entry, reason=error.reason, detail=error.detail))
                show(len(usable) + len(left))
    return usable, left


def _check_file(
    key: FileKey, job: IndexJob, entries: Sequence[QuarantinedSample], config: Config, pool: WorkerPool
) -> Iterator[tuple[QuarantinedSample, SampleError | None]]:
    """Each entry of a file, in any order, and why it still can't be used; None if it can."""
    errors: dict[int, SampleError] = {}
    builder = IndexBuilder()
    of_line = {entry.line: entry for entry in entries}
    for line, (place, sample) in _samples_at(key[1], job, of_line.keys()).items():
        try:
            if isinstance(sample, SampleError):
                raise sample
            facts = job.processes.probe(sample, job.settings)
            length = job.processes.template.text_length(sample.turns, sample.marks)
            builder.add(dataclasses.replace(place, line=line), hash_media_names(sample), length, facts)
        except SampleError as error:
            errors[line] = error
    settings, index = media_settings(config), builder.index()
    measured = measure(index, job.processes.template, settings, config.data.sequence_length)
    errors |= {entry.line: SampleError(entry.reason, entry.detail) for entry in measured.unusable}
    part = CatalogFile(*key, job.settings, index, measured, measured.usable)
    catalog = Catalog([part], settings)
    requests = [catalog.request(number) for number in measured.usable.tolist()]
    yield from ((of_line[line], error) for line, error in errors.items())
    for request, found in _decode(requests, pool, max(config.data.num_workers, 1)):
        yield of_line[request.place.line], found


def _samples_at(path: str, job: IndexJob, lines: Set[int]) -> dict[int, tuple[Place, Sample | SampleError]]:
    """Place and sample of each line; of the parts that hold one, all lines are read."""
    gone = SampleError(Reason.INVALID_SAMPLE, "the file has no sample at this line any more")
    found: dict[int, tuple[Place, Sample | SampleError]] = {line: (Place(0, 0, line), gone) for line in lines}
    for part, numbers in lines_of_parts(path, job):
        if lines.isdisjoint(numbers):
            continue
        for place, sample in job.settings.make_format().samples(path, part):
            line = numbers.start + place.line - 1
            if line in found and sample is not None:
                found[line] = (place, sample)
    return found


def _decode(
    requests: Sequence[DocumentRequest], pool: WorkerPool, workers: int
) -> Iterator[tuple[DocumentRequest, SampleError | None]]:
    """Decode all tiles of each request in the workers; the first error of each, None if there is none."""
    pieces = [(request, wanted) for request in requests for wanted in _pieces(request)]
    under_way = 2 * workers
    errors: dict[int, SampleError] = {}
    for number in range(len(pieces) + under_way):
        if number < len(pieces):
            request, wanted = pieces[number]
            pool.submit(number, [dataclasses.replace(request, wanted=wanted)])
        done = number - under_way
        if done < 0 or done >= len(pieces):
            continue
        request, wanted = pieces[done]
        (result,) = pool.result(done)
        if isinstance(result, SampleError):
            errors.setdefault(request.place.line, result)
        if not wanted or wanted[-1] == request.num_tiles - 1:
            yield request, errors.get(request.place.line)


def _pieces(request: DocumentRequest) -> list[tuple[int, ...]]:
    tiles = np.arange(request.num_tiles)
    return [tuple(piece.tolist()) for piece in np.split(tiles, range(MAX_DECODED_TILES, len(tiles), MAX_DECODED_TILES))]
