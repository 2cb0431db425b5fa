from __future__ import annotations

import concurrent.futures
import itertools
import json
import random
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longvita.data.batch import IGNORED_LABEL
from longvita.data.errors import DataError
from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.loading import broken_documents
from longvita.data.mix.catalog import make_template
from longvita.data.packing.plan_cache import plan_epoch
from longvita.data.quarantine import FILE_NAME, read_quarantine
from tests.unit.data.material import conversation, data_config, sequences_per_epoch, write_jsonl

LIMITS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def mixed_samples(count=60):
    """Text, pictures and videos, identical in each call."""
    rng = random.Random(0)
    samples = []
    for number in range(count):
        text = f"sample {number} " + "x" * rng.randint(0, 60)
        kind = rng.randrange(4)
        if kind == 1:
            samples.append(conversation(f"<image>{text}", images=[rng.choice(["one.png", "wide.jpg"])]))
        elif kind == 2:
            samples.append(conversation(f"<video>{text}", videos=[rng.choice(["clip.mp4", "frames"])]))
        else:
            samples.append(conversation(text))
    return samples


@pytest.fixture
def config(folder):
    write_jsonl(folder / "a.jsonl", mixed_samples())
    write_jsonl(folder / "b.jsonl", [conversation(f"b {number}") for number in range(20)])
    sources = {"a": {"data_paths": ["a.jsonl"]}, "b": {"data_paths": ["b.jsonl"], "ratio": 0.5}}
    return data_config(folder, sources)


def batches(config, count, ranks=None, start=0, **options):
    loader = build_loader(config, ranks or LoaderRanks(), start, **options)
    try:
        return [next(loader) for _ in range(count)]
    finally:
        loader.close()


def changed(config, section, **fields):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=fields)})


def contents(batch):
    """The parts of a batch that are replicated on all ranks."""
    return (
        batch.input_ids.tolist(),
        batch.labels.tolist(),
        batch.position_ids.tolist(),
        batch.cu_seqlens.tolist(),
        batch.tile_starts.tolist(),
        batch.document_sources,
    )


def check_invariants(batch, config, template):
    """What holds for every LocalBatch of one rank that encodes all tiles."""
    length = config.data.sequence_length * config.training.micro_batch_size
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, length)
    bounds = batch.cu_seqlens.tolist()
    assert bounds[0] == 0
    assert bounds[-1] == length
    assert all(start < end for start, end in itertools.pairwise(bounds))
    assert batch.max_seqlen == max(np.diff(bounds))
    assert len(batch.document_sources) == len(bounds) - 1
    for start, end, source in zip(bounds, bounds[1:], batch.document_sources):
        assert batch.position_ids[0, start:end].tolist() == list(range(end - start))
        assert batch.labels[0, end - 1] == IGNORED_LABEL
        if not source:
            assert (batch.labels[0, start:end] == IGNORED_LABEL).all()
            assert (batch.input_ids[0, start:end] == template.tokenizer.padding).all()
    padding = sum(end - start for start, end, source in zip(bounds, bounds[1:], batch.document_sources) if not source)
    assert batch.padding_tokens == padding
    carried = batch.labels[0, :-1] != IGNORED_LABEL
    assert (batch.labels[0, :-1][carried] == batch.input_ids[0, 1:][carried]).all()
    contexts = [template.tokenizer.id_of(token) for token in ("<IMG_CONTEXT>", "<PATCH_CONTEXT>", "<VID_CONTEXT>")]
    expected = torch.nonzero(torch.isin(batch.input_ids[0], torch.tensor(contexts)))[:, 0]
    assert batch.tile_starts.tolist() == expected.tolist()
    assert len(batch.tile_owners) == len(batch.tile_starts)
    assert batch.tiles.shape == (len(batch.tile_starts), 3, 28, 28)
    assert batch.tiles.dtype == torch.float32


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize("isolate", [True, False])
def test_invariants(config, micro_batch_size, isolate):
    config = changed(config, "training", micro_batch_size=micro_batch_size, global_batch_size=3)
    config = changed(config, "data", isolate_documents=isolate)
    template = make_template(config)
    for batch in batches(config, 15):
        check_invariants(batch, config, template)
        if not isolate:
            assert sum(source != "" for source in batch.document_sources) == micro_batch_size


