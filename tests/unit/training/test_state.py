"""The size of gradient buckets where checkpoints store the buckets as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from megatron.core.distributed import DistributedDataParallelConfig

from longvita.training import state
from tests.tiny import tiny_config


@pytest.mark.parametrize(("sharding_type", "expected"), [("dp_reshardable", 40_000_000), ("fully_reshardable", None)])
def test_buckets_that_checkpoints_store_do_not_depend_on_the_number_of_replicas(
    monkeypatch: pytest.MonkeyPatch, sharding_type: str, expected: int | None
) -> None:
    """Without a size Megatron makes buckets larger above 40 replicas."""
    found: list[DistributedDataParallelConfig] = []
    monkeypatch.setattr(state, "DistributedDataParallel", lambda settings, ddp, module, **_: found.append(ddp))
    model: Any = SimpleNamespace(config=None)
    platform: Any = SimpleNamespace(optimizer_sharding_type=sharding_type)
    state._wrap(model, tiny_config(), platform, 0, True)
    assert [ddp.bucket_size for ddp in found] == [expected]
