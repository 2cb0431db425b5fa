"""Prompts from files on disk: positions, keys for reuse, and refusals from headers alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from longvita.commands.support.conversation import Conversation
from longvita.config.schema import Config
from longvita.data.tokenizer import LongVITATokenizer, load_tokenizer
from longvita.inference.errors import PromptError
from longvita.inference.limits import LengthError
from longvita.inference.prompt_encoder import MediaTiles, PromptEncoder
from tests.tiny import tiny_config
from tools.quickstart.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LongVITATokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["What is in the picture?"], folder)
    return load_tokenizer(folder)


@pytest.fixture
def media(tmp_path: Path) -> Path:
    Image.new("RGB", (56, 28), (255, 0, 0)).save(tmp_path / "wide.png")
    Image.new("RGB", (28, 28), (0, 255, 0)).save(tmp_path / "square.png")
    (tmp_path / "clip").mkdir()
    for number in range(40):
        Image.new("RGB", (28, 28), (6 * number, 0, 0)).save(tmp_path / "clip" / f"{number}.png")
    return tmp_path


def settings(max_seq_len: int = 512, max_num_frames: int = 64) -> Config:
    return tiny_config(
        model={"language": {"vocab_size": 512}},
        inference={"max_seq_len": max_seq_len, "max_num_frames": max_num_frames},
    )


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_tiles_start_at_their_context_tokens(tokenizer: LongVITATokenizer, media: Path) -> None:
    prompt = PromptEncoder(settings(), tokenizer).encode(
        ask("<image><video>What?"), [media / "wide.png"], [media / "clip"]
    )
    words = [tokenizer.backend.id_to_token(prompt.input_ids[start]) for start in prompt.tile_starts]
    assert words == ["<IMG_CONTEXT>", "<PATCH_CONTEXT>", "<PATCH_CONTEXT>", *["<VID_CONTEXT>"] * 40]
    tiles = prompt.tiles.load([1, 3, 42])
    assert tiles.shape == (3, 3, 28, 28)
    assert torch.allclose(tiles[1, 0], torch.full((28, 28), -0.485 / 0.229), atol=1e-5)


def test_keys_distinguish_files_frames_and_changes(tokenizer: LongVITATokenizer, media: Path) -> None:
    encoder = PromptEncoder(settings(), tokenizer)
    prompt = encoder.encode(ask("<image><image><video>?"), [media / "wide.png", media / "square.png"], [media / "clip"])
    assert len(set(prompt.tile_keys)) == len(prompt.tile_keys) == 44
    again = encoder.encode(ask("<image>?"), [media / "square.png"])
    assert list(again.tile_keys) == [prompt.tile_keys[3]]
    os.utime(media / "square.png", ns=(1, 1))
    assert list(encoder.encode(ask("<image>?"), [media / "square.png"]).tile_keys) != list(again.tile_keys)


def test_a_long_video_is_refused_with_the_frames_that_fit(tokenizer: LongVITATokenizer, media: Path) -> None:
    with pytest.raises(LengthError) as caught:
        PromptEncoder(settings(max_seq_len=100), tokenizer).encode(ask("<video>What?"), [], [media / "clip"])
    text = str(caught.value)
    fitting = int(text.split("--max-num-frames ")[1].split()[0])
    assert "--max-seq-len is 100" in text
    prompt = PromptEncoder(settings(100, fitting), tokenizer).encode(ask("<video>What?"), [], [media / "clip"])
    assert len(prompt) < 100
    with pytest.raises(LengthError):
        PromptEncoder(settings(100, fitting + 1), tokenizer).encode(ask("<video>What?"), [], [media / "clip"])


def test_no_frame_is_decoded_to_refuse(
    tokenizer: LongVITATokenizer, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("a tile was decoded")

    monkeypatch.setattr("longvita.inference.prompt_encoder.decode_tiles", fail)
    with pytest.raises(LengthError):
        PromptEncoder(settings(max_seq_len=100), tokenizer).encode(ask("<video>What?"), [], [media / "clip"])


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("<image>?", ["missing.png"], "missing.png does not exist"),
        ("<image>?", ["broken.png"], "broken.png"),
        ("<image><image>?", ["square.png"], "2 <image> marks for 1 pictures"),
        ("  ", [], "has no text"),
    ],
)
def test_unusable_input_is_named(
    tokenizer: LongVITATokenizer, media: Path, text: str, images: list[str], message: str
) -> None:
    (media / "broken.png").write_bytes(b"no picture")
    with pytest.raises(PromptError, match=message):
        PromptEncoder(settings(), tokenizer).encode(ask(text), [media / name for name in images])


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer: LongVITATokenizer) -> None:
    with pytest.raises(PromptError, match=r"the tokenizer has \d+ tokens .* vocabulary has 128 rows"):
        PromptEncoder(tiny_config(), tokenizer)


def test_pictures_come_before_a_question_without_marks(media: Path) -> None:
    talk = Conversation(max_fps=1.0)
    talk.show_picture(str(media / "square.png"))
    talk.show_video(str(media / "clip"))
    messages = talk.with_question("What is it?")
    assert messages == ask("<image>\n<video>\nWhat is it?")
    talk.keep(messages, "It is <image>.")
    assert talk.with_question("And now?") == [
        *messages,
        {"role": "assistant", "content": "It is < image>."},
        {"role": "user", "content": "And now?"},
    ]


def test_marks_of_a_question_must_match_what_is_shown_with_it(media: Path) -> None:
    talk = Conversation(max_fps=1.0)
    with pytest.raises(PromptError, match="1 <image> and 0 <video> marks, but 0 pictures"):
        talk.with_question("<image> What is it?")
    talk.show_picture(str(media / "square.png"))
    assert talk.with_question("Here: <image> What is it?") == ask("Here: <image> What is it?")


def test_files_are_checked_when_they_are_shown(media: Path) -> None:
    talk = Conversation(max_fps=1.0)
    with pytest.raises(PromptError, match="does not exist"):
        talk.show_picture(str(media / "missing.png"))
    with pytest.raises(PromptError, match="does not exist"):
        talk.show_video(str(media / "missing.mp4"))
    assert (talk.images, talk.videos) == ([], [])


def test_tiles_are_labelled_and_shown_for_people(tokenizer: LongVITATokenizer, media: Path) -> None:
    encoder = PromptEncoder(settings(), tokenizer)
    tiles = encoder.encode(ask("<image><video>?"), [media / "wide.png"], [media / "clip"]).tiles
    assert isinstance(tiles, MediaTiles)
    labels = tiles.labels()
    assert labels[:3] == ["wide.png, whole", "wide.png, tile 1 of 2", "wide.png, tile 2 of 2"]
    assert labels[3:] == [f"clip, frame {number} at {number}.0 s" for number in range(40)]
    whole, frame = tiles.pictures([0, 3 + 7])
    assert (whole.getpixel((9, 9)), frame.getpixel((9, 9))) == ((255, 0, 0), (42, 0, 0))
