import io
import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from longvita.data.media.image import IMAGE_MEAN, IMAGE_STD
from longvita.data.media.video import VideoFacts, selected_frames
from longvita.data.tokenizer import load_tokenizer
from longvita.evaluation.data_set_files import DataSetError
from longvita.evaluation.needle import DEPTHS, LENGTHS, NeedleInVideo, read_needles, seconds_of
from longvita.inference.limits import LengthError
from longvita.inference.prompt import common_prefix
from longvita.inference.prompt_encoder import PromptEncoder
from tests.tiny import tiny_config
from tools.quickstart.tokenizer import train_tokenizer

COLOURS = [(0, 200, 0), (200, 0, 200)]


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return PromptEncoder(settings(), tokenizer)


def settings(**inference):
    return tiny_config(model={"language": {"vocab_size": 512}}, inference={"max_num_frames": 8, **inference})


@pytest.fixture
def folder(tmp_path):
    """A film of 12 frames of grey, each lighter than the one before it, and two needles of one colour."""
    (tmp_path / "film").mkdir()
    for number in range(12):
        Image.new("RGB", (28, 28), (20 * number,) * 3).save(tmp_path / "film" / f"{number}.png")
    lines = []
    for number, colour in enumerate(COLOURS):
        Image.new("RGB", (28, 28), colour).save(tmp_path / f"needle{number}.png")
        lines.append(json.dumps({"image": f"needle{number}.png", "question": "Which colour?", "answer": "one two"}))
    (tmp_path / "needles.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["Which colour? one two"], folder)
    return load_tokenizer(str(folder))


def colours(tiles):
    """The mean colour of each tile, 0 to 255."""
    mean, std = np.array(IMAGE_MEAN), np.array(IMAGE_STD)
    return np.rint((tiles.numpy().mean(axis=(2, 3)) * std + mean) * 255).astype(int).tolist()


def test_the_rules_of_v_niah():
    assert LENGTHS == (200, 400, 600, 800, 1000, 1200, 1400, 1600, 1800, 2000, 2200, 2400, 2600, 2800, 3000)
    assert DEPTHS == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 2), (0.99, 4), (1.0, 5)])
def test_the_needle_is_inserted_between_the_frames(folder, tokenizer, encoder, depth, place):
    task = NeedleInVideo(folder, [5], [depth])
    prompt = task.prompt(5, depth, 1, encoder)
    wanted = [[20 * number] * 3 for number in range(5)]
    wanted.insert(place, list(COLOURS[1]))
    assert colours(prompt.tiles.load(range(6))) == wanted
    assert colours(prompt.tiles.load([place])) == [wanted[place]]
    assert len(prompt.tile_starts) == len(prompt.tile_keys) == 6
    assert tokenizer.decode(list(prompt.input_ids)).count("Which colour?") == 1


def test_the_common_prefix_of_two_prompts_is_the_film_before_the_needle(folder, encoder):
    task = NeedleInVideo(folder, [6, 10], [0.5])
    first, second = (task.prompt(6, 0.5, number, encoder) for number in (0, 1))
    per_tile = encoder.config.model.tokens_per_tile
    assert common_prefix(first, second, per_tile, len(second)) == first.tile_starts[3]
    longer = task.prompt(10, 0.5, 0, encoder)
    assert common_prefix(first, longer, per_tile, len(longer)) == first.tile_starts[3]
    assert common_prefix(first, task.prompt(6, 0.5, 0, encoder), per_tile, len(first)) == len(first)


def test_needles_of_a_parquet_table(folder):
    picture = io.BytesIO()
    Image.new("RGB", (9, 9), COLOURS[0]).save(picture, "PNG")
    (folder / "needles.jsonl").unlink()
    rows = [{"image": {"bytes": picture.getvalue(), "path": None}, "question": "Q?", "answer": "A"}]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "test-00000.parquet")
    (needle,) = read_needles(folder)
    assert (needle.question, needle.answer, needle.picture.getpixel((4, 4))) == ("Q?", "A", COLOURS[0])


