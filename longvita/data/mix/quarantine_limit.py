"""The limit on quarantined samples: a source that loses more of them, or of its files, stops the start of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longvita.config.schema import Config, DatasetConfig
from longvita.data.chat_template import ChatTemplate
from longvita.data.errors import DataError, Reason
from longvita.data.mix.catalog import Catalog, CatalogFile, build_catalog, by_source, unusable_reasons
from longvita.data.quarantine import QuarantinedSample, reasons_text

MIN_SAMPLES = 100
"""Samples of a source from which on the limit on their share applies."""
MAX_SHOWN = 5
"""Samples that a message shows: the first one for each reason."""


@dataclass(frozen=True)
class LossySource:
    """A source of which too much is quarantined."""

    source: str
    samples: int
    """Quarantined ones included."""
    quarantined: int
    files: int
    wrong_files: int
    """Files that as a whole are not of their format."""
    limit: float
    """The source's max_quarantined."""
    reasons: Mapping[str, int]
    firsts: Sequence[QuarantinedSample]

    def __str__(self) -> str:
        """What is lost, the first samples, and the fix."""
        if self.quarantined == self.samples:
            what = f"none of its {self.samples:,} samples can be used" if self.samples else "it has no sample"
        else:
            what = f"{self.quarantined:,} of its {self.samples:,} samples ({self.quarantined / self.samples:.1%})"
            what += f" are quarantined, max_quarantined is {self.limit:g}"
        if self.wrong_files:
            what += f"; {self.wrong_files:,} of its {self.files:,} files are not of their format"
        shown = [f"  {entry.path}:{entry.line}: {entry.reason}: {entry.detail}" for entry in self.firsts]
        return "\n".join([f"source {self.source!r}: {what}: {reasons_text(dict(self.reasons))}", *shown])


def limit_of(config: Config, dataset: DatasetConfig) -> float:
    """Return the largest share of a source that may be quarantined."""
    return config.data.max_quarantined if dataset.max_quarantined is None else dataset.max_quarantined


def lossy_sources(
    config: Config, sources: Mapping[str, DatasetConfig], files: Sequence[CatalogFile]
) -> list[LossySource]:
    """Find the sources of a mix without a usable sample, and those that lose more than max_quarantined.

    Of a good source no quarantined entry is read.
    """
    found = []
    for source, own in by_source(files).items():
        limit = limit_of(config, sources[source])
        samples = sum(file.num_samples for file in own)
        quarantined = samples - sum(len(file.measured.usable) for file in own)
        wrong_files = sum(map(_is_wrong_file, own))
        if (
            quarantined == samples
            or (samples >= MIN_SAMPLES and quarantined > limit * samples)
            or wrong_files > limit * len(own)
        ):
            reasons = unusable_reasons(own)
            firsts = _firsts(own)
            found.append(LossySource(source, samples, quarantined, len(own), wrong_files, limit, reasons, firsts))
    return found


def describe_lossy(sources: Sequence[LossySource]) -> str:
    """Describe such sources, and the fix."""
    lost = max(max(one.quarantined / max(one.samples, 1), one.wrong_files / one.files) for one in sources)
    accepting = f"data.max_quarantined={math.ceil(round(lost * 100, 6)) / 100:g}"
    fix = (
        "repair the files (longvita data index CONFIG lists all quarantined samples, with --rebuild it looks again for "
        "images and videos that were missing), or leave the source out (ratio: 0)"
    )
    if any(one.quarantined < one.samples for one in sources):
        fix += f", or accept the loss ({accepting}, or max_quarantined of the source)"
    return "\n".join(["too many samples are quarantined:", *map(str, sources), f"fix: {fix}"])


def build_checked_catalog(config: Config, template: ChatTemplate, sources: Mapping[str, DatasetConfig]) -> Catalog:
    """Build the catalog of a mix as `build_catalog` does. Raises DataError if sources lose too many samples."""
    catalog = build_catalog(config, template, dict(sources))
    lossy = lossy_sources(config, sources, catalog.files)
    if lossy:
        raise DataError(describe_lossy(lossy))
    return catalog


def _is_wrong_file(file: CatalogFile) -> bool:
    entries = file.index.quarantined
    return len(file.index) == 0 and len(entries) == 1 and entries[0].reason == Reason.WRONG_FORMAT


def _firsts(files: Sequence[CatalogFile]) -> list[QuarantinedSample]:
    firsts: dict[str, QuarantinedSample] = {}
    for file in files:
        for entry in file.quarantined:
            firsts.setdefault(entry.reason, entry)
    return list(firsts.values())[:MAX_SHOWN]
