"""A dry run as tables, or as one JSON object."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from longvita.planning.dry_run.plan_comparison import Comparison
from longvita.planning.dry_run.rank_counts import RankDryRun
from longvita.planning.dry_run.run import DryRun

GIB = 2**30
BYTES = ("parameter_bytes", "gradient_bytes", "optimizer_bytes")


def show(found: DryRun, console: Console, comparisons: Sequence[Comparison] = ()) -> None:
    """Print ranks, activations, collectives, the comparison with a plan if any, notes and problems."""
    if found.ranks:
        console.print(_ranks(found))
        console.print(_activations(found))
        console.print(_collectives(found))
    if comparisons:
        console.print(_comparison(comparisons))
    for note in found.notes:
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    for problem in found.problems:
        console.print(Text(str(problem), style="red"), soft_wrap=True)
    count = len(found.problems)
    verdict = "nothing found that a launch would fail at" if not count else f"{count} problem{'s' * (count > 1)}"
    console.print(Text(f"Dry run took {found.seconds:.0f} s and {found.peak_bytes / GIB:.1f} GiB: {verdict}."))


def as_json(found: DryRun, comparisons: Sequence[Comparison] = ()) -> dict[str, Any]:
    """Return the dry run as plain data; bytes and counts are integers."""
    return {
        "world_size": found.world_size,
        "seconds": round(found.seconds, 1),
        "peak_bytes": found.peak_bytes,
        "ranks": [_rank_json(rank) for rank in found.ranks],
        "comparison": [{**dataclasses.asdict(one), "error": round(one.error, 6)} for one in comparisons],
        "notes": list(found.notes),
        "problems": [
            {"field": one.field, "source": str(one.origin), "message": one.message, "fix": one.fix}
            for one in found.problems
        ],
    }


def _rank_json(rank: RankDryRun) -> dict[str, Any]:
    plain = {name: getattr(rank, name) for name in ("rank", "stage", "places", "parameters", "trained", *BYTES)}
    activations = []
    for each in rank.activations:
        data = dataclasses.asdict(each)
        activations.append({**data.pop("contents"), **data, "total": each.total})
    calls = [{**dataclasses.asdict(call), "calls": count} for call, count in sorted(rank.collectives.items())]
    return {**plain, "activations": activations, "collectives": calls, "seconds": round(rank.seconds, 1)}


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    return Table(*left, *(Column(name, justify="right") for name in right), title=title)


def _ranks(found: DryRun) -> Table:
    numbers = ("parameters", "trained", "weights GiB", "gradients GiB", "optimizer GiB", "s")
    table = _table(f"Ranks of {found.world_size}, by shape", ("rank", "stage", "place"), numbers)
    for rank in found.ranks:
        place = " ".join(f"{name}{number}" for name, number in rank.places.items() if name != "pp")
        sizes = [getattr(rank, name) for name in BYTES]
        counts = (f"{rank.parameters:,}", f"{rank.trained:,}", *map(_gib, sizes), f"{rank.seconds:.0f}")
        table.add_row(str(rank.rank), str(rank.stage), place, *counts)
    return table


def _activations(found: DryRun) -> Table:
    numbers = ("tokens", "tiles", "with loss", "saved GiB", "peak GiB", "waiting", "in all GiB", "offloaded GiB")
    table = _table("Activations of a micro batch", ("rank", "contents"), numbers)
    for rank in found.ranks:
        for each in rank.activations:
            contents = each.contents
            counts = [f"{count:,}" for count in (contents.tokens, contents.tiles, contents.loss_tokens)]
            sizes = (_gib(each.saved), _gib(each.peak), str(each.waiting), _gib(each.total), _gib(each.offloaded))
            table.add_row(str(rank.rank), contents.name, *counts, *sizes)
    return table


def _collectives(found: DryRun) -> Table:
    """One row for the calls of one kind in one phase, of any size."""
    table = _table(
        "Collectives of an optimizer step", ("rank", "phase", "kind", "group"), ("ranks", "calls", "largest", "GiB")
    )
    order = ("forward", "backward", "pipeline", "gradients", "optimizer", "step")
    alike = operator.attrgetter("phase", "kind", "group", "size")
    for rank in found.ranks:
        calls = sorted(rank.collectives.items(), key=lambda item: (order.index(item[0].phase), item[0]))
        for (phase, kind, group, size), group_of_calls in itertools.groupby(calls, key=lambda item: alike(item[0])):
            those = list(group_of_calls)
            most, total = those[-1][0].bytes, sum(call.bytes * count for call, count in those)
            largest = f"{most / 2**20:,.1f} MiB" if most >= 2**20 else f"{most:,} B"
            count = f"{sum(count for _, count in those):,}"
            table.add_row(str(rank.rank), phase, kind, group, str(size), count, largest, f"{total / GIB:,.2f}")
        table.add_section()
    return table


def _comparison(comparisons: Sequence[Comparison]) -> Table:
    table = _table("Plan and count", ("rank", "figure"), ("planned", "counted", "planned over counted"))
    for one in comparisons:
        table.add_row(str(one.rank), one.name, f"{one.planned:,}", f"{one.counted:,}", f"{one.error:+.2%}")
    return table


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
