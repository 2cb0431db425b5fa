"""The data loader on real process groups: the batches of the ranks of a replica, and their broken documents."""

from __future__ import annotations

import math

import pytest
import torch

from longvita import platforms
from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.quarantine import FILE_NAME, read_quarantine
from tests.distributed.helpers import run_distributed
from tests.unit.data.material import conversation, data_config, write_jsonl, write_media, write_tokenizer

COUNT = 8
"""Micro batches that are read: two steps of one replica."""
STEP = 4
"""training.global_batch_size of the config."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Samples with a video among them whose late frames are lost."""
    folder = tmp_path_factory.mktemp("data")
    write_tokenizer(folder / "tokenizer")
    write_media(folder / "media")
    samples = [conversation(f"<image>number {number}", images=["wide.jpg"]) for number in range(12)]
    samples += [
        conversation(f"<video>{number}", videos=["clip.mp4", "cut.mp4"][number % 2 : number % 2 + 1])
        for number in range(6)
    ]
    write_jsonl(folder / "a.jsonl", samples)
    return folder


def read(rank, world_size, folder, layout, workers):
    config = data_config(folder, {"a": {"data_paths": ["a.jsonl"]}}, num_workers=workers)
    config = config.model_copy(update={"layout": config.layout.model_copy(update=layout)})
    platform = platforms.get("cpu")
    platform.activate()
    groups = platform.build_groups(config)
    found = []
    for _ in range(2):  # A second loader of the same name does not read what the first one wrote.
        loader = build_loader(config, LoaderRanks.from_groups(groups))
        found.append([describe(next(loader)) for _ in range(COUNT)])
        loader.close()
    torch.distributed.barrier()  # The process that holds the store must not leave before the others have read it.
    return found


def describe(batch):
    tokens = (batch.input_ids.tolist(), batch.labels.tolist(), batch.cu_seqlens.tolist(), batch.tile_starts.tolist())
    return tokens, batch.tile_owners.tolist(), batch.tiles


@pytest.mark.parametrize(
    "layout, decoders",
    [
        ({"tensor_parallel": 2}, 2),
        ({"pipeline_parallel": 2}, 1),
        ({"context_parallel": 2}, 2),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, 2),
    ],
    ids=["tp2", "pp2", "cp2", "tp2pp2"],
)
def test_ranks_of_a_replica_agree(folder, layout, decoders):
    size = math.prod(layout.values())
    alone = run_distributed(read, 1, folder, {}, 0)[0][0]
    by_rank = run_distributed(read, size, folder, layout, 1 if size == 2 else 0)
    assert {str(entry.reason) for entry in read_quarantine(folder / "run" / FILE_NAME)} == {"broken_video"}
    for reading in range(2):
        for number, (tokens, _, tiles) in enumerate(alone):
            batches = [ranks[reading][number] for ranks in by_rank]
            assert all(batch[0] == tokens for batch in batches)
            assert all(batch[1] == batches[0][1] for batch in batches)
            torch.testing.assert_close(torch.cat([batch[2] for batch in batches]), tiles, rtol=0, atol=0)
            assert all(len(batch[2]) == 0 for batch in batches[decoders:])


@pytest.mark.parametrize("context_parallel", [1, 2])
def test_replicas_share_the_stream(folder, context_parallel):
    """Each step is the same set of sequences, divided among the replicas by work."""
    alone = run_distributed(read, 1, folder, {}, 0)[0][0]
    layout = {"context_parallel": context_parallel}
    ranks = [readings[0] for readings in run_distributed(read, 2 * context_parallel, folder, layout, 0)]
    first, second = ranks[0], ranks[context_parallel]
    for start in range(0, COUNT, STEP):
        own = slice(start // 2, (start + STEP) // 2)
        shared = [batch[0] for batch in (*first[own], *second[own])]
        assert sorted(shared) == sorted(batch[0] for batch in alone[start : start + STEP])
