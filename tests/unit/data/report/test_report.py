"""`longvita data report`: its figures compared with counts sample by sample, and its page."""

from __future__ import annotations

import html
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from longvita.cli import app
from longvita.config import load
from longvita.data.chat_template import IGNORED_LABEL
from longvita.data.errors import DataError
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.packing.balance import StepDivision, WorkModel
from longvita.data.packing.packer import SequenceStream
from longvita.data.packing.plan_cache import plan_epoch
from longvita.data.report.examples import choose, read_examples
from longvita.data.report.figures import imbalance, length_classes, pack, packing_figures, source_figures
from longvita.data.report.spans import LOSS, TEXT, as_html, as_text, spans_of
from tests.unit.commands.data.test_index import write_config
from tests.unit.data.material import conversation, write_jsonl
from tests.unit.data.test_loader import mixed_samples

BROKEN = ["{oops", conversation("<b>&</b><image>", images=["<u>none.png"]), conversation("x" * 300)]


@pytest.fixture
def config_file(folder):
    videos = [conversation(f"<video>{number} <script>alert('x')</script>", videos=["clip.mp4"]) for number in range(3)]
    write_jsonl(folder / "a.jsonl", [*mixed_samples(60), *videos, *BROKEN])
    write_jsonl(folder / "b.jsonl", [conversation(f"b {number}", "<i>answer</i>") for number in range(20)])
    write_jsonl(folder / "cut.jsonl", [conversation("<video>cut", videos=["cut.mp4"])])
    sources = {
        "a": {"data_paths": ["a.jsonl"]},
        "b & c": {"data_paths": ["b.jsonl", "b.jsonl"], "ratio": 1.5},
        "cut": {"data_paths": ["cut.jsonl"]},
    }
    return write_config(folder, sources, validation={"held": {"data_paths": ["b.jsonl"]}})


@pytest.fixture
def config(config_file):
    return load(config_file)


@pytest.fixture
def catalog(config):
    return build_catalog(config, make_template(config), config.data.dataset)


def test_source_figures_equal_a_count_sample_by_sample(catalog):
    by_source = {one.source: one for one in source_figures(catalog)}
    for source, figures in by_source.items():
        requests = [catalog.request(sample) for sample in catalog.selected if catalog.request(sample).source == source]
        assert figures.used == len(requests) == sum(count for _, count in figures.lengths)
        assert figures.tokens == sum(request.length for request in requests)
        assert figures.tiles == sum(request.num_tiles for request in requests)
    assert by_source["a"].samples == 66
    assert by_source["a"].quarantined == {"invalid_json": 1, "missing_file": 1, "too_long": 1}
    assert by_source["b & c"].used == 60


def test_length_classes():
    assert length_classes(np.asarray([1, 2, 3, 4, 5, 64])) == [
        ("up to 1", 1),
        ("up to 2", 1),
        ("up to 4", 2),
        ("up to 8", 1),
        ("up to 16", 0),
        ("up to 32", 0),
        ("up to 64", 1),
    ]
    assert length_classes(np.zeros(0, int)) == []


def test_packing_figures_equal_those_of_the_sequences(catalog, config):
    plan, shown = plan_epoch(catalog, config, 0), []
    pack(plan, shown.append)
    figures = packing_figures(catalog, plan, 256)
    sequences = [catalog.lengths[plan.sequence(number)] for number in range(plan.num_sequences)]
    assert shown and figures.sequences == len(sequences)
    assert figures.fill == pytest.approx(sum(lengths.sum() for lengths in sequences) / 256 / len(sequences))
    full = sum(lengths.sum() >= 0.99 * 256 for lengths in sequences)
    assert dict(figures.fills)["from 99%"] == full > 0
    assert sum(count for _, count in figures.fills) == len(sequences)
    assert len(figures.first) == 16
    for lengths, expected in zip(figures.first, sequences):
        assert lengths.tolist() == expected.tolist()


