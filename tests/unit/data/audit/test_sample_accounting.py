"""planned = delivered + quarantined, over replicas, stops, epochs, repeated samples and broken videos."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from longvita.data.audit.sample_accounting import (
    DELIVERED,
    PLANNED,
    REPEATED,
    REPLACED_FRAMES,
    SUBSTITUTED,
    SampleAccounting,
    count_outcomes,
)
from longvita.data.errors import Reason, SampleError
from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.loading.micro_batch import MicroBatch, ReadMicroBatch
from tests.unit.data.material import conversation, data_config, sequences_per_epoch, write_jsonl

BATCH = 4


def make_config(folder, num_workers=0, micro_batch_size=1):
    """Source a: 30 texts with a broken video and an invalid line among them; b: 5 texts, each twice."""
    texts = [conversation(f"{number} " + "x" * (7 * number % 60)) for number in range(30)]
    broken = conversation("<video>" + "x" * 30, videos=["cut.mp4"])
    write_jsonl(folder / "a.jsonl", [*texts[:15], broken, "{oops", *texts[15:]])
    write_jsonl(folder / "b.jsonl", [conversation(f"b {number} " + "x" * 50) for number in range(5)])
    sources = {"a": {"data_paths": ["a.jsonl"]}, "b": {"data_paths": ["b.jsonl"], "ratio": 2.0}}
    config = data_config(folder, sources, num_workers=num_workers)
    training = {"global_batch_size": BATCH, "micro_batch_size": micro_batch_size}
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def counts_of(config, steps, replicas=1, start=0):
    """The sum of all replicas' counts after some steps."""
    total = Counter()
    for rank in range(replicas):
        loader = build_loader(config, LoaderRanks(rank, replicas), start)
        for _ in range(steps * BATCH // replicas // config.training.micro_batch_size):
            next(loader)
        total.update(loader.outcome_counts())
        loader.close()
    return total


def sequences_of_an_epoch(config):
    return sequences_per_epoch(build_loader(config, LoaderRanks()))


def balanced(counts):
    """Whether planned = delivered + quarantined for each source."""
    accounting = SampleAccounting(counts)
    of_sources = [accounting.of_source(source) for source in ("a", "b")]
    return all(one[PLANNED] == one[DELIVERED] + sum(one["quarantined"].values()) for one in of_sources)


def stored_and_loaded(accounting):
    return SampleAccounting.from_facts(json.loads(json.dumps(accounting.to_facts())))


def test_data_that_changed_between_two_starts(folder):
    config = make_config(folder)
    hashes = [build_loader(config, LoaderRanks()).data_hash for _ in range(2)]
    with open(folder / "a.jsonl", "a") as file:
        file.write(json.dumps(conversation("one more")) + "\n")
    hashes.append(build_loader(config, LoaderRanks()).data_hash)
    assert hashes[0] == hashes[1] != hashes[2]
    accounting = SampleAccounting().started_on(hashes[0], 0).started_on(hashes[1], 10)
    assert accounting.changes == ()
    accounting = stored_and_loaded(accounting).started_on(hashes[2], 20).plus([])
    assert accounting.changes == (20,)
    assert accounting.report(build_loader(config, LoaderRanks()).catalog, 30)["data_changed_at"] == [20]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_replaced_frames_are_counted_once_over_all_ranks(folder, num_workers):
    write_jsonl(folder / "a.jsonl", [conversation("<video>", videos=["cut.mp4"])] * BATCH)
    config = data_config(folder, {"a": {"data_paths": ["a.jsonl"]}}, num_workers=num_workers, max_damaged_share=1.0)
    store = dist.HashStore()
    ranks = [build_loader(config, LoaderRanks(vision_rank=rank, vision_size=2), store=store) for rank in range(2)]
    with ThreadPoolExecutor(2) as threads:  # Each waits for the other's findings.
        list(threads.map(next, ranks))
    alone = build_loader(config, LoaderRanks())
    next(alone)
    counts, shared = alone.outcome_counts(), sum((loader.outcome_counts() for loader in ranks), Counter())
    assert counts["a", DELIVERED] > 0
    assert counts["a", REPLACED_FRAMES] == 6 * counts["a", DELIVERED]
    assert shared == counts
    assert SampleAccounting(counts).of_source("a")["quarantined"] == {}
    for loader in (alone, *ranks):
        loader.close()


def test_of_an_epoch(folder):
    config = make_config(folder)
    steps, rest = divmod(sequences_of_an_epoch(config), BATCH)
    assert steps >= 2
    counts = counts_of(config, steps + bool(rest))
    assert balanced(counts)
    whole = counts_of(config, 3 * BATCH * steps)
    assert balanced(whole)
    # Twelve epochs and more: all but the first time that each of the 31 and 5 samples is taken.
    for source, samples in (("a", 31), ("b", 5)):
        assert whole[source, REPEATED] == whole[source, PLANNED] - samples > 0


def test_an_epoch_takes_b_twice_and_leaves_the_broken_video_out(folder):
    config = make_config(folder)
    config = config.model_copy(update={"training": config.training.model_copy(update={"global_batch_size": 1})})
    loader = build_loader(config, LoaderRanks())
    for _ in range(sequences_of_an_epoch(config)):
        next(loader)
    assert loader.outcome_counts() == {
        ("a", PLANNED): 31,
        ("a", DELIVERED): 30,
        ("a", "broken_video"): 1,
        ("b", PLANNED): 10,
        ("b", DELIVERED): 10,
        ("b", REPEATED): 5,
    }


@pytest.mark.parametrize("micro_batch_size", [1, 2])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_replicas_change_nothing(folder, steps, micro_batch_size):
    config = make_config(folder, micro_batch_size=micro_batch_size)
    assert counts_of(config, steps, replicas=2) == counts_of(config, steps)


@pytest.mark.parametrize("stop", [1, 3, 8])
def test_a_stop_changes_nothing(folder, stop):
    """Before, within and after the first epoch, by workers that read ahead, at another number of replicas."""
    config = make_config(folder, num_workers=1)
    first = counts_of(config, stop)
    rest = counts_of(config, 9 - stop, replicas=2, start=stop * BATCH)
    accounting = stored_and_loaded(SampleAccounting().plus([first]))
    assert accounting.plus([rest]).counts == counts_of(config, 9)


def test_only_the_process_that_leads_a_replica_counts(folder):
    store = _SilentStore(dist.HashStore())
    follower = build_loader(make_config(folder), LoaderRanks(stage=1, num_stages=2), store=store)
    for _ in range(2):
        next(follower)
    assert follower.outcome_counts() == {}


class _SilentStore:
    """A store in which the first stage has found no broken document."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def check(self, keys):
        return True

    def get(self, key):
        return b"[]"


def test_the_report_of_a_run(folder):
    config = make_config(folder)
    loader = build_loader(config, LoaderRanks())
    for _ in range(BATCH):
        next(loader)
    report = SampleAccounting().plus([loader.outcome_counts()]).report(loader.catalog, BATCH)
    assert report["sequences"] == BATCH
    assert report["planned"] == report["delivered"] + report["quarantined"]
    assert report["planned"] == sum(source["planned"] for source in report["sources"].values())
    assert report["sources"]["a"]["unusable"] == {"invalid_json": 1}
    assert report["unusable"] == 1


class TestSubstitutes:
    @pytest.mark.parametrize("micro_batch_size", [1, 2])
    def test_a_sequence_of_nothing_but_broken_videos(self, folder, micro_batch_size):
        """Two sequences that hold a broken video each, six that hold a text: substitutes are counted apart."""
        write_jsonl(folder / "a.jsonl", [conversation("<video>" + 200 * "x", videos=["cut.mp4"])] * 2)
        write_jsonl(folder / "b.jsonl", [conversation(f"{number} {200 * 'x'}") for number in range(6)])
        config = data_config(folder, {name: {"data_paths": [f"{name}.jsonl"]} for name in "ab"})
        training = {"global_batch_size": 8, "micro_batch_size": micro_batch_size}
        config = config.model_copy(update={"training": config.training.model_copy(update=training)})
        loader = build_loader(config, LoaderRanks())
        batches = [next(loader) for _ in range(8 // micro_batch_size)]
        assert loader.outcome_counts() == {
            ("a", PLANNED): 2,
            ("a", "broken_video"): 2,
            ("b", PLANNED): 6,
            ("b", DELIVERED): 6,
            ("b", SUBSTITUTED): 2,
        }
        assert sum(source == "b" for batch in batches for source in batch.document_sources) == 8

    def test_reasons_are_those_of_the_last_reading(self, folder):
        """A sequence that is read fine at first and breaks when it is read again is no substitute, and counted once."""
        write_jsonl(folder / "a.jsonl", [conversation("x")])
        config = data_config(folder, {"a": {"data_paths": ["a.jsonl"]}})
        request = build_loader(config, LoaderRanks()).catalog.request(0)
        error = SampleError(Reason.BROKEN_VIDEO, "cut")
        first = ReadMicroBatch(MicroBatch(0, [4, 5], [request, request], [0, 1], []), [], {0: error})
        second = ReadMicroBatch(MicroBatch(1, [5, 5], [request, request], [0, 1], []), [], {1: error})
        assert count_outcomes([first, second]) == {
            ("a", "broken_video"): 2,
            ("a", SUBSTITUTED): 1,
        }
