"""Which replica asks what."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from longvita.evaluation.task import Item


def share_out(items: Sequence[Item], done: Collection[str], replicas: int) -> list[list[Item]]:
    """The items that are not done yet, whole groups to the replica with least to do, the costliest groups first.

    A replica's list is in the order of `items`, but for items of a group, which stand together. A pure function: every
    process comes to the same lists.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.key not in done:
            groups.setdefault(item.group, []).append(item)
    order = {name: place for place, name in enumerate(groups)}
    load = [0.0] * replicas
    shares: list[list[str]] = [[] for _ in range(replicas)]
    for name in sorted(groups, key=lambda name: (-groups[name][0].cost, order[name])):
        replica = min(range(replicas), key=lambda number: (load[number], number))
        load[replica] += groups[name][0].cost
        shares[replica].append(name)
    return [[item for name in sorted(share, key=order.__getitem__) for item in groups[name]] for share in shares]