def test_an_epoch_holds_each_sample_of_the_mix_once(config):
    loader = build_loader(config, LoaderRanks())
    assert sum(file.num_samples for file in loader.catalog.files) == 80
    assert len(loader.catalog.selected) == 70
    assert loader.catalog.quarantined == []
    plan = plan_epoch(loader.catalog, config, 0)
    assert 0.9 < plan.fill <= 1
    seen = [source for _ in range(plan.num_sequences) for source in next(loader).document_sources if source]
    assert sorted(seen) == ["a"] * 60 + ["b"] * 10


def assert_same_stream(left, right):
    for one, other in zip(left, right, strict=True):
        assert contents(one) == contents(other)
        torch.testing.assert_close(one.tiles, other.tiles, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(config, workers):
    assert_same_stream(batches(changed(config, "data", num_workers=workers), 12), batches(config, 12))


def test_killed_workers_change_nothing(config):
    """Each of the two workers is killed in the middle of the run, one while its results are waited for."""
    undisturbed = batches(config, 16)
    loader = build_loader(changed(config, "data", num_workers=2), LoaderRanks())
    try:
        disturbed = []
        for number in range(16):
            if number in (3, 4, 9):
                workers = psutil.Process().children()
                workers[number % len(workers)].kill()
            disturbed.append(next(loader))
    finally:
        loader.close()
    assert_same_stream(disturbed, undisturbed)
    assert read_quarantine(Path(config.output) / FILE_NAME) == []


@LIMITS
@given(st.integers(1, 4), st.sampled_from([1, 2]), st.integers(0, 30))
def test_every_step_is_the_same_set_for_any_number_of_replicas_and_start(config, replicas, micro_batch_size, start):
    size = 2 * replicas * micro_batch_size
    single = batches(changed(config, "training", global_batch_size=size), 2 * size, start=start)
    config = changed(config, "training", micro_batch_size=micro_batch_size, global_batch_size=size)
    split = [batches(config, 4, LoaderRanks(rank, replicas), start) for rank in range(replicas)]
    for step in range(2):
        expected = [document for batch in single[step * size : (step + 1) * size] for document in documents(batch)]
        taken = [batch for replica in split for batch in replica[2 * step : 2 * step + 2]]
        assert sorted(document for batch in taken for document in documents(batch)) == sorted(expected)
        tiles = torch.cat([batch.tiles for batch in taken]).sum(dtype=torch.float64)
        expected_tiles = torch.cat([batch.tiles for batch in single[step * size : (step + 1) * size]])
        torch.testing.assert_close(tiles, expected_tiles.sum(dtype=torch.float64))


def documents(batch):
    bounds = batch.cu_seqlens.tolist()
    parts = zip(bounds, bounds[1:], batch.document_sources)
    return [batch.input_ids[0, start:end].tolist() for start, end, source in parts if source]


def test_resumes_from_what_was_consumed(config):
    whole = batches(config, 20)
    loader = build_loader(config, LoaderRanks(), 0)
    for _ in range(7):
        next(loader)
    assert loader.consumed_sequences == 7
    rest = batches(config, 13, start=loader.consumed_sequences)
    assert [contents(batch) for batch in rest] == [contents(batch) for batch in whole[7:]]
    other = LoaderRanks(dp_size=2)
    loader = build_loader(config, other)
    next(loader)
    assert loader.consumed_sequences == 2


def on_ranks(config, ranks, count):
    """The batches of all ranks of a replica, which run in parallel and exchange findings through one store."""
    store = dist.HashStore()
    loaders = [build_loader(config, rank, store=store) for rank in ranks]
    with concurrent.futures.ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(lambda loader: [next(loader) for _ in range(count)], loaders))


@pytest.fixture
def short_timeout(monkeypatch):
    """A rank that fails leaves the others waiting for seconds only."""
    monkeypatch.setattr(broken_documents, "TIMEOUT_SECONDS", 30.0)