@pytest.mark.parametrize("batch", [4, 8, 1000])
def test_imbalance_equals_that_of_training_steps(catalog, config, batch):
    training = config.training.model_copy(update={"global_batch_size": batch})
    config = config.model_copy(update={"training": training})
    plan = plan_epoch(catalog, config, 0)
    found = imbalance(catalog, plan, config, 2, lambda _: None)
    steps = max(plan.num_sequences // batch, 1)
    assert found.steps == steps == sum(count for _, count in found.classes)
    if batch > plan.num_sequences:
        return
    work, stream = WorkModel.of(config), SequenceStream(lambda epoch: plan)
    division = StepDivision(catalog, stream, work, isolated=True)
    uneven = []
    for step in range(steps):
        numbers = np.arange(step * batch, (step + 1) * batch)
        owners, loads = division.replicas(numbers, 2), [0.0, 0.0]
        for number, owner in zip(numbers.tolist(), owners.tolist(), strict=True):
            samples = plan.sequence(number)
            one = work.of_sequences(catalog.lengths[samples], catalog.tiles[samples], np.zeros(1, int), isolated=True)
            loads[owner] += float(one[0])
        uneven.append(max(loads) / (sum(loads) / 2) - 1)
    assert found.mean == pytest.approx(np.mean(uneven))
    assert found.worst == pytest.approx(max(uneven))
    assert found.in_order >= found.mean


def test_a_step_that_cannot_be_divided(catalog, config):
    with pytest.raises(DataError, match="global_batch_size 4 cannot be divided among 3 replicas"):
        imbalance(catalog, plan_epoch(catalog, config, 0), config, 3, lambda _: None)


class TestExamples:
    def test_the_choice_depends_on_source_and_seed(self, catalog):
        chosen = choose(catalog, "b & c", 7, seed=1)
        assert len(chosen) == len(set(chosen)) <= 7
        assert {catalog.request(sample).source for sample in chosen} == {"b & c"}
        assert chosen == choose(catalog, "b & c", 7, seed=1) != choose(catalog, "b & c", 7, seed=2)
        assert set(chosen) <= set(catalog.selected.tolist())
        assert len(choose(catalog, "cut", 7, seed=1)) == 1
        assert choose(catalog, "a", 1000, seed=1) == sorted(
            {sample for sample in catalog.selected.tolist() if catalog.request(sample).source == "a"}
        )

    def test_pictures_are_the_tiles_that_the_model_gets(self, catalog, config):
        samples = choose(catalog, "a", 1000, seed=1)
        examples = read_examples(samples, catalog, make_template(config), config, lambda _: None)
        assert len(examples) == len(samples)
        with_video = [example for example in examples if example.request.facts.videos]
        with_picture = [example for example in examples if example.request.facts.pictures]
        assert with_video and with_picture
        for example in with_video:
            assert [name for name, _ in example.pictures] == [f"frame {n} of 8" for n in (1, 2, 3, 5, 6, 8)]
        for example in with_picture:
            assert [name for name, _ in example.pictures] == ["picture 1 of 1"]
            assert example.pictures[0][1].size == (28, 28)
        assert all(example.loss_tokens == 5 for example in examples)

    def test_a_video_that_does_not_decode_costs_its_pictures_only(self, catalog, config):
        (example,) = read_examples(choose(catalog, "cut", 1, 0), catalog, make_template(config), config, lambda _: None)
        assert example.problem.startswith("broken_video: ")
        assert example.pictures == []
        assert [span.kind for span in example.spans] == [TEXT, 0, TEXT, LOSS]


class TestSpans:
    def encoded(self, catalog, template, source, number):
        from longvita.data.document import DocumentReader

        samples = [sample for sample in catalog.selected.tolist() if catalog.request(sample).source == source]
        return DocumentReader(template, catalog.settings).read(catalog.request(samples[number])).encoded

    @pytest.mark.parametrize("number", range(12))
    def test_every_token_is_in_one(self, catalog, config, number):
        template = make_template(config)
        encoded = self.encoded(catalog, template, "a", number)
        spans = spans_of(encoded, template)
        assert sum(span.tokens for span in spans) == len(encoded.input_ids)
        carried = [token for token, label in zip(encoded.input_ids, encoded.labels) if label != IGNORED_LABEL]
        assert sum(span.tokens for span in spans if span.kind == LOSS) == len(carried)
        assert "".join(span.text for span in spans if span.kind == LOSS) == template.tokenizer.decode(carried)
        assert not any(
            mark in span.text for span in spans for mark in ("<img>", "</img>", "CONTEXT", "<vid>", "</vid>")
        )
        tiles = [tile for span in spans for tile in span.tiles]
        assert tiles == list(range(encoded.num_tiles))
        assert all(first.kind != second.kind for first, second in itertools.pairwise(spans))

    def test_tiles_of_two_ranks_are_two_blocks(self, catalog, config):
        template = make_template(config)
        encoded = next(e for n in range(60) if (e := self.encoded(catalog, template, "a", n)).num_tiles == 8)
        blocks = [span for span in spans_of(encoded, template, [0] * 3 + [1] * 5) if span.kind >= 0]
        assert [(span.kind, span.tiles, span.tokens) for span in blocks] == [(0, range(3), 9), (1, range(3, 8), 15)]
        text = as_html(blocks, 100, lambda rank: f"<rank {rank}>")
        assert "[tiles 3 to 7: 15 tokens, &lt;rank 1&gt;]" in text
        assert as_text(blocks, 100).plain == "[tiles 0 to 2: 9 tokens][tiles 3 to 7: 15 tokens]"

    def test_long_text_is_cut_in_its_middle(self, catalog, config):
        template = make_template(config)
        spans = spans_of(self.encoded(catalog, template, "b & c", 0), template)
        whole, cut = as_text(spans, 1000).plain, as_text(spans, 10).plain
        assert "answer" in whole and " … " not in whole
        assert "<|im_… " not in cut and cut.startswith("<|im_ … ")


class TestCommand:
    def page(self, config_file, folder, *options):
        path = folder / "report.html"
        result = CliRunner().invoke(app, ["data", "report", str(config_file), "--output", str(path), *options])
        assert result.exit_code == 0, result.exception
        return path.read_text()

    def test_one_page_with_everything_in_it(self, config_file, folder):
        text = self.page(config_file, folder, "--examples", "100", "--replicas", "2")
        links = re.findall(r"(?:src|href)\s*=\s*['\"]([^'\"]*)", text)
        assert links and all(link.startswith("data:image/jpeg;base64,") for link in links)
        assert "<script" not in text and "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in text
        assert "b &amp; c" in text and "b & c" not in text
        assert "<mark>&lt;i&gt;answer&lt;/i&gt;&lt;|im_end|&gt;\n</mark>" in text
        for words in ("<h2>training</h2>", "<h2>held out</h2>", "up to 128", "ver 2 replicas the busiest", "from 99%"):
            assert words in text
        assert html.escape(f"{folder}/a.jsonl:64: not JSON") in text
        assert "broken_video: " in text
        assert text.count("<article>") == 63 + 2 * 20 + 1 + 20

    def test_nothing_from_the_samples_is_markup(self, config_file, folder):
        """Every tag of the page is one that this project writes."""
        tags = set(re.findall(r"<\s*/?\s*([a-zA-Z!]+)", self.page(config_file, folder, "--examples", "100")))
        known = (
            "!doctype html meta title style h h p table tr th td span div article small figure img figcaption mark b"
        )
        assert tags <= {*known.split(), "ul", "li", "br"}

    def test_text(self, config_file, folder):
        result = CliRunner().invoke(app, ["data", "report", str(config_file), "--text"])
        assert result.exit_code == 0, result.exception
        assert "over 4 replicas the busiest one" in result.stdout
        assert not (folder / "report.html").exists()

    def test_a_folder_that_is_missing(self, config_file):
        result = CliRunner().invoke(app, ["data", "report", str(config_file), "--output", "none/report.html"])
        assert isinstance(result.exception, DataError)
        result = CliRunner().invoke(app, ["data", "report", str(config_file), "--output", str(config_file.parent)])
        assert "is a folder; give the name of a file" in str(result.exception)
        result = CliRunner().invoke(app, ["data", "view", str(config_file), "--html", "none/view.html"])
        assert "the folder of none/view.html does not exist" in str(result.exception)


def inspect_data(config_file, repository, *options):
    command = [sys.executable, str(repository / "tools" / "inspect_data.py"), str(config_file), *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_inspect_data_is_the_report_as_text(config_file, repository):
    result = inspect_data(config_file, repository, "seed=3")
    assert result.returncode == 0, result.stderr
    assert "sequences of 256 tokens an epoch" in result.stdout
    assert "invalid_json 1, missing_file 1" in result.stdout
    assert "training: sources" in result.stdout
    assert "held out: sources" in result.stdout
    assert "   0 |A" in result.stdout


def test_without_the_files_that_are_missing(config_file, folder, repository):
    lost = f"data.dataset.lost={{data_paths: [{folder}/gone.jsonl]}}"
    refused = inspect_data(config_file, repository, lost)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: 1 data file of 1 source is missing:\n  lost:\n")
    result = inspect_data(config_file, repository, lost, "--allow-missing")
    assert result.returncode == 0, result.stderr
    left_out = f"left out, 1 data file of 1 source is missing:\n  lost:\n    {folder}/gone.jsonl"
    assert f"training: {left_out}" in result.stdout
    text = TestCommand().page(config_file, folder, lost, "--allow-missing")
    assert "L" + left_out[1:] in text
