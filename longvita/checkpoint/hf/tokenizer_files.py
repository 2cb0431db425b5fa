"""Tokenizer, chat template and generation config of an exported folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from longvita.checkpoint.errors import CheckpointError
from longvita.checkpoint.hf.config_json import read_json, write_json

Tokenizer = Any
"""A transformers tokenizer, our LongVITATokenizer, or a folder that holds one."""

IMAGE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
"""Attributes that transformers' InternVLProcessor reads from its tokenizer."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] | replace('<image>', '<IMG_CONTEXT>') -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'video') -%}
{{- '<IMG_CONTEXT>' if part['type'] == 'image' else '<video>' -}}
{%- if not loop.last and not (loop.nextitem['text'] is defined and loop.nextitem['text'].startswith('\\n')) -%}
{{- '\\n' -}}
{%- endif -%}
{%- elif part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""ChatML without a default system message. A picture or video that is a part of the content gets its own line; in a
string, <image> marks the place of a picture."""

END_OF_TURN = "<|im_end|>"
_SESSION_KEYS = ("is_local", "local_files_only", "model_specific_special_tokens", "name_or_path")


def transformers_tokenizer(tokenizer: Tokenizer) -> Any:
    """The tokenizer as an object of transformers, which can be saved. Raises CheckpointError for anything else."""
    from longvita.data.tokenizer import PADDING, LongVITATokenizer, load_transformers_tokenizer

    if isinstance(tokenizer, (str, Path)):
        return load_transformers_tokenizer(tokenizer)
    if isinstance(tokenizer, LongVITATokenizer):
        from transformers import PreTrainedTokenizerFast

        names = {"eos_token": END_OF_TURN, "pad_token": tokenizer.backend.id_to_token(tokenizer.padding) or PADDING}
        return PreTrainedTokenizerFast(
            tokenizer_object=LongVITATokenizer.from_json(tokenizer.to_json()).backend, **names
        )
    if not hasattr(tokenizer, "save_pretrained"):
        raise CheckpointError(f"{type(tokenizer).__name__} is not a tokenizer that can be saved")
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a control token. Raises CheckpointError when the vocabulary lacks it."""
    number = transformers_tokenizer(tokenizer).get_vocab().get(token)
    if number is None:
        raise CheckpointError(
            f"the tokenizer has no token {token}; load it with longvita.data.tokenizer.load_transformers_tokenizer"
            " to have it added"
        )
    return int(number)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise CheckpointError when the tokenizer has ids beyond the model's vocabulary."""
    highest = max(transformers_tokenizer(tokenizer).get_vocab().values())
    if highest >= vocab_size:
        raise CheckpointError(
            f"the tokenizer's ids go up to {highest} and model.language.vocab_size is {vocab_size}; this tokenizer is "
            "not the model's"
        )


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, with the names of the image tokens.

    The names are under `extra_special_tokens`, where every transformers release that knows InternVL reads them.
    """
    for token in IMAGE_TOKENS.values():
        token_id(tokenizer, token)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        transformers_tokenizer(tokenizer).save_pretrained(scratch)
        for path in Path(scratch).iterdir():
            if path.name != "chat_template.jinja":
                shutil.move(path, folder / path.name)
    config = read_json(folder / "tokenizer_config.json")
    for key in (*_SESSION_KEYS, *IMAGE_TOKENS, "chat_template", "additional_special_tokens", "extra_special_tokens"):
        config.pop(key, None)
    config["extra_special_tokens"] = dict(IMAGE_TOKENS)
    write_json(folder / "tokenizer_config.json", config)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_generation_config(folder: Path, tokenizer: Tokenizer | None) -> None:
    """Write generation_config.json: greedy, ending at <|im_end|> or <|endoftext|> where the tokenizer has them."""
    config: dict[str, Any] = {"do_sample": False}
    if tokenizer is not None:
        vocabulary = transformers_tokenizer(tokenizer).get_vocab()
        ends = [vocabulary[token] for token in (END_OF_TURN, "<|endoftext|>") if token in vocabulary]
        if ends:
            config |= {"eos_token_id": ends, "pad_token_id": ends[-1]}
    write_json(folder / "generation_config.json", config)
