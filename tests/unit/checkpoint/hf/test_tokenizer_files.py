"""Files written next to the weights: tokenizer, chat template, generation config."""

from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import Environment

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import read_json
from longvita.checkpoint.hf.tokenizer_files import (
    CHAT_TEMPLATE,
    IMAGE_TOKENS,
    check_vocabulary,
    token_id,
    transformers_tokenizer,
    write_generation_config,
    write_tokenizer,
)
from longvita.data.tokenizer import load_tokenizer, load_transformers_tokenizer
from tools.quickstart.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["name the digit in the picture"], folder)
    return folder


def render(messages: list[dict], generation: bool = False) -> str:
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=generation)


@pytest.mark.parametrize(
    "content, written",
    [
        ("Hello", "Hello"),
        ("<image>\nHello", "<IMG_CONTEXT>\nHello"),
        ([{"type": "image"}, {"type": "text", "text": "Hello"}], "<IMG_CONTEXT>\nHello"),
        ([{"type": "image"}, {"type": "text", "text": "\nHello"}], "<IMG_CONTEXT>\nHello"),
        ([{"type": "text", "text": "See "}, {"type": "image"}], "See <IMG_CONTEXT>"),
        ([{"type": "image"}, {"type": "video"}, {"type": "text", "text": "?"}], "<IMG_CONTEXT>\n<video>\n?"),
    ],
)
def test_the_chat_template(content, written: str):
    assert render([{"role": "user", "content": content}]) == f"<|im_start|>user\n{written}<|im_end|>\n"


def test_the_chat_template_has_no_system_message_of_its_own_and_opens_the_answer():
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    wanted = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert render(messages, generation=True) == wanted


def test_a_tokenizer_comes_as_folder_wrapper_or_transformers_object(source: Path, tmp_path: Path):
    ids = load_tokenizer(source).encode("name the <IMG_CONTEXT> 7<|im_end|>")
    for number, given in enumerate((source, load_tokenizer(source), load_transformers_tokenizer(source))):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tokenizer(given, folder)
        found = load_transformers_tokenizer(folder)
        assert found("name the <IMG_CONTEXT> 7<|im_end|>")["input_ids"] == ids
        assert (found.eos_token, found.pad_token) == ("<|im_end|>", "<|endoftext|>")
        for name, token in IMAGE_TOKENS.items():
            assert getattr(found, name) == token
        config = read_json(folder / "tokenizer_config.json")
        assert config["extra_special_tokens"] == IMAGE_TOKENS
        assert "is_local" not in config
        assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
        assert not [path for path in folder.iterdir() if path.is_dir()]


def test_other_objects_than_tokenizers_are_refused():
    with pytest.raises(CheckpointError, match="list is not a tokenizer"):
        transformers_tokenizer([])


def test_a_token_that_is_missing_is_named(source: Path):
    with pytest.raises(CheckpointError, match="has no token <audio>"):
        token_id(source, "<audio>")


def test_a_tokenizer_larger_than_the_model_is_refused(source: Path):
    size = load_tokenizer(source).vocab_size
    check_vocabulary(source, size)
    with pytest.raises(CheckpointError, match=rf"go up to {size - 1} and model.language.vocab_size is {size - 1}"):
        check_vocabulary(source, size - 1)


def test_generation_ends_at_the_end_of_a_turn(source: Path, tmp_path: Path):
    write_generation_config(tmp_path, source)
    tokenizer = load_tokenizer(source)
    end, padding = tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>")
    wanted = {"do_sample": False, "eos_token_id": [end, padding], "pad_token_id": padding}
    assert read_json(tmp_path / "generation_config.json") == wanted
    write_generation_config(tmp_path, None)
    assert read_json(tmp_path / "generation_config.json") == {"do_sample": False}