def test_a_byte_order_mark_before_the_needles(folder):
    path = folder / "needles.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_needles(folder)[0].question == "Which colour?"


def test_broken_folders_are_refused(folder, tmp_path):
    with pytest.raises(DataSetError, match="has 12 frames at one a second, but 13 are asked for"):
        NeedleInVideo(folder, [4, 13], [0.5])
    with pytest.raises(DataSetError, match="depths from 0 to 1"):
        NeedleInVideo(folder, [4], [1.5])
    (folder / "needles.jsonl").write_text('{"image": "needle0.png", "question": "Which?"}\n')
    with pytest.raises(DataSetError, match="needles of .* cannot be read: KeyError: 'answer'"):
        read_needles(folder)
    (folder / "needles.jsonl").write_text('{"image": "nowhere.png", "question": "Which?", "answer": "x"}\n')
    with pytest.raises(DataSetError, match=r"nowhere\.png does not exist"):
        read_needles(folder)
    (folder / "needles.jsonl").unlink()
    with pytest.raises(DataSetError, match="holds no needles"):
        read_needles(folder)


def test_lengths_that_do_not_fit_are_refused_at_once(folder, tokenizer):
    encoder = PromptEncoder(settings(max_seq_len=60), tokenizer)
    NeedleInVideo(folder, [4], [0.5]).check(encoder)
    with pytest.raises(LengthError, match=r"12 frames, a needle .* is 60; fix: --lengths up to") as error:
        NeedleInVideo(folder, [4, 12], [0.5]).check(encoder)
    fitting = int(str(error.value).split("up to ")[1].split()[0])
    NeedleInVideo(folder, [fitting], [0.5]).check(encoder)
    with pytest.raises(LengthError):
        NeedleInVideo(folder, [fitting + 1], [0.5]).check(encoder)


def test_the_longest_item_fits_the_limit_of_its_length(folder, tokenizer, encoder):
    task = NeedleInVideo(folder, [4, 12], [0.0, 1.0])
    longest = task.longest(encoder)
    task.check(PromptEncoder(settings(max_seq_len=longest), tokenizer))
    with pytest.raises(LengthError):
        task.check(PromptEncoder(settings(max_seq_len=longest - 1), tokenizer))


def test_a_slow_film_repeats_its_frames(folder):
    facts = VideoFacts(30, 0.5)
    assert selected_frames(facts, 1.0, seconds_of(facts)) == [second // 2 for second in range(60)]
    facts = VideoFacts(250, 25.0)
    assert selected_frames(facts, 1.0, seconds_of(facts)) == list(range(0, 250, 25))


def test_a_changed_needle_is_another_item(folder):
    first, second = NeedleInVideo(folder, [4], [0.5]).items()
    assert [item.digest for item in NeedleInVideo(folder, [5], [0.0]).items()] == [first.digest, second.digest]
    Image.new("RGB", (28, 28), "blue").save(folder / "needle0.png")
    changed, same = NeedleInVideo(folder, [4], [0.5]).items()
    assert (changed.digest != first.digest, same) == (True, second)


def test_the_report_counts_cells(folder):
    task = NeedleInVideo(folder, [4, 8], [0.0, 1.0])
    assert [item.key for item in task.items()][:3] == ["4 0 0", "4 0 1", "4 1 0"]
    records = {item.key: {"right": item.key in ("4 0 0", "4 0 1", "8 1 1")} for item in task.items()}
    records["8 0 0"] = {"error": "x"}
    scores = task.score(records)
    task.illustrate(records, folder)
    assert scores["overall"] == {"right": 3, "asked": 8, "accuracy": 0.375}
    assert scores["by_length_and_depth"] == {
        "4": {"0": {"right": 2, "asked": 2}, "1": {"right": 0, "asked": 2}},
        "8": {"0": {"right": 0, "asked": 2}, "1": {"right": 1, "asked": 2}},
    }
    assert scores["failed"] == 1
    with Image.open(folder / "needle.png") as picture:
        assert min(picture.size) > 100