@pytest.mark.usefixtures("short_timeout")
class TestReplica:
    RANKS = [
        LoaderRanks(vision_rank=rank, vision_size=2, stage=stage, num_stages=2) for stage in (0, 1) for rank in (0, 1)
    ]

    def test_tiles_are_divided_and_tokens_are_replicated(self, config):
        alone = batches(config, 8)
        by_rank = on_ranks(config, self.RANKS, 8)
        for single, first, second, *later in zip(alone, *by_rank, strict=True):
            for batch in (first, second, *later):
                assert contents(batch) == contents(single)
                assert batch.tile_owners.tolist() == first.tile_owners.tolist()
            assert len(first.tiles) == (first.tile_owners == 0).sum()
            torch.testing.assert_close(torch.cat([first.tiles, second.tiles]), single.tiles, rtol=0, atol=0)
            assert all(len(batch.tiles) == 0 for batch in later)

    def test_each_rank_decodes_its_own_tiles_only(self, config, monkeypatch):
        from longvita.data import document

        decoded = []
        real = document.decode_tiles

        def count(items, settings, limit, wanted, *others):
            decoded.append(len(wanted))
            return real(items, settings, limit, wanted, *others)

        monkeypatch.setattr(document, "decode_tiles", count)
        by_rank = on_ranks(config, self.RANKS, 8)
        assert sum(decoded) == sum(len(batch.tile_starts) for batch in by_rank[0])

    def test_a_video_that_breaks_under_one_rank_is_left_out_by_all(self, folder, config):
        """cut.mp4 has a good header: its early frames decode, its late ones do not."""
        samples = [conversation(f"<video>{number}", videos=["cut.mp4"]) for number in range(3)]
        good = mixed_samples(40)
        write_jsonl(folder / "a.jsonl", good[:20] + samples + good[20:])
        count = sequences_per_epoch(build_loader(config, LoaderRanks()))
        alone = batches(config, count)
        assert sum(source == "a" for batch in alone for source in batch.document_sources) == 40
        broken = {(entry.line, str(entry.reason)) for entry in read_quarantine(folder / "run" / FILE_NAME)}
        assert broken == {(21, "broken_video"), (22, "broken_video"), (23, "broken_video")}
        template = make_template(config)
        for single, *batch_of_rank in zip(alone, *on_ranks(config, self.RANKS, count), strict=True):
            check_invariants(single, config, template)
            for batch in batch_of_rank:
                assert contents(batch) == contents(single)
            torch.testing.assert_close(torch.cat([batch.tiles for batch in batch_of_rank]), single.tiles)

    @pytest.mark.parametrize("micro_batch_size", [1, 2])
    def test_a_later_sequence_is_substituted_for_one_of_nothing_but_broken_videos(self, folder, micro_batch_size):
        """On every rank and for any number of replicas; the substitute comes again in its turn."""
        write_jsonl(folder / "a.jsonl", [conversation("<video>" + 200 * "x", videos=["cut.mp4"])] * 2)
        write_jsonl(folder / "b.jsonl", [conversation(f"{number} {200 * 'x'}") for number in range(6)])
        config = data_config(folder, {name: {"data_paths": [f"{name}.jsonl"]} for name in "ab"})
        config = changed(config, "training", micro_batch_size=micro_batch_size, global_batch_size=16)
        alone = batches(config, 16 // micro_batch_size)
        single = [sequence for batch in alone for sequence in documents(batch)]
        assert len(single) == 16 and len(set(map(str, single[:8]))) == 6, (
            "each good one in an epoch of 8, two of them twice"
        )
        for batch in zip(*on_ranks(config, self.RANKS, 16 // micro_batch_size), strict=True):
            assert len({str(contents(rank_batch)) for rank_batch in batch}) == 1
        replicas = [batches(config, 8 // micro_batch_size, LoaderRanks(rank, 2)) for rank in (0, 1)]
        shared = [batch for replica in replicas for batch in replica]
        assert sorted(sequence for batch in shared for sequence in documents(batch)) == sorted(single)

    def test_batches_of_nothing_but_broken_videos_are_padding(self, folder, config):
        samples = [conversation("<video>", videos=["cut.mp4"])] * 3
        write_jsonl(folder / "a.jsonl", samples)
        config = changed(config, "data", dataset={"a": config.data.dataset["a"]})
        for batch in (batch for rank in on_ranks(config, self.RANKS, 3) for batch in rank):
            assert batch.padding_tokens == 256
            assert (batch.labels == IGNORED_LABEL).all()
            assert len(batch.tiles) == len(batch.tile_starts) == 0

    def test_a_replica_of_several_processes_needs_a_store(self, config):
        with pytest.raises(RuntimeError, match=r"needs torch.distributed, or a store"):
            build_loader(config, self.RANKS[0])


def test_everything_broken_is_quarantined_with_its_reason(folder, config):
    media = ["none.png", "text.png"]
    broken = [
        "{oops",
        conversation(""),
        conversation("<image><image>", images=["one.png"]),
        *(conversation("<image>", images=[name]) for name in media),
        *(conversation("<video>", videos=[name]) for name in ("none.mp4", "zero.mp4", "audio.mp4", "cut.mp4")),
        conversation("x" * 300),
        conversation("<video>" + "x" * 300, videos=["clip.mp4"]),
    ]
    write_jsonl(folder / "a.jsonl", mixed_samples(30) + broken)
    loader = build_loader(config, LoaderRanks())
    for _ in range(sequences_per_epoch(loader)):
        assert next(loader).padding_tokens < 256
    entries = read_quarantine(folder / "run" / FILE_NAME)
    assert {entry.line: str(entry.reason) for entry in entries} == {
        31: "invalid_json",
        32: "empty_turn",
        33: "mark_count",
        34: "missing_file",
        35: "broken_picture",
        36: "missing_file",
        37: "broken_video",
        38: "broken_video",
        39: "broken_video",
        40: "too_long",
        41: "too_long",
    }
    assert all(entry.source == "a" and entry.detail for entry in entries)
    assert json.loads((folder / "run" / FILE_NAME).read_text().splitlines()[0])["path"] == str(folder / "a.jsonl")


def test_a_long_video_is_resampled_to_fit(folder, config):
    write_jsonl(folder / "a.jsonl", [conversation("<video>" + "x" * 220, videos=["clip.mp4"])])
    config = changed(config, "data", dataset={"a": config.data.dataset["a"]})
    loader = build_loader(config, LoaderRanks())
    assert loader.catalog.files[0].measured.frame_limits[0] < config.data.max_num_frames
    batch = next(loader)
    assert 1 <= len(batch.tiles) < 8
    assert batch.padding_tokens < 3  # One more frame would not fit.


class TestValidation:
    def with_held_out(self, config, sequences):
        held_out = {name: config.data.dataset["b"].model_copy(update={"ratio": 1.0}) for name in ("b",)}
        return changed(changed(config, "data", validation=held_out), "training", validation_sequences=sequences)

    def test_is_the_same_set_for_any_number_of_replicas(self, config):
        config = self.with_held_out(config, 3)
        alone = batches(config, 5, split="validation/b")
        pairs = [batches(config, 3, LoaderRanks(rank, 2), split="validation/b") for rank in range(2)]
        joined = [batch for turn in zip(*pairs, strict=True) for batch in turn]
        assert [documents(batch) for batch in alone][:5] == [documents(batch) for batch in joined][:5]
        assert [bool(documents(batch)) for batch in joined] == [True, True, True, False, False, False]

    def test_a_small_source_is_not_repeated(self, config):
        config = self.with_held_out(config, 1000)
        seen = [document for batch in batches(config, 12, split="validation/b") for document in documents(batch)]
        assert len(seen) == 20

    def test_an_unknown_split(self, config):
        with pytest.raises(DataError, match="no split 'validation/c'; known are train, validation/b"):
            build_loader(self.with_held_out(config, 3), LoaderRanks(), split="validation/c")


def test_a_loader_that_is_dropped_ends_its_workers(config):
    loader = build_loader(changed(config, "data", num_workers=1), LoaderRanks())
    next(loader)
    process = loader._reader._workers[0].process
    del loader
    assert process.wait(timeout=30) is not None
