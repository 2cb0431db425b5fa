"""The files are reproducible and correct, and training files have no held-out scans."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from longvita.data.chat_template import ChatTemplate
from longvita.data.formats.record import NO_OPTIONS, record_sample
from longvita.data.tokenizer import ADDED_TOKENS, load_tokenizer
from longvita.evaluation.needle import NeedleInVideo
from tools.quickstart import build as building
from tools.quickstart import digits
from tools.quickstart.build import Sizes, build, make_sample, needle_place, needle_source
from tools.quickstart.questions import WORDS

SMALL = Sizes(
    variants=1,
    train={"digit": 6, "pictures": 6, "short_videos": 3, "long_videos": 1, "needles": 2},
    held_out={"digit": 6, "pictures": 7, "short_videos": 2, "long_videos": 1},
    needles={50: 1},
)


def content(folder: Path) -> dict[str, str]:
    """A digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "data"
    build(folder, SMALL, processes=1)
    return folder


def lines(data: Path, split: str, source: str) -> list[dict]:
    return [json.loads(line) for line in (data / split / f"{source}.jsonl").read_text().splitlines()]


def test_the_files_do_not_depend_on_the_number_of_processes(data, tmp_path):
    build(tmp_path / "again", SMALL, processes=2)
    assert content(tmp_path / "again") == content(data)


def test_complete_data_is_kept_and_other_data_replaced(data, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / building.COMPLETE).write_text((data / building.COMPLETE).read_text())
    build(folder, SMALL)
    assert [path.name for path in folder.iterdir()] == [building.COMPLETE], "the same data was written again"
    monkeypatch.setattr(building, "_fingerprint", lambda: "other code")
    build(folder, SMALL, processes=1)
    assert (folder / "train" / "digit.jsonl").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "a draft was left behind"


def test_every_line_can_be_read_and_its_media_are_there(data):
    counts = {"train": SMALL.train, "held_out": {**SMALL.held_out, needle_source(50, 0.5): 1}}
    for split, sources in counts.items():
        for source, count in sources.items():
            text = (data / split / f"{source}.jsonl").read_text().splitlines()
            assert len(text) == count
            for line in text:
                sample = record_sample(json.loads(line), NO_OPTIONS)
                assert all((data / path).is_file() for path in (*sample.images, *sample.videos))


def test_training_pictures_show_training_scans_only(data):
    held_out = set(digits.load().held_out.tolist())
    for split in ("train", "held_out"):
        for source in ("digit", "pictures"):
            for line in lines(data, split, source):
                scans = {int(re.fullmatch(r"pictures/(\d{4})_\d\.png", path)[1]) for path in line["images"]}
                assert scans <= held_out if split == "held_out" else not scans & held_out


@pytest.mark.parametrize("source", Sizes().train)
def test_training_samples_never_show_a_held_out_scan(source, data):
    """For more samples than a run uses. The frames of videos have no files."""
    held_out = set(digits.load().held_out.tolist())
    count_tokens = building._token_counter(str(data / building.TOKENIZER))
    for number in range(150):
        sample, _ = make_sample("train", source, number, count_tokens)
        assert not held_out & {drawing.scan for drawing in sample.drawings}


def test_held_out_samples_show_held_out_scans_only(data):
    held_out = {*digits.load().held_out.tolist(), -1}
    count_tokens = building._token_counter(str(data / building.TOKENIZER))
    for source in ("digit", "pictures", "long_videos", needle_source(80, 0.25)):
        for number in range(50):
            sample, _ = make_sample("held_out", source, number, count_tokens)
            assert {drawing.scan for drawing in sample.drawings} <= held_out


