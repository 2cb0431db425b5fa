"""Collect the figures and examples of one mix for a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from longvita.config.schema import Config, DatasetConfig
from longvita.data.mix.catalog import Catalog, build_catalog, by_source, make_template
from longvita.data.mix.missing_files import Missing
from longvita.data.mix.progress import counting
from longvita.data.packing.packer import PackingPlan
from longvita.data.packing.plan_cache import plan_epoch
from longvita.data.quarantine import QuarantinedSample
from longvita.data.report import figures
from longvita.data.report.examples import Example, choose, read_examples


@dataclass(frozen=True)
class MixReport:
    """One mix: the training data, or the held-out sources."""

    title: str
    sources: list[figures.SourceFigures]
    packing: figures.PackingFigures
    imbalance: figures.Imbalance | None
    """Imbalance of training steps; None for the held-out sources."""
    examples: dict[str, list[Example]]
    """By source."""
    quarantined: Sequence[QuarantinedSample]
    missing: Missing
    """Data files that data.allow_missing leaves out."""


def collect(
    title: str, sources: dict[str, DatasetConfig], config: Config, replicas: int | None, examples: int
) -> MixReport:
    """Index, pack and divide a mix and read its examples, each with a progress bar.

    replicas: data-parallel replicas for the division of a step; when absent, the largest number up to 8 that divides
    it. examples: number of samples of each source to show.
    Raises DataError for a missing file, an empty mix, or replicas that a step cannot be divided among.
    """
    template = make_template(config)
    catalog = build_catalog(config, template, sources)
    plan, length = plan_epoch(catalog, config, 0), config.data.sequence_length
    with counting(f"{title}: packing", -(-int(catalog.lengths[catalog.selected].sum(dtype="int64")) // length)) as show:
        figures.pack(plan, show)
    chosen = {source: choose(catalog, source, examples, config.seed) for source in by_source(catalog.files)}
    samples = [sample for own in chosen.values() for sample in own]
    with counting(f"{title}: examples", len(samples)) as show:
        read = iter(read_examples(samples, catalog, template, config, show) if samples else [])
    return MixReport(
        title=title,
        sources=figures.source_figures(catalog),
        packing=figures.packing_figures(catalog, plan, length),
        imbalance=_imbalance(catalog, plan, config, replicas) if sources == config.data.dataset else None,
        examples={source: [next(read) for _ in own] for source, own in chosen.items()},
        quarantined=catalog.quarantined,
        missing=catalog.missing,
    )


def _imbalance(catalog: Catalog, plan: PackingPlan, config: Config, replicas: int | None) -> figures.Imbalance:
    with counting("dividing steps", figures.steps_of(plan, config)) as show:
        replicas = replicas or math.gcd(config.training.global_batch_size, 8)
        return figures.imbalance(catalog, plan, config, replicas, show)
