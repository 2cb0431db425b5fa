"""`longvita data view`: a sequence is shown as the loaders of a run take it."""

from __future__ import annotations

import concurrent.futures
import re

import numpy as np
import pytest
import torch.distributed as dist
from typer.testing import CliRunner

from longvita.cli import app
from longvita.config import load
from longvita.data.batch import IGNORED_LABEL
from longvita.data.errors import DataError
from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.report.sequence import replicas_of, view_sequence
from tests.unit.commands.data.test_index import write_config
from tests.unit.data.material import write_jsonl
from tests.unit.data.test_loader import mixed_samples

BATCH = 8


@pytest.fixture
def config_file(folder):
    write_jsonl(folder / "a.jsonl", mixed_samples(60))
    return write_config(folder, {"a": {"data_paths": ["a.jsonl"]}})


@pytest.fixture
def config(config_file):
    tensor, context = "layout.tensor_parallel=2", "layout.context_parallel=2"
    size = ["training.micro_batch_size=2", f"training.global_batch_size={BATCH}", "data.sequence_length=512"]
    return load(config_file, [tensor, context, *size])


def batches_of_replica(config, replica, replicas, steps):
    """[step][micro batch] of one replica's vision rank 1."""
    store = dist.HashStore()
    ranks = [LoaderRanks(replica, replicas, rank, 4) for rank in range(4)]
    count = BATCH // replicas // config.training.micro_batch_size
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        loaders = [build_loader(config, rank, store=store) for rank in ranks]
        taken = list(pool.map(lambda loader: [next(loader) for _ in range(steps * count)], loaders))[1]
    return [taken[step * count : (step + 1) * count] for step in range(steps)]


@pytest.mark.parametrize("replicas", [1, 2])
def test_is_what_the_loaders_hand_out(config, replicas):
    """Every sequence of two steps: its tokens, loss and tiles' owners lie in the micro batch that is named."""
    taken = [batches_of_replica(config, replica, replicas, 2) for replica in range(replicas)]
    found = set()
    for number in range(2 * BATCH):
        view = view_sequence(config, number, replicas)
        batch = taken[view.replica][view.step - 1][view.micro_batch]
        bounds = batch.cu_seqlens.tolist()
        lengths = [document.request.length for document in view.documents]
        (first,) = [
            start
            for start in range(len(bounds) - 1)
            if np.diff(bounds)[start : start + len(lengths)].tolist() == lengths
            and owners_in(batch, bounds[start], bounds[start + len(lengths)]) == owners_of(view)
        ]
        carried = (batch.labels[0, bounds[first] : bounds[first + len(lengths)]] != IGNORED_LABEL).sum()
        assert int(carried) == sum(document.loss_tokens for document in view.documents)
        found.add((view.step, view.replica, view.micro_batch, first))
    assert len(found) == 2 * BATCH
    assert {step for step, *_ in found} == {1, 2}


def owners_in(batch, start, end):
    inside = (batch.tile_starts >= start) & (batch.tile_starts < end)
    return batch.tile_owners[inside].tolist()


def owners_of(view):
    return [owner for document in view.documents for owner in document.owners.tolist()]


def test_documents_follow_each_other(config):
    view = view_sequence(config, 3, 1)
    starts = np.cumsum([0, *(document.request.length for document in view.documents)])
    assert [document.start for document in view.documents] == starts[:-1].tolist()
    assert view.tokens == starts[-1] <= view.length == 512
    assert view.rank_name(3) == "rank 3 (CP 1, TP 1)"
    assert view.rank_name(2) == "rank 2 (CP 1, TP 0)"


def test_replicas_are_those_of_the_layout(config):
    processes = config.layout.model_copy(update={"processes": 8})
    assert replicas_of(config, None) == 1
    assert replicas_of(config.model_copy(update={"layout": processes}), None) == 2
    assert replicas_of(config, 4) == 4
    with pytest.raises(DataError, match="global_batch_size 8 is not a multiple of 3 replicas x micro_batch_size 2"):
        replicas_of(config, 3)


def run(config_file, *options):
    return CliRunner().invoke(app, ["data", "view", str(config_file), *options])


def test_terminal(config_file):
    result = run(config_file, "--sequence", "1")
    assert result.exit_code == 0, result.exception
    assert "Sequence 1 of the stream, epoch 0" in result.stdout
    assert "replica 0 of 1, micro batch 1" in result.stdout
    assert "<|im_start|>assistant" in result.stdout
    assert re.search(r"\[tiles? \d", result.stdout)


def test_an_epoch_later(config_file):
    assert "epoch 1: " in run(config_file, "--sequence", "30").stdout


def test_page(config_file, folder):
    result = run(config_file, "--sequence", "1", "--html", str(folder / "page.html"))
    assert result.exit_code == 0, result.exception
    text = (folder / "page.html").read_text()
    assert "<mark>yes&lt;|im_end|&gt;\n</mark>" in text
    assert f"{folder}/a.jsonl:" in text
    assert "src=" not in text and "<script" not in text