def test_held_out_questions_cover_what_is_scored(data):
    count_tokens = building._token_counter(str(data / building.TOKENIZER))
    shown = {make_sample("held_out", "digit", n, count_tokens)[0].drawings[0].scan for n in range(1000)}
    assert shown == set(digits.load().held_out.tolist())
    kinds = [make_sample("held_out", "pictures", n, count_tokens)[1]["kind"] for n in range(14)]
    assert len(set(kinds)) == 7
    assert len(make_sample("held_out", "long_videos", 0, count_tokens)[0].drawings) == 64
    sizes = Sizes()
    assert (sizes.held_out["digit"], sizes.held_out["pictures"], sizes.held_out["long_videos"]) == (1000, 1000, 300)
    longest = max(sizes.needles)
    assert sizes.needles[longest] * len(building.DEPTHS) == 100


@pytest.mark.parametrize("frames", [80, 330])
@pytest.mark.parametrize("depth", building.DEPTHS)
def test_needle_names(frames, depth):
    assert needle_place(needle_source(frames, depth)) == (frames, depth)


def test_the_needle_task_reads_the_film_and_its_needles(data):
    task = NeedleInVideo(data / building.NEEDLE_FOLDER, [330], building.DEPTHS)
    assert len(task.items()) == 10 * 5
    assert [needle.answer for needle in task.needles] == [f"digit {word}" for word in WORDS]
    assert {(needle.question, needle.picture.size) for needle in task.needles} == {("digit?", (56, 56))}


def test_samples_fit_their_sequences(data):
    """128, 192, 512 and 2,048 tokens, for the longest samples of each stage."""
    template = ChatTemplate(load_tokenizer(data / building.TOKENIZER), building.TOKENS_PER_TILE)
    count_tokens = building._token_counter(str(data / building.TOKENIZER))

    def length(split: str, source: str, number: int) -> int:
        sample, _ = make_sample(split, source, number, count_tokens)
        turns = record_sample({"messages": sample.messages(), **_media(sample)}, NO_OPTIONS).turns
        grids = [] if sample.is_video else [building_grid()] * len(sample.drawings)
        frames = [len(sample.drawings)] if sample.is_video else []
        tokens = len(template.encode(turns, grids, frames).input_ids)
        if not sample.is_video:
            assert tokens == count_tokens(sample)
        return tokens

    assert max(length("train", "pictures", number) for number in range(200)) <= 192
    assert max(length("held_out", "pictures", number) for number in range(200)) <= 128
    assert length("held_out", "long_videos", 0) <= 512
    assert length("held_out", needle_source(330, 1.0), 0) <= 2048


def _media(sample) -> dict:
    count = len(sample.drawings)
    return {"videos": ["x.mp4"]} if sample.is_video else {"images": ["x.png"] * count}


def building_grid():
    from longvita.data.media.image import Grid

    return Grid(1, 1)


def test_tokenizer_has_a_token_for_every_word_of_the_task(data):
    tokenizer = load_tokenizer(data / building.TOKENIZER)
    for text in ("digit", "after", "largest", "count", " seven", " yes", "user", "assistant", "A", ":", "?", "\n"):
        assert len(tokenizer.encode(text)) == 1, text
    assert all(len(tokenizer.encode(token)) == 1 for token in ADDED_TOKENS)
    text = "Anything else, wörd by wörd.\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokenizer_fits_the_model_and_loads_as_qwen2(data):
    from transformers import AutoTokenizer

    from longvita.config import load

    folder = data / building.TOKENIZER
    loaded = AutoTokenizer.from_pretrained(folder)
    assert type(loaded).__name__.startswith("Qwen2Tokenizer")
    text = "<image>A\n<image>B\ncount six?"
    assert loaded(text).input_ids == load_tokenizer(folder).encode(text)
    assert len(loaded) <= load("configs/model/long_vita_tiny.yaml").model.language.vocab_size


def test_drawn_lengths_are_within_their_bounds():
    rng = np.random.default_rng(0)
    found = {building._log_uniform(rng, *building.SHORT) for _ in range(500)}
    assert found == set(range(building.SHORT[0], building.SHORT[1] + 1))
