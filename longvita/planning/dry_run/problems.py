"""Build problems from errors: those that a check raises, those of failed ranks, and several reasons in one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from longvita.config import names
from longvita.config.errors import ABSENT, ConfigError, Problem
from longvita.planning.dry_run.rank_counts import RankFailure

_FIELD = re.compile(r"\b[a-z_]+(?:\.\w+)+\b")


def raised_problems(check: Callable[..., Any], *arguments: Any) -> list[Problem]:
    """Call a check and return the problems of the ConfigError that it raises; none if it raises nothing."""
    try:
        check(*arguments)
    except ConfigError as error:
        return error.problems
    return []


def joined(reasons: Sequence[str], limit: int) -> str:
    """Join the first `limit` reasons, and the number of the others."""
    more = f"; and {len(reasons) - limit} more" if len(reasons) > limit else ""
    return "; ".join(reasons[:limit]) + more


def merge_failures(failures: Sequence[RankFailure]) -> list[Problem]:
    """Merge identical failures of several ranks, and find the field of the config that each of them names."""
    ranks: dict[str, list[int]] = {}
    for failure in failures:
        ranks.setdefault(failure.text, []).append(failure.rank)
    problems = []
    for text, those in ranks.items():
        who = f"rank{'s' if len(those) > 1 else ''} {', '.join(map(str, those))}: " if min(those) >= 0 else ""
        problems.append(Problem(f"{who}{text}", field_named_in(text), ABSENT))
    return problems


def field_named_in(text: str) -> str:
    """Return the first dotted name in a text that is a field of the config, or an entry of a mapping such as
    training.megatron; "" if there is none.
    """
    for match in _FIELD.finditer(text):
        steps = tuple(match[0].split("."))
        parent = names.field_at(steps[:-1])
        if names.field_at(steps) is not None or (parent is not None and names.is_mapping(parent.annotation)):
            return match[0]
    return ""
